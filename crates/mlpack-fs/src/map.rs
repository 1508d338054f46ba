//! Read-only maps of input files.

use crate::{Error, FileStamp, Operation};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// What the system is told of pages that are about to be read. Linux maps them; others only fetch them.
#[cfg(target_os = "linux")]
const PREPARE: memmap2::Advice = memmap2::Advice::PopulateRead;
#[cfg(not(target_os = "linux"))]
const PREPARE: memmap2::Advice = memmap2::Advice::WillNeed;

/// A file mapped read-only. Pages that are done with can be given back with [`MappedFile::release`], so that the
/// resident size stays small however large the file is.
pub struct MappedFile {
    path: PathBuf,
    file: File,
    stamp: FileStamp,
    // An empty file cannot be mapped.
    map: Option<memmap2::Mmap>,
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
        Ok(MappedFile { path: path.to_owned(), file, stamp: FileStamp::of_metadata(&metadata), map })
    }

    /// What the file was when it was opened.
    pub fn stamp(&self) -> &FileStamp {
        &self.stamp
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

    /// Reads the bytes from `start` on into a buffer: for bytes that are needed once, cheaper than mapping their pages.
    ///
    /// # Errors
    /// When the system cannot read them, or the file has become shorter.
    pub fn read_at(&self, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(bytes, start).map_err(|e| {
            let shorter = || io::Error::new(e.kind(), "the file has become shorter since it was opened");
            let e = if e.kind() == io::ErrorKind::UnexpectedEof { shorter() } else { e };
            Error::io(Operation::Read, &self.path, e)
        })
    }

    /// Prepares for reading `range`: Linux maps its pages at once, which costs less than a fault for each. A range outside the
    /// file does nothing.
    pub fn prepare(&self, range: Range<usize>) {
        let Some(map) = &self.map else { return };
        if range.start < range.end && range.end <= map.len() {
            // Advice: where the system does not take it (Linux before 5.14), the pages come one by one.
            drop(map.advise_range(PREPARE, range.start, range.end - range.start));
        }
    }

    /// Tells the system that the pages that hold `range` are not needed for now. Their content stays readable: it comes
    /// from the page cache or the disk again. A range outside the file does nothing.
    pub fn release(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let Some(map) = &self.map else { return };
        let start = range.start / PAGE * PAGE;
        let end = range.end.min(map.len()).next_multiple_of(PAGE).min(map.len());
        if start < end {
            // SAFETY: MADV_DONTNEED on a read-only, file-backed, never written map only drops page-table entries (Linux) or
            // lets pages go sooner (macOS); the next access finds the same file content again, so no reference into the map
            // changes value.
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
        map.prepare(5_000..70_000);
        map.prepare(90_000..usize::MAX);
        map.release(1..90_000);
        map.release(0..usize::MAX);
        map.release(200_000..300_000);
        assert_eq!(map.bytes(), content);
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
