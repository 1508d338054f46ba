//! Bounded reads: whole small files with a limit, and a cursor over untrusted bytes.

use crate::{Error, Operation};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The content of a file that must not be larger than `limit` bytes.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|e| Error::io(Operation::Open, path, e))?;
    let found = file.metadata().map_err(|e| Error::io(Operation::Read, path, e))?.len();
    if found > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit, found });
    }
    let mut bytes = Vec::new();
    // The file may grow after the check, and some special files report a length of zero.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(Operation::Read, path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit, found: bytes.len() as u64 });
    }
    Ok(bytes)
}

/// The same, for a UTF-8 text file. A byte-order mark at the start is dropped.
pub fn read_to_string_bounded(path: &Path, limit: u64) -> Result<String, Error> {
    let text = String::from_utf8(read_bounded(path, limit)?)
        .map_err(|e| Error::NotUtf8 { path: path.to_owned(), offset: e.utf8_error().valid_up_to() as u64 })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// What a [`BoundedReader`] refuses. The format crate that owns the bytes adds the file and the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Fewer bytes remain than a field needs.
    #[error("needs {needed} bytes at offset {offset}, but {remaining} remain")]
    Truncated {
        /// Where the field starts.
        offset: u64,
        /// Bytes that the field needs.
        needed: u64,
        /// Bytes that remain.
        remaining: u64,
    },
    /// A count promises more items than the remaining bytes can hold.
    #[error("count {count} at offset {offset} needs at least {needed} bytes, but {remaining} remain")]
    CountTooLarge {
        /// Where the items start.
        offset: u64,
        /// The count found.
        count: u64,
        /// The least number of bytes that so many items take.
        needed: u128,
        /// Bytes that remain.
        remaining: u64,
    },
}

/// A cursor over untrusted little-endian bytes. No read moves past the end, and [`BoundedReader::count`] compares a
/// count with the bytes that remain before anyone allocates for it.
#[derive(Clone, Debug)]
pub struct BoundedReader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

macro_rules! read_number {
    ($($name:ident -> $t:ty),* $(,)?) => {$(
        /// Reads one little-endian number.
        pub fn $name(&mut self) -> Result<$t, ReadError> {
            const LEN: usize = size_of::<$t>();
            let bytes = self.take(LEN as u64)?;
            Ok(<$t>::from_le_bytes(bytes.try_into().expect("take returned LEN bytes")))
        }
    )*};
}

impl<'a> BoundedReader<'a> {
    /// A cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> BoundedReader<'a> {
        BoundedReader { bytes, offset: 0 }
    }

    /// The offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.offset as u64
    }

    /// Bytes that remain.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.offset) as u64
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: u64) -> Result<&'a [u8], ReadError> {
        if len > self.remaining() {
            return Err(ReadError::Truncated { offset: self.offset(), needed: len, remaining: self.remaining() });
        }
        let end = self.offset + len as usize;
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }

    /// Checks that `count` items of at least `min_len` bytes each can still follow, and returns it as a capacity.
    pub fn count(&self, count: u64, min_len: u64) -> Result<usize, ReadError> {
        let needed = u128::from(count) * u128::from(min_len.max(1));
        if needed > u128::from(self.remaining()) {
            return Err(ReadError::CountTooLarge { offset: self.offset(), count, needed, remaining: self.remaining() });
        }
        Ok(count as usize)
    }

    read_number!(u8 -> u8, u16 -> u16, u32 -> u32, u64 -> u64, i8 -> i8, i16 -> i16, i32 -> i32, i64 -> i64,
        f32 -> f32, f64 -> f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_read_refuses_a_larger_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_bounded(&path, 4), Err(Error::TooLarge { limit: 4, found: 5, .. })));
    }

    #[test]
    fn text_drops_a_byte_order_mark_and_names_the_invalid_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"\xef\xbb\xbf{}").unwrap();
        assert_eq!(read_to_string_bounded(&path, 10).unwrap(), "{}");
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(matches!(read_to_string_bounded(&path, 10), Err(Error::NotUtf8 { offset: 2, .. })));
    }

    #[test]
    fn cursor_stops_at_the_end_and_checks_counts_first() {
        let mut r = BoundedReader::new(&[1, 0, 2, 0, 0, 0, 9]);
        assert_eq!(r.u16(), Ok(1));
        assert_eq!(r.u32(), Ok(2));
        assert_eq!(r.u16(), Err(ReadError::Truncated { offset: 6, needed: 2, remaining: 1 }));
        assert_eq!(r.count(1, 1), Ok(1));
        assert!(matches!(r.count(u64::MAX, 8), Err(ReadError::CountTooLarge { remaining: 1, .. })));
    }
}
