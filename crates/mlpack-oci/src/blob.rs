//! A blob that is not stored yet: its digest, its length, and where its bytes come from.
//!
//! ```text
//! a file              [ FILE ]                              the digest is the file's
//! a tar around it     [ header | FILE | padding | end ]     streamed; no copy of the file is made
//! ```

use crate::Error;
use mlpack_fs::{Hasher, Operation, Sha256, hash_file};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes hashed at a time.
const HASH_LEN: usize = 1 << 20;

/// A part of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes in memory.
    Bytes(Arc<[u8]>),
    /// A whole file of that many bytes.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its length in bytes.
        byte_len: u64,
    },
}

impl Piece {
    fn byte_len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File { byte_len, .. } => *byte_len,
        }
    }
}

/// A blob with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    digest: Sha256,
    byte_len: u64,
    pieces: Vec<Piece>,
}

impl Blob {
    /// A blob in memory.
    pub fn of_bytes(bytes: Vec<u8>) -> Blob {
        let (digest, byte_len) = (Sha256::of(&bytes), bytes.len() as u64);
        Blob { digest, byte_len, pieces: vec![Piece::Bytes(bytes.into())] }
    }

    /// A regular file. It is hashed, unless the caller knows its digest.
    pub fn of_file(path: &Path, known: Option<Sha256>) -> Result<Blob, Error> {
        let metadata = std::fs::metadata(path).map_err(|e| mlpack_fs::Error::io(Operation::Open, path, e))?;
        if !metadata.is_file() {
            let found = if metadata.is_dir() { "a directory" } else { "a special file" };
            return Err(Error::NotAFile { path: path.to_owned(), found });
        }
        let (digest, byte_len) = match known {
            Some(digest) => (digest, metadata.len()),
            None => hash_file(path)?,
        };
        Ok(Blob { digest, byte_len, pieces: vec![Piece::File { path: path.to_owned(), byte_len }] })
    }

    /// A blob of several parts, which are read and hashed.
    pub fn of_pieces(pieces: Vec<Piece>) -> Result<Blob, Error> {
        let byte_len = pieces.iter().map(Piece::byte_len).sum();
        let blob = Blob { digest: Sha256::of(b""), byte_len, pieces };
        let mut hasher = Hasher::new();
        let mut reader = blob.reader(0..byte_len)?;
        let mut buffer = vec![0; HASH_LEN];
        loop {
            match reader.read(&mut buffer).map_err(|e| blob.read_error(e))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(Blob { digest: hasher.finish(), ..blob })
    }

    /// A blob that is known and not here: it can be named, and taken over where it is, but not read.
    pub fn elsewhere(digest: Sha256, byte_len: u64) -> Blob {
        Blob { digest, byte_len, pieces: Vec::new() }
    }

    /// Whether its bytes can be read.
    pub fn is_here(&self) -> bool {
        self.byte_len == 0 || !self.pieces.is_empty()
    }

    /// Its digest.
    pub fn digest(&self) -> &Sha256 {
        &self.digest
    }

    /// Its length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// Where its bytes come from, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The file that it is, when it is one as a whole.
    pub fn file(&self) -> Option<&Path> {
        match &self.pieces[..] {
            [Piece::File { path, .. }] => Some(path),
            _ => None,
        }
    }

    /// Reads a range of it. A file that became shorter ends the reader with `UnexpectedEof`.
    ///
    /// # Panics
    /// When the range reaches past the blob's end.
    pub fn reader(&self, range: Range<u64>) -> Result<BlobReader<'_>, Error> {
        assert!(range.start <= range.end && range.end <= self.byte_len, "{range:?} of {} bytes", self.byte_len);
        let mut pieces = Vec::new();
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.byte_len();
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                pieces.push((piece, from - start..to - start));
            }
            start = end;
        }
        pieces.reverse();
        Ok(BlobReader { rest: pieces, current: None })
    }

    /// An error of its reader, with the file that it is about.
    pub fn read_error(&self, source: io::Error) -> Error {
        let file = self.pieces.iter().find_map(|piece| match piece {
            Piece::File { path, .. } => Some(path.clone()),
            Piece::Bytes(_) => None,
        });
        mlpack_fs::Error::io(Operation::Read, file.unwrap_or_default(), source).into()
    }
}

/// Reads a range of a [`Blob`].
#[derive(Debug)]
pub struct BlobReader<'a> {
    // Last first.
    rest: Vec<(&'a Piece, Range<u64>)>,
    current: Option<Current<'a>>,
}

#[derive(Debug)]
enum Current<'a> {
    Bytes(&'a [u8]),
    File(io::Take<File>),
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.current {
                Some(Current::Bytes(bytes)) if !bytes.is_empty() => return bytes.read(buffer),
                Some(Current::File(file)) if file.limit() > 0 => {
                    let read = file.read(buffer)?;
                    if read == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
                    }
                    return Ok(read);
                }
                _ => {}
            }
            let Some((piece, range)) = self.rest.pop() else { return Ok(0) };
            self.current = Some(match piece {
                Piece::Bytes(bytes) => Current::Bytes(&bytes[range.start as usize..range.end as usize]),
                Piece::File { path, .. } => {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(range.start))?;
                    Current::File(file.take(range.end - range.start))
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_a_blob_of_pieces_reads_as_the_whole_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"cdefg").unwrap();
        let file = Piece::File { path: path.clone(), byte_len: 5 };
        let pieces = vec![Piece::Bytes(b"ab".to_vec().into()), file, Piece::Bytes(b"hi".to_vec().into())];
        let blob = Blob::of_pieces(pieces).unwrap();
        let whole = b"abcdefghi";
        assert_eq!((*blob.digest(), blob.byte_len()), (Sha256::of(whole), 9));
        for start in 0..=9u64 {
            for end in start..=9 {
                let mut found = Vec::new();
                blob.reader(start..end).unwrap().read_to_end(&mut found).unwrap();
                assert_eq!(found, whole[start as usize..end as usize], "{start}..{end}");
            }
        }
        std::fs::write(&path, b"cd").unwrap();
        let error = blob.reader(0..9).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_whose_digest_is_known_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        assert_eq!(*Blob::of_file(&path, Some(Sha256::of(b"y"))).unwrap().digest(), Sha256::of(b"y"));
        assert_eq!(*Blob::of_file(&path, None).unwrap().digest(), Sha256::of(b"x"));
        assert!(matches!(Blob::of_file(dir.path(), None), Err(Error::NotAFile { found: "a directory", .. })));
    }
}
