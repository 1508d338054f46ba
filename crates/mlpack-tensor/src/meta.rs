//! Typed metadata values, as GGUF version 3 defines them (ggml `docs/gguf.md`, "gguf_metadata_value_type").

use crate::Escaped;
use std::fmt;

/// One metadata value. The variant is the type that is written.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// 8-bit unsigned integer, GGUF type 0.
    U8(u8),
    /// 8-bit signed integer, GGUF type 1.
    I8(i8),
    /// 16-bit unsigned integer, GGUF type 2.
    U16(u16),
    /// 16-bit signed integer, GGUF type 3.
    I16(i16),
    /// 32-bit unsigned integer, GGUF type 4.
    U32(u32),
    /// 32-bit signed integer, GGUF type 5.
    I32(i32),
    /// 32-bit float, GGUF type 6.
    F32(f32),
    /// Boolean, one byte, GGUF type 7.
    Bool(bool),
    /// UTF-8 string, GGUF type 8.
    String(String),
    /// Homogeneous array, GGUF type 9.
    Array(MetaArray),
    /// 64-bit unsigned integer, GGUF type 10.
    U64(u64),
    /// 64-bit signed integer, GGUF type 11.
    I64(i64),
    /// 64-bit float, GGUF type 12.
    F64(f64),
}

/// A homogeneous array. The element type is known even when the array is empty.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaArray {
    /// Elements of GGUF type 0.
    U8(Vec<u8>),
    /// Elements of GGUF type 1.
    I8(Vec<i8>),
    /// Elements of GGUF type 2.
    U16(Vec<u16>),
    /// Elements of GGUF type 3.
    I16(Vec<i16>),
    /// Elements of GGUF type 4.
    U32(Vec<u32>),
    /// Elements of GGUF type 5.
    I32(Vec<i32>),
    /// Elements of GGUF type 6.
    F32(Vec<f32>),
    /// Elements of GGUF type 7.
    Bool(Vec<bool>),
    /// Elements of GGUF type 8.
    String(Vec<String>),
    /// Nested arrays, GGUF type 9.
    Array(Vec<MetaArray>),
    /// Elements of GGUF type 10.
    U64(Vec<u64>),
    /// Elements of GGUF type 11.
    I64(Vec<i64>),
    /// Elements of GGUF type 12.
    F64(Vec<f64>),
}

impl MetaValue {
    /// The name of the type in lower case, as ggml spells it; `array` for all arrays.
    pub const fn type_name(&self) -> &'static str {
        match self {
            MetaValue::U8(_) => "u8",
            MetaValue::I8(_) => "i8",
            MetaValue::U16(_) => "u16",
            MetaValue::I16(_) => "i16",
            MetaValue::U32(_) => "u32",
            MetaValue::I32(_) => "i32",
            MetaValue::F32(_) => "f32",
            MetaValue::Bool(_) => "bool",
            MetaValue::String(_) => "str",
            MetaValue::Array(_) => "array",
            MetaValue::U64(_) => "u64",
            MetaValue::I64(_) => "i64",
            MetaValue::F64(_) => "f64",
        }
    }

    /// The value of an integer of any width that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            MetaValue::U8(v) => Some(u64::from(*v)),
            MetaValue::U16(v) => Some(u64::from(*v)),
            MetaValue::U32(v) => Some(u64::from(*v)),
            MetaValue::U64(v) => Some(*v),
            MetaValue::I8(v) => u64::try_from(*v).ok(),
            MetaValue::I16(v) => u64::try_from(*v).ok(),
            MetaValue::I32(v) => u64::try_from(*v).ok(),
            MetaValue::I64(v) => u64::try_from(*v).ok(),
            MetaValue::F32(_) | MetaValue::Bool(_) | MetaValue::String(_) | MetaValue::Array(_) | MetaValue::F64(_) => {
                None
            }
        }
    }
}

/// The value and its type, for messages: "3 (u32)"; of an array the type alone. Text is escaped.
impl fmt::Display for MetaValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaValue::U8(v) => write!(f, "{v} (u8)"),
            MetaValue::I8(v) => write!(f, "{v} (i8)"),
            MetaValue::U16(v) => write!(f, "{v} (u16)"),
            MetaValue::I16(v) => write!(f, "{v} (i16)"),
            MetaValue::U32(v) => write!(f, "{v} (u32)"),
            MetaValue::I32(v) => write!(f, "{v} (i32)"),
            MetaValue::F32(v) => write!(f, "{v} (f32)"),
            MetaValue::Bool(v) => write!(f, "{v} (bool)"),
            MetaValue::String(v) => write!(f, "`{}` (str)", Escaped(v)),
            MetaValue::Array(_) => f.write_str("an array"),
            MetaValue::U64(v) => write!(f, "{v} (u64)"),
            MetaValue::I64(v) => write!(f, "{v} (i64)"),
            MetaValue::F64(v) => write!(f, "{v} (f64)"),
        }
    }
}

/// Metadata in file order. Setting a key that is there keeps its place and replaces its value, as llama.cpp's Python
/// writer does.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Metadata(Vec<(String, MetaValue)>);

impl Metadata {
    /// No keys.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Sets `key`: in place when it is there, else at the end.
    pub fn set(&mut self, key: impl Into<String>, value: MetaValue) {
        let key = key.into();
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.0.push((key, value)),
        }
    }

    /// Removes `key` and appends it with the new value, as ggml's `gguf_set_val_*` functions do.
    pub fn set_last(&mut self, key: impl Into<String>, value: MetaValue) {
        let key = key.into();
        self.0.retain(|(k, _)| *k != key);
        self.0.push((key, value));
    }

    /// Appends without looking for an earlier entry of that key; for readers that have checked for duplicates.
    pub fn push(&mut self, key: String, value: MetaValue) {
        self.0.push((key, value));
    }

    /// Removes `key` and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<MetaValue> {
        let i = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.remove(i).1)
    }

    /// The value of `key`.
    pub fn find(&self, key: &str) -> Option<&MetaValue> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The entries in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &MetaValue)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<(String, MetaValue)> for Metadata {
    fn extend<T: IntoIterator<Item = (String, MetaValue)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.set(key, value);
        }
    }
}

macro_rules! from_scalar {
    ($($t:ty => $v:ident),* $(,)?) => {$(
        impl From<$t> for MetaValue {
            fn from(value: $t) -> MetaValue {
                MetaValue::$v(value)
            }
        }
        impl From<Vec<$t>> for MetaValue {
            fn from(value: Vec<$t>) -> MetaValue {
                MetaValue::Array(MetaArray::$v(value))
            }
        }
    )*};
}

from_scalar!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    String => String, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for MetaValue {
    fn from(value: &str) -> MetaValue {
        MetaValue::String(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_keeps_the_place_and_set_last_moves() {
        let mut m = Metadata::new();
        m.set("a", 1u32.into());
        m.set("b", 2u32.into());
        m.set("a", 3u32.into());
        assert_eq!(m.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["a", "b"]);
        m.set_last("a", 4u32.into());
        assert_eq!(m.iter().collect::<Vec<_>>(), [("b", &MetaValue::U32(2)), ("a", &MetaValue::U32(4))]);
    }

    #[test]
    fn integers_of_any_width_are_read_and_shown_with_their_type() {
        for (value, number, text) in [
            (MetaValue::U16(3), Some(3), "3 (u16)"),
            (MetaValue::I32(29), Some(29), "29 (i32)"),
            (MetaValue::I64(-1), None, "-1 (i64)"),
            (MetaValue::U64(u64::MAX), Some(u64::MAX), "18446744073709551615 (u64)"),
            (MetaValue::F32(1.5), None, "1.5 (f32)"),
            (MetaValue::Bool(true), None, "true (bool)"),
            ("a\nb".into(), None, "`a\\u{a}b` (str)"),
            (vec![1u8].into(), None, "an array"),
        ] {
            assert_eq!((value.as_u64(), value.to_string().as_str()), (number, text));
        }
    }
}
