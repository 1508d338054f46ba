//! The layout of a file: its header bytes, and the place of every tensor before any data exists.
//!
//! ```text
//! | "GGUF" | version: u32 | tensors: u64 | keys: u64 |
//! | key: string | type: u32 | value |                        once per key
//! | name: string | dims: u32 | dim: u64 … | type: u32 | offset: u64 |    once per tensor, dims innermost first
//! | zeros to the alignment | data, each tensor followed by zeros to the alignment |
//! ```
//! A string is its length as u64 and its bytes; everything is little-endian. Format: ggml `docs/gguf.md`; that the last
//! tensor is padded too is what llama.cpp b11434 does (`gguf-py/gguf/gguf_writer.py`, `src/llama-quant.cpp`). Its llama-quantize
//! pads to 32 whatever `general.alignment` says, and still copies that key: what it makes of a file with another alignment
//! cannot be read. Here the key holds.

use crate::{LayoutError, MAGIC, MAX_DIMS, MAX_NAME, VERSION, value_type as vt};
use mlpack_tensor::{GgmlType, MetaArray, MetaValue, Metadata, Shape};
use std::collections::HashSet;
use std::ops::Range;

/// The alignment of a file without `general.alignment`.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The largest alignment that is written: the header is padded to it in memory.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A tensor to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// How its elements are stored.
    pub ty: GgmlType,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
}

/// A tensor with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSlot {
    /// What is stored.
    pub spec: TensorSpec,
    /// Its bytes, as offsets into the file, without the padding.
    pub range: Range<u64>,
    /// Where the padding after it ends.
    pub padded_end: u64,
}

/// Header bytes and tensor places of one file.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<TensorSlot>,
    byte_len: u64,
}

impl Layout {
    /// Lays out a file. Tensors are stored in the order given, at multiples of `general.alignment` where the metadata has
    /// that key, and of 32 where it has not.
    pub fn new(metadata: &Metadata, tensors: Vec<TensorSpec>) -> Result<Layout, LayoutError> {
        let alignment = alignment(metadata)?;
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_string(&mut header, key);
            put_value(&mut header, value);
        }
        let mut names = HashSet::with_capacity(tensors.len());
        let mut offset = 0u64;
        let mut slots = Vec::with_capacity(tensors.len());
        for spec in tensors {
            check_name(&spec.name, &mut names)?;
            let misfit = || LayoutError::Shape { name: spec.name.clone(), ty: spec.ty, shape: spec.shape.clone() };
            let byte_len = spec.ty.byte_len(&spec.shape).ok_or_else(misfit)?;
            let dims = spec.shape.dims();
            if dims.is_empty() || dims.len() > MAX_DIMS {
                return Err(misfit());
            }
            put_string(&mut header, &spec.name);
            header.extend_from_slice(&(dims.len() as u32).to_le_bytes());
            dims.iter().rev().for_each(|d| header.extend_from_slice(&d.to_le_bytes()));
            header.extend_from_slice(&spec.ty.id().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            let end = offset.checked_add(byte_len).ok_or_else(misfit)?;
            let padded = end.checked_next_multiple_of(alignment).ok_or_else(misfit)?;
            slots.push(TensorSlot { spec: spec.clone(), range: offset..end, padded_end: padded });
            offset = padded;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let data_start = header.len() as u64;
        for slot in &mut slots {
            slot.range = slot.range.start + data_start..slot.range.end + data_start;
            slot.padded_end += data_start;
        }
        Ok(Layout { byte_len: data_start + offset, header, tensors: slots })
    }

    /// Everything before the data, with its padding.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors with their places, in file order.
    pub fn tensors(&self) -> &[TensorSlot] {
        &self.tensors
    }

    /// The length of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, LayoutError> {
    match metadata.find("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(MetaValue::U32(n)) if n.is_power_of_two() && u64::from(*n) <= MAX_ALIGNMENT => Ok(u64::from(*n)),
        Some(other) => Err(LayoutError::Alignment { limit: MAX_ALIGNMENT, found: other.clone() }),
    }
}

fn check_name(name: &str, names: &mut HashSet<String>) -> Result<(), LayoutError> {
    if name.is_empty() || name.len() >= MAX_NAME {
        return Err(LayoutError::NameLength { name: name.to_owned(), limit: MAX_NAME - 1 });
    }
    if !names.insert(name.to_owned()) {
        return Err(LayoutError::Duplicate { name: name.to_owned() });
    }
    Ok(())
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a type number and the value.
fn put_value(out: &mut Vec<u8>, value: &MetaValue) {
    macro_rules! scalar {
        ($ty:expr, $v:expr) => {{
            out.extend_from_slice(&$ty.to_le_bytes());
            out.extend_from_slice(&$v.to_le_bytes());
        }};
    }
    match value {
        MetaValue::U8(v) => scalar!(vt::U8, v),
        MetaValue::I8(v) => scalar!(vt::I8, v),
        MetaValue::U16(v) => scalar!(vt::U16, v),
        MetaValue::I16(v) => scalar!(vt::I16, v),
        MetaValue::U32(v) => scalar!(vt::U32, v),
        MetaValue::I32(v) => scalar!(vt::I32, v),
        MetaValue::F32(v) => scalar!(vt::F32, v),
        MetaValue::Bool(v) => scalar!(vt::BOOL, u8::from(*v)),
        MetaValue::U64(v) => scalar!(vt::U64, v),
        MetaValue::I64(v) => scalar!(vt::I64, v),
        MetaValue::F64(v) => scalar!(vt::F64, v),
        MetaValue::String(v) => {
            out.extend_from_slice(&vt::STRING.to_le_bytes());
            put_string(out, v);
        }
        MetaValue::Array(v) => {
            out.extend_from_slice(&vt::ARRAY.to_le_bytes());
            put_array(out, v);
        }
    }
}

/// Appends an element type number, a count and the elements.
fn put_array(out: &mut Vec<u8>, array: &MetaArray) {
    macro_rules! numbers {
        ($ty:expr, $v:expr) => {{
            put_array_head(out, $ty, $v.len());
            $v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }};
    }
    match array {
        MetaArray::U8(v) => numbers!(vt::U8, v),
        MetaArray::I8(v) => numbers!(vt::I8, v),
        MetaArray::U16(v) => numbers!(vt::U16, v),
        MetaArray::I16(v) => numbers!(vt::I16, v),
        MetaArray::U32(v) => numbers!(vt::U32, v),
        MetaArray::I32(v) => numbers!(vt::I32, v),
        MetaArray::F32(v) => numbers!(vt::F32, v),
        MetaArray::U64(v) => numbers!(vt::U64, v),
        MetaArray::I64(v) => numbers!(vt::I64, v),
        MetaArray::F64(v) => numbers!(vt::F64, v),
        MetaArray::Bool(v) => {
            put_array_head(out, vt::BOOL, v.len());
            out.extend(v.iter().map(|b| u8::from(*b)));
        }
        MetaArray::String(v) => {
            put_array_head(out, vt::STRING, v.len());
            v.iter().for_each(|s| put_string(out, s));
        }
        MetaArray::Array(v) => {
            put_array_head(out, vt::ARRAY, v.len());
            v.iter().for_each(|a| put_array(out, a));
        }
    }
}

fn put_array_head(out: &mut Vec<u8>, ty: u32, len: usize) {
    out.extend_from_slice(&ty.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, ty: GgmlType, dims: &[u64]) -> TensorSpec {
        TensorSpec { name: name.into(), ty, shape: dims.into() }
    }

    #[test]
    fn tensors_are_padded_and_dims_reversed() {
        let layout =
            Layout::new(&Metadata::new(), vec![spec("a", GgmlType::F16, &[3, 5]), spec("b", GgmlType::F32, &[1])])
                .unwrap();
        let [a, b] = layout.tensors() else { panic!() };
        assert_eq!(a.range.end - a.range.start, 30);
        assert_eq!(a.padded_end, b.range.start);
        assert_eq!(layout.byte_len(), a.range.start + 64);
        // name length 1, 'a', two dims: 5 then 3
        let table = &layout.header()[24..];
        assert_eq!(
            &table[..29],
            [&[1, 0, 0, 0, 0, 0, 0, 0, b'a', 2, 0, 0, 0][..], &5u64.to_le_bytes(), &3u64.to_le_bytes()].concat()
        );
    }

    #[test]
    fn general_alignment_is_kept() {
        let tensors = || vec![spec("a", GgmlType::F32, &[3]), spec("b", GgmlType::F32, &[1])];
        for alignment in [1u32, 8, 64, 4096] {
            let mut metadata = Metadata::new();
            metadata.set("general.alignment", alignment.into());
            let layout = Layout::new(&metadata, tensors()).unwrap();
            let [a, b] = layout.tensors() else { panic!() };
            let whole = |n: u64| n.next_multiple_of(u64::from(alignment));
            assert_eq!((a.range.start, layout.header().len() as u64), (whole(a.range.start), a.range.start));
            assert_eq!((b.range.start, layout.byte_len()), (whole(a.range.end), whole(b.range.end)));
        }
    }

    #[test]
    fn refuses_an_alignment_that_is_none() {
        for value in [
            0u32.into(),
            48u32.into(),
            (1u32 << 31).into(),
            32u64.into(),
            MetaValue::from(-32),
            "32".into(),
            32.0f32.into(),
        ] {
            let mut metadata = Metadata::new();
            metadata.set("general.alignment", value);
            assert!(matches!(Layout::new(&metadata, vec![]), Err(LayoutError::Alignment { .. })));
        }
        let mut metadata = Metadata::new();
        metadata.set("general.alignment", 48u32.into());
        let text = Layout::new(&metadata, vec![]).unwrap_err().to_string();
        let expected = "  expected: a u32 power of two, at most 1048576\n  found:    48 (u32)";
        assert_eq!(text, format!("key `general.alignment`\n{expected}"));
    }

    #[test]
    fn refuses_what_ggml_could_not_load() {
        let lay = |s| Layout::new(&Metadata::new(), s);
        assert!(matches!(lay(vec![spec("", GgmlType::F32, &[1])]), Err(LayoutError::NameLength { .. })));
        assert!(matches!(lay(vec![spec(&"x".repeat(64), GgmlType::F32, &[1])]), Err(LayoutError::NameLength { .. })));
        let twice = vec![spec("a", GgmlType::F32, &[1]), spec("a", GgmlType::F32, &[1])];
        assert!(matches!(lay(twice), Err(LayoutError::Duplicate { .. })));
        assert!(matches!(lay(vec![spec("a", GgmlType::Q4_K, &[2, 100])]), Err(LayoutError::Shape { .. })));
        assert!(matches!(lay(vec![spec("a", GgmlType::F32, &[1, 1, 1, 1, 1])]), Err(LayoutError::Shape { .. })));
        assert!(matches!(lay(vec![spec("a", GgmlType::F32, &[u64::MAX])]), Err(LayoutError::Shape { .. })));
    }
}
