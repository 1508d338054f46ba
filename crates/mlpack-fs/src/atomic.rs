//! Outputs that are whole or absent.
//!
//! An output is written beside its final name as `.NAME.mlpack-partial`, flushed, and renamed. A crash leaves at most
//! that file, which the next run of the same output takes over; an error removes it.

use crate::hash::{Content, ExtentHasher, Run, hash_together};
use crate::queue::{Turn, WriteQueue};
use crate::{Error, InputExtent, Operation, Sha256, SharedBytes};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// How names of outputs end that are in work.
const PARTIAL: &str = ".mlpack-partial";

/// A file of known length that any number of threads write at any offsets, hashed on the way.
///
/// The hash of a file is sequential, the writes need not be: an extent that arrives when everything before it is
/// hashed is hashed from the caller's buffer; one that comes early is noted and read back (from the page cache) when
/// its turn has come. The system lets one thread at a time write to a file: whoever finds it taken leaves a copy of the
/// bytes to the thread that writes, and goes on.
///
/// **Invariant**: [`AtomicFile::seal`] succeeds only when every byte of the file was written.
pub struct AtomicFile {
    partial: Partial,
    file: File,
    byte_len: u64,
    /// Bytes at the start that an earlier run wrote, and that stay.
    kept: u64,
    hasher: ExtentHasher,
    queue: WriteQueue,
}

impl AtomicFile {
    /// Creates the file beside `path` and reserves its space, so that a full disk is found before any work is done.
    /// Missing parent directories are created.
    pub fn create(path: &Path, byte_len: u64) -> Result<AtomicFile, Error> {
        let partial = Partial::new(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial.temporary)
            .map_err(|e| Error::io(Operation::Create, path, e))?;
        let mut partial = partial;
        lock(&file, path)?;
        partial.owned = true;
        // What a killed run left behind is dropped only now that the lock says nobody writes it.
        file.set_len(0).map_err(|e| Error::io(Operation::Create, path, e))?;
        reserve(&file, path, byte_len)?;
        Ok(AtomicFile { partial, file, byte_len, kept: 0, hasher: ExtentHasher::new(), queue: WriteQueue::default() })
    }

    /// Takes over what an earlier run left behind of the same output: the bytes of `written` stay as they are and count as
    /// written. They are hashed like all others, so that what is not right shows in the digest. Where nothing is left
    /// this is [`AtomicFile::create`]; the ranges that were taken over are returned.
    ///
    /// # Panics
    /// When a range reaches past `byte_len` or two of them overlap: they come from our own journal, checked by its reader.
    pub fn resume(path: &Path, byte_len: u64, written: &[Range<u64>]) -> Result<(AtomicFile, Vec<Range<u64>>), Error> {
        let partial = Partial::new(path)?;
        let left = fs::symlink_metadata(&partial.temporary).is_ok_and(|m| m.is_file() && m.len() == byte_len);
        if !left || written.is_empty() {
            return Ok((AtomicFile::create(path, byte_len)?, Vec::new()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&partial.temporary)
            .map_err(|e| Error::io(Operation::Create, path, e))?;
        let mut partial = partial;
        lock(&file, path)?;
        partial.owned = true;
        let (hasher, queue) = (ExtentHasher::new(), WriteQueue::default());
        let file = AtomicFile { partial, file, byte_len, kept: 0, hasher, queue };
        for range in written {
            assert!(range.end <= byte_len, "extent {range:?} lies outside a file of {byte_len} bytes");
            file.hasher.note(range.clone());
        }
        Ok((file, written.to_vec()))
    }

    /// Takes over what an earlier run left behind of the same output, as far as it is right: `prefixes` are digests of its
    /// first bytes that the run noted, and the longest that still holds stays ([`AtomicFile::kept`]). What is written
    /// there again is not written. Where nothing is left, or nothing of it holds, this is [`AtomicFile::create`].
    pub fn take_up(path: &Path, byte_len: u64, prefixes: &[(u64, Sha256)]) -> Result<AtomicFile, Error> {
        let partial = Partial::new(path)?;
        // Within a directory that was not sealed, a file may have its final name already.
        if !prefixes.is_empty() && !partial.temporary.exists() && path.is_file() {
            fs::rename(path, &partial.temporary).map_err(|e| Error::io(Operation::Rename, path, e))?;
        }
        let whole = 0..byte_len;
        let (mut file, taken) = AtomicFile::resume(path, byte_len, std::slice::from_ref(&whole))?;
        if taken.is_empty() {
            return Ok(file);
        }
        file.hasher = ExtentHasher::new();
        for (end, sha256) in prefixes {
            if *end < file.kept || *end > byte_len {
                break;
            }
            let hasher = file.hasher.continued(file.kept..*end, &file)?;
            if hasher.digest() != *sha256 {
                break;
            }
            (file.hasher, file.kept) = (hasher, *end);
        }
        if file.kept == 0 {
            // Begun anew: nothing of it may look as if it had been written.
            file.file.set_len(0).map_err(|e| Error::io(Operation::Create, path, e))?;
            reserve(&file.file, path, byte_len)?;
        }
        Ok(file)
    }

    /// Bytes at the start that [`AtomicFile::take_up`] found right.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// How far the file is hashed, and the digest of that, once it is at least `byte_len` bytes. While another thread
    /// hashes it is not known. The last of these bytes may still wait to be written.
    pub fn prefix(&self, byte_len: u64) -> Option<(u64, Sha256)> {
        self.hasher.prefix(byte_len)
    }

    /// Leaves the file under its temporary name, for a later [`AtomicFile::resume`].
    pub fn keep(mut self) {
        self.partial.owned = false;
    }

    /// The final name.
    pub fn path(&self) -> &Path {
        &self.partial.path
    }

    /// The length given to [`AtomicFile::create`].
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }

    /// Writes `bytes` at `offset`. No byte may be written twice.
    ///
    /// # Panics
    /// When the extent reaches past the length given to [`AtomicFile::create`]: offsets come from our own plan.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        write_together(&[Extent { file: self, offset, data: Data::Borrowed(bytes) }], None)
    }

    /// Writes bytes, or leaves them to the thread that writes, and sees that they are noted for their turn to be hashed, if they are
    /// not hashed yet.
    fn put_or_leave(&self, offset: u64, data: Data<'_>, hashed: bool) -> Result<(), Error> {
        match self.queue.enter(data.bytes().len()) {
            Turn::Mine(turn) => {
                self.put(offset, data.bytes())?;
                self.empty_queue()?;
                drop(turn);
                match data {
                    Data::Shared(_) => self.hasher.written(offset),
                    Data::Borrowed(bytes) if !hashed => self.hasher.note(offset..offset + bytes.len() as u64),
                    Data::Borrowed(_) => {}
                }
            }
            Turn::Another => match data {
                Data::Shared(bytes) => self.queue.push(offset, bytes.clone()),
                Data::Borrowed(bytes) => {
                    let copy = self.queue.copy(bytes);
                    if !hashed {
                        self.hasher.note_bytes(offset, copy.clone());
                    }
                    self.queue.push(offset, copy);
                }
            },
        }
        // What came into the queue after its last look is left to whoever left it.
        while let Some(turn) = self.queue.left_over() {
            self.empty_queue()?;
            drop(turn);
        }
        Ok(())
    }

    /// Writes what other threads left. Only who has the turn does.
    fn empty_queue(&self) -> Result<(), Error> {
        while let Some((offset, bytes)) = self.queue.pop() {
            self.put(offset, &bytes)?;
            self.hasher.written(offset);
            self.queue.give_back(bytes);
        }
        Ok(())
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.write_error(e))
    }

    /// The digest of the whole file while it still has no final name, for an output whose digest is known before.
    ///
    /// # Panics
    /// When a byte was never written: offsets come from our own plan.
    pub fn digest(&self) -> Result<Sha256, Error> {
        let (digest, hashed) = self.hasher.finish(self)?;
        assert_eq!(hashed, self.byte_len, "`{}` has a hole", self.path().display());
        Ok(digest)
    }

    /// Flushes the file to the disk, still without its final name, so that several outputs can be sealed together.
    ///
    /// # Panics
    /// When a byte was never written: offsets come from our own plan.
    pub fn flush(&self) -> Result<Sha256, Error> {
        let digest = self.digest()?;
        sync(&self.file).map_err(|e| self.write_error(e))?;
        Ok(digest)
    }

    /// Flushes the file to the disk, gives it its final name, and returns its digest.
    ///
    /// # Panics
    /// When a byte was never written: offsets come from our own plan.
    pub fn seal(self) -> Result<Sha256, Error> {
        let digest = self.flush()?;
        let AtomicFile { partial, file, .. } = self;
        partial.rename()?;
        drop(file);
        Ok(digest)
    }

    fn write_error(&self, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::StorageFull {
            let target = &self.partial.path;
            let free = target.parent().and_then(crate::free_bytes);
            return Error::NoSpace { path: target.clone(), needed: self.byte_len, free };
        }
        Error::io(Operation::Write, &self.partial.path, source)
    }
}

/// Bytes on their way.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// The caller's: what cannot be written or hashed at once is copied or read back.
    Borrowed(&'a [u8]),
    /// Such as may be kept until they are written and hashed.
    Shared(&'a SharedBytes),
}

impl<'a> Data<'a> {
    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Data::Borrowed(bytes) => bytes,
            Data::Shared(bytes) => bytes,
        }
    }

    pub(crate) fn shared(self) -> Option<&'a SharedBytes> {
        match self {
            Data::Borrowed(_) => None,
            Data::Shared(bytes) => Some(bytes),
        }
    }
}

/// Bytes for a place in a file.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// Where they go.
    pub file: &'a AtomicFile,
    /// Where they begin in it.
    pub offset: u64,
    /// The bytes.
    pub data: Data<'a>,
}

impl<'a> Extent<'a> {
    /// What is to be written of it: an earlier run may have written the start of the file.
    fn missing(mut self) -> Option<Extent<'a>> {
        let (bytes, byte_len) = (self.data.bytes(), self.file.byte_len);
        let end = self.offset.checked_add(bytes.len() as u64).expect("an extent ends below 2^64");
        assert!(end <= byte_len, "extent {}..{end} lies outside a file of {byte_len} bytes", self.offset);
        if end <= self.file.kept || bytes.is_empty() {
            return None;
        }
        if let Some(kept) = self.file.kept.checked_sub(self.offset).filter(|kept| *kept > 0) {
            (self.offset, self.data) = (self.file.kept, Data::Borrowed(&bytes[kept as usize..]));
        }
        Some(self)
    }

    /// The way through its bytes, if it is their turn to be hashed and nobody hashes.
    fn turn(&'a self) -> Option<Run<'a>> {
        self.file.hasher.turn(self.offset, self.data.bytes(), self.file)
    }

    /// The way through what is noted of the file, if it is its turn and nobody hashes.
    fn left_over(&'a self) -> Option<Run<'a>> {
        self.file.hasher.left_over((self.offset, self.data.bytes()), self.file)
    }
}

/// Writes to several files, which are hashed beside each other: two at a time take hardly longer than one
/// ([`AtomicFile::write_at`]). `input` is what they were made of: it, and what is offered of its file, is hashed beside them as far as
/// that goes; what is left of it is hashed by [`InputHasher::used`](crate::InputHasher::used).
///
/// # Panics
/// As [`AtomicFile::write_at`].
pub fn write_together(extents: &[Extent<'_>], input: Option<InputExtent<'_>>) -> Result<(), Error> {
    let extents: Vec<Extent<'_>> = extents.iter().filter_map(|extent| extent.missing()).collect();
    let turns: Vec<Option<Run<'_>>> = extents.iter().map(Extent::turn).collect();
    let hashed: Vec<bool> = turns.iter().map(Option::is_some).collect();
    // Before they are written, and without the turn at writing: meanwhile others write.
    hash_together(turns.into_iter().flatten().collect(), input)?;
    // All are noted before the first is written, so that whoever hashes finds them beside each other.
    for (Extent { file, offset, data }, _) in extents.iter().zip(&hashed).filter(|(_, hashed)| !**hashed) {
        data.shared().into_iter().for_each(|bytes| file.hasher.note_bytes(*offset, bytes.clone()));
    }
    for (Extent { file, offset, data }, hashed) in extents.iter().zip(hashed) {
        file.put_or_leave(*offset, *data, hashed)?;
    }
    // What others noted while this thread hashed is left to it.
    loop {
        let left_over: Vec<Run<'_>> = extents.iter().filter_map(Extent::left_over).collect();
        if left_over.is_empty() {
            return Ok(());
        }
        hash_together(left_over, input)?;
    }
}

impl Content for AtomicFile {
    fn read_back(&self, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(bytes, start).map_err(|e| Error::io(Operation::Read, &self.partial.temporary, e))
    }
}

impl std::fmt::Debug for AtomicFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AtomicFile").field("path", &self.path()).field("byte_len", &self.byte_len).finish()
    }
}

/// Writes a small file whole, under its final name only when it is on disk, and returns its digest.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<Sha256, Error> {
    let file = AtomicFile::create(path, bytes.len() as u64)?;
    file.write_at(0, bytes)?;
    file.seal()
}

/// A directory that appears under its final name when it is complete.
pub struct AtomicDir {
    partial: Partial,
    // Held for its lock.
    _handle: File,
}

impl AtomicDir {
    /// Creates an empty directory beside `path`, which must not exist or be an empty directory.
    pub fn create(path: &Path) -> Result<AtomicDir, Error> {
        vacant(path)?;
        AtomicDir::replace(path)
    }

    /// The same, but what an earlier run left behind of the directory stays in it.
    pub fn take_up(path: &Path) -> Result<AtomicDir, Error> {
        vacant(path)?;
        AtomicDir::resume(path)
    }

    /// The same, but what is under `path` stays until it is replaced by the sealed directory.
    pub fn replace(path: &Path) -> Result<AtomicDir, Error> {
        let dir = AtomicDir::resume(path)?;
        dir.clear()?;
        Ok(dir)
    }

    /// Removes everything that is in it.
    pub fn clear(&self) -> Result<(), Error> {
        let temporary = self.contents();
        for entry in fs::read_dir(temporary).map_err(|e| Error::io(Operation::List, temporary, e))? {
            let entry = entry.map_err(|e| Error::io(Operation::List, temporary, e))?;
            remove(&entry.path()).map_err(|e| Error::io(Operation::Remove, entry.path(), e))?;
        }
        Ok(())
    }

    /// The same as [`AtomicDir::replace`], but what an earlier run left behind of the directory stays in it.
    pub fn resume(path: &Path) -> Result<AtomicDir, Error> {
        let mut partial = Partial::new(path)?;
        let temporary = partial.temporary.clone();
        fs::create_dir_all(&temporary).map_err(|e| Error::io(Operation::CreateDir, path, e))?;
        let handle = File::open(&temporary).map_err(|e| Error::io(Operation::CreateDir, path, e))?;
        lock(&handle, path)?;
        partial.owned = true;
        Ok(AtomicDir { partial, _handle: handle })
    }

    /// Leaves the directory under its temporary name, for a later [`AtomicDir::resume`].
    pub fn keep(mut self) {
        self.partial.owned = false;
    }

    /// Where the files go until the directory is sealed.
    pub fn contents(&self) -> &Path {
        &self.partial.temporary
    }

    /// The final name.
    pub fn path(&self) -> &Path {
        &self.partial.path
    }

    /// Gives the directory its final name. The files in it must have been flushed, as [`AtomicFile::seal`] does. Files in
    /// work that an interrupted run of something else left in it go, and the journal.
    pub fn seal(self) -> Result<(), Error> {
        for entry in fs::read_dir(self.contents()).map_err(|e| Error::io(Operation::List, self.contents(), e))? {
            let entry = entry.map_err(|e| Error::io(Operation::List, self.contents(), e))?;
            let name = entry.file_name();
            let bytes = name.as_encoded_bytes();
            let in_work = bytes.starts_with(b".") && bytes.ends_with(PARTIAL.as_bytes());
            if in_work || name == crate::journal::NAME {
                remove(&entry.path()).map_err(|e| Error::io(Operation::Remove, entry.path(), e))?;
            }
        }
        sync_dir(&self.partial.temporary)?;
        let path = self.partial.path.clone();
        let is_empty = fs::read_dir(&path).map_or(true, |mut entries| entries.next().is_none());
        if is_empty {
            return self.partial.rename();
        }
        // A directory that is not empty cannot be renamed over; it steps aside and goes when the new one is in place.
        let mut aside = self.partial.temporary.clone().into_os_string();
        aside.push("-replaced");
        let aside = PathBuf::from(aside);
        if aside.exists() {
            remove(&aside).map_err(|e| Error::io(Operation::Remove, &aside, e))?;
        }
        fs::rename(&path, &aside).map_err(|e| Error::io(Operation::Rename, &aside, e))?;
        self.partial.rename()?;
        remove(&aside).map_err(|e| Error::io(Operation::Remove, &aside, e))
    }
}

impl std::fmt::Debug for AtomicDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AtomicDir").field("path", &self.partial.path).finish()
    }
}

/// The temporary sibling of an output; removed when dropped before [`Partial::rename`].
struct Partial {
    // The final name.
    path: PathBuf,
    temporary: PathBuf,
    // Set once the lock is held: before that the path may be another process's.
    owned: bool,
}

impl Partial {
    fn new(target: &Path) -> Result<Partial, Error> {
        let name = target.file_name().ok_or_else(|| {
            Error::io(
                Operation::Create,
                target,
                io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"),
            )
        })?;
        let parent = parent_of(target);
        fs::create_dir_all(parent).map_err(|e| Error::io(Operation::CreateDir, parent, e))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(PARTIAL);
        Ok(Partial { path: target.to_owned(), temporary: parent.join(partial), owned: false })
    }

    fn rename(mut self) -> Result<(), Error> {
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(Operation::Rename, &self.path, e))?;
        self.owned = false;
        sync_dir(parent_of(&self.path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.owned {
            // Nothing can be told to anyone here; a leftover is taken over by the next run.
            drop(remove(&self.temporary));
        }
    }
}

/// Refuses a directory that holds something.
fn vacant(path: &Path) -> Result<(), Error> {
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::NotEmpty { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(Operation::CreateDir, path, e)),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn lock(file: &File, target: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: target.to_owned() }),
        // A file system without locks: the rename still makes the output whole or absent.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::Error(e)) => Err(Error::io(Operation::Lock, target, e)),
    }
}

fn reserve(file: &File, path: &Path, byte_len: u64) -> Result<(), Error> {
    if byte_len == 0 {
        return Ok(());
    }
    if allocates_to_reserve(file) || reserves_behind_the_end(file) {
        let free = crate::free_bytes(parent_of(path));
        if free.is_some_and(|free| free < byte_len) {
            return Err(Error::NoSpace { path: path.to_owned(), needed: byte_len, free });
        }
        return file.set_len(byte_len).map_err(|e| Error::io(Operation::Reserve, path, e));
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, byte_len) {
        Ok(()) => Ok(()),
        Err(Errno::NOSPC | Errno::FBIG | Errno::DQUOT) => {
            Err(Error::NoSpace { path: path.to_owned(), needed: byte_len, free: crate::free_bytes(parent_of(path)) })
        }
        // Not every file system can reserve: then only the length is set. (On Linux the first two are the same number.)
        Err(e) if [Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOSYS].contains(&e) => {
            file.set_len(byte_len).map_err(|e| Error::io(Operation::Reserve, path, e))
        }
        Err(e) => Err(Error::io(Operation::Reserve, path, e.into())),
    }
}

/// Whether reserving takes as long as writing: a memory file system allocates every page. There it is only asked whether
/// the space is free.
#[cfg(target_os = "linux")]
fn allocates_to_reserve(file: &File) -> bool {
    // Linux, include/uapi/linux/magic.h.
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn allocates_to_reserve(_: &File) -> bool {
    false
}

/// Whether the system counts what is reserved from the end of the file on: then a file that an interrupted run left would be
/// given room for twice its length. Apple's does (fcntl, `F_PREALLOCATE` with `F_PEOFPOSMODE`).
#[cfg(target_vendor = "apple")]
fn reserves_behind_the_end(file: &File) -> bool {
    file.metadata().map_or(true, |metadata| metadata.len() > 0)
}

#[cfg(not(target_vendor = "apple"))]
fn reserves_behind_the_end(_: &File) -> bool {
    false
}

/// Waits until what was written is on the disk.
fn sync(file: &File) -> io::Result<()> {
    let synced = file.sync_all();
    // There that asks the disk to empty its cache, which file systems of other makers (FAT, SMB) do not know.
    #[cfg(target_vendor = "apple")]
    let synced = synced.or_else(|_| Ok(rustix::fs::fsync(file)?));
    synced
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| sync(&d)).map_err(|e| Error::io(Operation::Sync, dir, e))
}

#[cfg(test)]
mod tests;
