//! Read-only maps of input files.

use crate::{Error, Operation};
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file mapped read-only. Pages that are done with can be given back with [`MappedFile::release`], so that the
/// resident size stays small however large the file is.
pub struct MappedFile {
    path: PathBuf,
    stamp: Stamp,
    // An empty file cannot be mapped.
    map: Option<memmap2::Mmap>,
}

/// What the system says of a file that changes whenever its content does: length, inode, and when content and inode were
/// last changed. A program can set the time of the content, but not that of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    byte_len: u64,
    inode: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            byte_len: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stamp { byte_len, inode, modified, changed } = self;
        write!(f, "{byte_len} {}:{} {}.{:09} {}.{:09}", inode.0, inode.1, modified.0, modified.1, changed.0, changed.1)
    }
}

impl MappedFile {
    /// Maps `path`.
    pub fn open(path: &Path) -> Result<MappedFile, Error> {
        let file = File::open(path).map_err(|e| Error::io(Operation::Open, path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(Operation::Open, path, e))?;
        if metadata.is_dir() {
            return Err(Error::io(Operation::Open, path, std::io::ErrorKind::IsADirectory.into()));
        }
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and private to this value. The one hazard of mapping a file is that another
            // process truncates it meanwhile: then a read is killed by the system (SIGBUS); it cannot read other
            // memory. Inputs are files that nobody writes while they are packed; docs/security.md says so.
            #[allow(unsafe_code)]
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(Operation::Read, path, e))?;
            Some(map)
        };
        Ok(MappedFile { path: path.to_owned(), stamp: Stamp::of(&metadata), map })
    }

    /// What the file was when it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The path given to [`MappedFile::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// The length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// Tells the system that the pages wholly inside `range` are not needed for now. Their content stays readable: it
    /// comes from the page cache or the disk again. A range outside the file does nothing.
    pub fn release(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let Some(map) = &self.map else { return };
        let start = range.start.next_multiple_of(PAGE);
        let end = if range.end >= map.len() { map.len() } else { range.end / PAGE * PAGE };
        if start < end {
            // SAFETY: MADV_DONTNEED on a read-only, file-backed, never written map only drops page-table entries; the
            // next access faults the same file content in again, so no reference into the map changes value.
            #[allow(unsafe_code)]
            let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            // Advice: a kernel that does not take it only costs resident memory.
            drop(advised);
        }
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedFile").field("path", &self.path).field("byte_len", &self.byte_len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_survives_release() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        assert_eq!(map.bytes(), content);
        map.release(1..90_000);
        map.release(0..usize::MAX);
        map.release(200_000..300_000);
        assert_eq!(map.bytes(), content);
    }

    #[test]
    fn a_file_that_is_written_again_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"one").unwrap();
        let first = MappedFile::open(&path).unwrap().stamp();
        assert_eq!(MappedFile::open(&path).unwrap().stamp(), first);
        let time = path.metadata().unwrap().modified().unwrap();
        let copy = dir.path().join("copy");
        std::fs::write(&copy, b"two").unwrap();
        std::fs::File::options().write(true).open(&copy).unwrap().set_modified(time).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        assert_ne!(MappedFile::open(&path).unwrap().stamp(), first);
    }

    #[test]
    fn an_empty_file_is_empty_and_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().bytes(), b"");
        assert!(MappedFile::open(dir.path()).unwrap_err().to_string().contains("is a directory"));
        assert!(MappedFile::open(&dir.path().join("absent")).unwrap_err().is_not_found());
    }
}
