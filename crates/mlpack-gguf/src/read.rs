//! Reading a file: the layout of [`crate::layout`], from untrusted bytes.

use crate::{DEFAULT_ALIGNMENT, Error, MAGIC, MAX_DIMS, MAX_NAME, Problem, value_type as vt};
use mlpack_fs::{BoundedReader, MappedFile};
use mlpack_tensor::{Escaped, GgmlType, MetaArray, MetaValue, Metadata, Shape};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// The longest metadata key (ggml `docs/gguf.md`: at most 2^16 - 1 bytes).
const MAX_KEY: u64 = 65_535;

/// How deep arrays may hold arrays. llama.cpp writes none.
const MAX_NESTING: usize = 4;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub ty: GgmlType,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// Its bytes, as offsets into the file.
    pub range: Range<u64>,
}

/// A GGUF file, mapped, with its metadata read and its tensor table checked.
#[derive(Debug)]
pub struct GgufFile {
    map: MappedFile,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    data_start: u64,
}

impl GgufFile {
    /// Opens a file and reads its header; no tensor data is read.
    pub fn open(path: &Path) -> Result<GgufFile, Error> {
        GgufFile::from_map(MappedFile::open(path)?)
    }

    /// The same for a file that is mapped already.
    pub fn from_map(map: MappedFile) -> Result<GgufFile, Error> {
        let parsed = parse(map.bytes());
        let (metadata, tensors, data_start) =
            parsed.map_err(|(field, problem)| Error::File { path: map.path().to_owned(), field, problem })?;
        Ok(GgufFile { map, metadata, tensors, data_start })
    }

    /// The mapped file, for hashing and for giving pages back.
    pub fn map(&self) -> &MappedFile {
        &self.map
    }

    /// The mapped file alone.
    pub fn into_map(self) -> MappedFile {
        self.map
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The metadata in file order.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Where the data starts.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The bytes of one of [`GgufFile::tensors`].
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map.bytes()[tensor.range.start as usize..tensor.range.end as usize]
    }

    /// The length of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.map.byte_len()
    }

    /// Gives back the pages of a range of the file that nobody needs for now.
    pub fn release(&self, range: Range<u64>) {
        self.map.release(range.start as usize..range.end as usize);
    }
}

/// The metadata in the header of a file that need not be there yet, such as [`Layout::header`](crate::Layout::header);
/// `None` when it is not one.
pub fn header_metadata(header: &[u8]) -> Option<Metadata> {
    let mut r = BoundedReader::new(header);
    if r.take(4).ok()? != MAGIC || !matches!(r.u32().ok()?, 2 | 3) {
        return None;
    }
    r.u64().ok()?;
    let count = r.u64().ok()?;
    read_metadata(&mut r, count).ok()
}

/// The field that is wrong, and how.
type Wrong = (String, Problem);

fn at<T, E: Into<Problem>>(field: impl FnOnce() -> String, result: Result<T, E>) -> Result<T, Wrong> {
    result.map_err(|problem| (field(), problem.into()))
}

fn parse(bytes: &[u8]) -> Result<(Metadata, Vec<Tensor>, u64), Wrong> {
    let mut r = BoundedReader::new(bytes);
    let header = || "header".to_owned();
    let magic = &bytes[..bytes.len().min(4)];
    if magic != MAGIC {
        return Err((header(), Problem::Magic { found: magic.to_vec() }));
    }
    at(header, r.take(4))?;
    let version = at(header, r.u32())?;
    if !matches!(version, 2 | 3) {
        return Err((header(), Problem::Version { found: version }));
    }
    let tensor_count = at(header, r.u64())?;
    let key_count = at(header, r.u64())?;
    // A key is at least its length, one byte, a type and one byte of value; a tensor its length, one byte, a dimension
    // count, one dimension, a type and an offset.
    at(|| "metadata count".to_owned(), r.count(key_count, 8 + 1 + 4 + 1))?;
    at(|| "tensor count".to_owned(), r.count(tensor_count, 8 + 1 + 4 + 8 + 4 + 8))?;
    let metadata = read_metadata(&mut r, key_count)?;
    let alignment = alignment(&metadata)?;
    let tensors = read_table(&mut r, tensor_count)?;
    let data_start = r.offset().checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let available = if tensors.is_empty() { 0 } else { (bytes.len() as u64).saturating_sub(data_start) };
    let tensors = place(tensors, alignment, data_start, available)?;
    Ok((metadata, tensors, data_start))
}

fn read_metadata(r: &mut BoundedReader<'_>, count: u64) -> Result<Metadata, Wrong> {
    let mut metadata = Metadata::new();
    let mut seen = HashSet::new();
    for i in 0..count {
        let key = at(|| format!("key {i}"), read_string(r))?;
        let field = || format!("key `{}`", Escaped(&key));
        if key.is_empty() || key.len() as u64 > MAX_KEY {
            return Err((field(), Problem::NameLength { found: key.len() as u64, limit: MAX_KEY }));
        }
        if !seen.insert(key.clone()) {
            return Err((field(), Problem::Duplicate));
        }
        let value = at(field, read_value(r))?;
        metadata.push(key, value);
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Result<u64, Wrong> {
    match metadata.find("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(MetaValue::U32(n)) if n.is_power_of_two() => Ok(u64::from(*n)),
        Some(other) => Err(("key `general.alignment`".to_owned(), Problem::Alignment { found: other.clone() })),
    }
}

/// A tensor table as it stands in the file: offsets count from the start of the data.
fn read_table(r: &mut BoundedReader<'_>, count: u64) -> Result<Vec<(Tensor, u64)>, Wrong> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..count {
        let name = at(|| format!("tensor {i}"), read_string(r))?;
        let field = || format!("tensor `{}`", Escaped(&name));
        if name.is_empty() || name.len() >= MAX_NAME {
            return Err((field(), Problem::NameLength { found: name.len() as u64, limit: MAX_NAME as u64 - 1 }));
        }
        if !seen.insert(name.clone()) {
            return Err((field(), Problem::Duplicate));
        }
        let rank = at(field, r.u32())?;
        if rank == 0 || rank as usize > MAX_DIMS {
            return Err((field(), Problem::Dimensions { limit: MAX_DIMS, found: rank }));
        }
        let mut dims = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            dims.push(at(field, r.u64())?);
        }
        dims.reverse();
        let shape = Shape::new(dims);
        let id = at(field, r.u32())?;
        let ty = GgmlType::from_id(id).ok_or_else(|| (field(), Problem::TensorType { found: id }))?;
        if !shape.row_len().is_multiple_of(ty.block_len()) {
            return Err((field(), Problem::Shape { ty, shape }));
        }
        let byte_len = ty.byte_len(&shape).ok_or_else(|| (field(), Problem::Size { ty, shape: shape.clone() }))?;
        let offset = at(field, r.u64())?;
        tensors.push((Tensor { name, ty, shape, range: 0..byte_len }, offset));
    }
    Ok(tensors)
}

/// Checks that the tensors are aligned, inside the file and apart, and makes their ranges absolute.
fn place(table: Vec<(Tensor, u64)>, alignment: u64, data_start: u64, available: u64) -> Result<Vec<Tensor>, Wrong> {
    let mut by_offset: Vec<(u64, u64, &str)> = Vec::with_capacity(table.len());
    for (tensor, offset) in &table {
        let wrong = |problem| (format!("tensor `{}`", Escaped(&tensor.name)), problem);
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(Problem::Unaligned { alignment, found: *offset }));
        }
        let byte_len = tensor.range.end;
        let Some(end) = offset.checked_add(byte_len).filter(|end| *end <= available) else {
            return Err(wrong(Problem::OutOfRange { available, offset: *offset, byte_len }));
        };
        by_offset.push((*offset, end, &tensor.name));
    }
    by_offset.sort_unstable();
    for pair in by_offset.windows(2) {
        let [(_, other_end, other), (offset, _, name)] = pair else { unreachable!("windows of two") };
        if offset < other_end {
            let problem = Problem::Overlap { other: (*other).to_owned(), other_end: *other_end, offset: *offset };
            return Err((format!("tensor `{}`", Escaped(name)), problem));
        }
    }
    let absolute = |(mut tensor, offset): (Tensor, u64)| {
        let start = data_start + offset;
        tensor.range = start..start + tensor.range.end;
        tensor
    };
    Ok(table.into_iter().map(absolute).collect())
}

fn read_string(r: &mut BoundedReader<'_>) -> Result<String, Problem> {
    let len = r.u64()?;
    let offset = r.offset();
    let bytes = r.take(len)?;
    Ok(std::str::from_utf8(bytes).map_err(|_| Problem::NotUtf8 { offset })?.to_owned())
}

fn read_bool(r: &mut BoundedReader<'_>) -> Result<bool, Problem> {
    let offset = r.offset();
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Problem::Bool { found, offset }),
    }
}

fn read_value(r: &mut BoundedReader<'_>) -> Result<MetaValue, Problem> {
    let offset = r.offset();
    Ok(match r.u32()? {
        vt::U8 => r.u8()?.into(),
        vt::I8 => r.i8()?.into(),
        vt::U16 => r.u16()?.into(),
        vt::I16 => r.i16()?.into(),
        vt::U32 => r.u32()?.into(),
        vt::I32 => r.i32()?.into(),
        vt::F32 => r.f32()?.into(),
        vt::BOOL => read_bool(r)?.into(),
        vt::STRING => read_string(r)?.into(),
        vt::ARRAY => MetaValue::Array(read_array(r, 1)?),
        vt::U64 => r.u64()?.into(),
        vt::I64 => r.i64()?.into(),
        vt::F64 => r.f64()?.into(),
        found => return Err(Problem::ValueType { found, offset }),
    })
}

fn read_array(r: &mut BoundedReader<'_>, depth: usize) -> Result<MetaArray, Problem> {
    let offset = r.offset();
    if depth > MAX_NESTING {
        return Err(Problem::Nesting { limit: MAX_NESTING, offset });
    }
    let ty = r.u32()?;
    let count = r.u64()?;
    macro_rules! elements {
        ($variant:ident, $min_len:expr, $read:expr) => {{
            let count = r.count(count, $min_len)?;
            let mut elements = Vec::with_capacity(count);
            for _ in 0..count {
                elements.push($read);
            }
            MetaArray::$variant(elements)
        }};
    }
    Ok(match ty {
        vt::U8 => elements!(U8, 1, r.u8()?),
        vt::I8 => elements!(I8, 1, r.i8()?),
        vt::U16 => elements!(U16, 2, r.u16()?),
        vt::I16 => elements!(I16, 2, r.i16()?),
        vt::U32 => elements!(U32, 4, r.u32()?),
        vt::I32 => elements!(I32, 4, r.i32()?),
        vt::F32 => elements!(F32, 4, r.f32()?),
        vt::BOOL => elements!(Bool, 1, read_bool(r)?),
        vt::STRING => elements!(String, 8, read_string(r)?),
        vt::ARRAY => elements!(Array, 12, read_array(r, depth + 1)?),
        vt::U64 => elements!(U64, 8, r.u64()?),
        vt::I64 => elements!(I64, 8, r.i64()?),
        vt::F64 => elements!(F64, 8, r.f64()?),
        found => return Err(Problem::ValueType { found, offset }),
    })
}

#[cfg(test)]
mod tests;
