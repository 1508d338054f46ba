//! What tells that a file is the one that was seen before, without reading it.

use crate::{Error, Operation};
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Device, inode, length and the times of the last change of content and of anything else. The last of these is the
/// system's own: no program sets it, so an edit shows even where somebody puts the other time back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    byte_len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    /// The stamp of the file at `path` now.
    pub fn of(path: &Path) -> Result<FileStamp, Error> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(Operation::Open, path, e))?;
        Ok(FileStamp::of_metadata(&metadata))
    }

    pub(crate) fn of_metadata(metadata: &Metadata) -> FileStamp {
        FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            byte_len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The length of the file.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// Whether the file of `later` was written more than two seconds after this one was changed last. Times have steps: a
    /// change within the same one as a look at the file would not show.
    pub fn is_long_before(&self, later: &FileStamp) -> bool {
        self.changed.0.saturating_add(2) < later.modified.0
    }
}

/// The fields, as text to be compared.
impl fmt::Display for FileStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileStamp { device, inode, byte_len, modified, changed } = self;
        write!(f, "{device}:{inode}:{byte_len}:{}.{:09}:{}.{:09}", modified.0, modified.1, changed.0, changed.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn an_edit_shows_even_where_its_time_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"weights").unwrap();
        let before = FileStamp::of(&path).unwrap();
        assert_eq!(FileStamp::of(&path).unwrap(), before);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        // The clock of files has steps of some milliseconds: until it moves on, an edit does not show.
        while FileStamp::of(&path).unwrap() == before {
            std::fs::write(&path, b"Weights").unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        }
        let after = FileStamp::of(&path).unwrap();
        assert_eq!((after.modified, after.byte_len), (before.modified, before.byte_len));
        assert_ne!(after.to_string(), before.to_string());
    }
}
