//! The sequential hash of a file whose parts come in any order.

use crate::{Error, MappedFile, Sha256};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of an input that are hashed before their pages are given back: giving back interrupts every thread.
const INPUT_PIECE_LEN: u64 = 4 << 20;

/// Bytes of an input that may wait in memory for their turn to be hashed: a layer of a model of a billion parameters. More
/// are given back and read again.
const INPUT_WAITING_LEN: u64 = 128 << 20;

/// Hashes extents in file order while they arrive in any order. An extent whose turn it is is hashed at once; one that
/// comes early is noted, and hashed when everything before it is: from its bytes where they are still in memory, else they
/// are read back. Only one thread hashes at a time, and the others do not wait for it.
pub(crate) struct ExtentHasher {
    front: Mutex<Front>,
    early: Mutex<Early>,
}

/// Extents noted and not hashed yet.
#[derive(Default)]
struct Early {
    // By their starts.
    extents: BTreeMap<u64, Noted>,
    byte_len: u64,
}

struct Noted {
    end: u64,
    // `None` where they can be read back.
    bytes: Option<Arc<Vec<u8>>>,
}

impl Early {
    fn add(&mut self, extent: Range<u64>, bytes: Option<Arc<Vec<u8>>>) {
        self.byte_len += extent.end - extent.start;
        self.extents.insert(extent.start, Noted { end: extent.end, bytes });
    }

    /// Takes away the extent that starts at `start`.
    fn remove(&mut self, start: u64) -> Option<Noted> {
        let noted = self.extents.remove(&start)?;
        self.byte_len -= noted.end - start;
        Some(noted)
    }
}

struct Front {
    hasher: sha2::Sha256,
    // Every byte before it is hashed.
    at: u64,
}

impl ExtentHasher {
    pub(crate) fn new() -> ExtentHasher {
        let front = Front { hasher: sha2::Sha256::new(), at: 0 };
        ExtentHasher { front: Mutex::new(front), early: Mutex::default() }
    }

    /// Takes an extent that can be read from now on; `read` gives the bytes of any such extent, and is asked for them in
    /// file order. Returns how many bytes wait for their turn, where this extent is one of them.
    pub(crate) fn take(
        &self,
        extent: Range<u64>,
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<Option<u64>, Error> {
        self.early().add(extent.clone(), None);
        let hashed_to = self.advance(read)?;
        Ok((hashed_to < extent.end).then(|| self.early().byte_len))
    }

    /// Takes an extent that cannot be read back yet: its bytes are kept until it is hashed, or [`ExtentHasher::written`].
    pub(crate) fn take_bytes(
        &self,
        start: u64,
        bytes: Arc<Vec<u8>>,
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.early().add(start..start + bytes.len() as u64, Some(bytes));
        self.advance(read).map(drop)
    }

    /// Hashes an extent that cannot be read back yet if its turn has come and nobody hashes; says whether it did.
    pub(crate) fn take_next(
        &self,
        start: u64,
        bytes: &[u8],
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let Some(mut front) = self.front.try_lock().ok().filter(|front| front.at == start) else { return Ok(false) };
        front.hasher.update(bytes);
        front.at += bytes.len() as u64;
        drop(front);
        self.advance(read)?;
        Ok(true)
    }

    /// Says that the extent that starts at `start` can be read back from now on.
    pub(crate) fn written(&self, start: u64) {
        if let Some(noted) = self.early().extents.get_mut(&start) {
            noted.bytes = None;
        }
    }

    /// Hashes noted extents unless somebody does; returns how far the hash is, or 0 where somebody else hashes.
    fn advance(&self, read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>) -> Result<u64, Error> {
        let mut hashed_to = 0;
        while let Ok(mut front) = self.front.try_lock() {
            self.catch_up(&mut front, &read)?;
            hashed_to = front.at;
            drop(front);
            // Whoever noted the next extent while this thread held the front left it to this thread.
            if !self.early().extents.contains_key(&hashed_to) {
                break;
            }
        }
        Ok(hashed_to)
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().expect("no thread panics holding the lock")
    }

    /// Notes an extent whose bytes can be read back already.
    pub(crate) fn note(&self, extent: Range<u64>) {
        if extent.start < extent.end {
            self.early().add(extent, None);
        }
    }

    /// Hashes the noted extents whose turn has come.
    fn catch_up(
        &self,
        front: &mut Front,
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let start = front.at;
            let Some(Noted { end, bytes }) = self.early().remove(start) else { return Ok(()) };
            match bytes {
                Some(bytes) => front.hasher.update(bytes.as_slice()),
                None => read(start..end, &mut |bytes| front.hasher.update(bytes))?,
            }
            front.at = end;
        }
    }

    /// The same after the next extent.
    pub(crate) fn continued(
        &self,
        extent: Range<u64>,
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<ExtentHasher, Error> {
        let front = self.front.lock().expect("no thread panics holding the lock");
        assert_eq!(front.at, extent.start, "extents are hashed in file order");
        let mut hasher = front.hasher.clone();
        read(extent.clone(), &mut |bytes| hasher.update(bytes))?;
        Ok(ExtentHasher { front: Mutex::new(Front { hasher, at: extent.end }), early: Mutex::default() })
    }

    /// The digest of everything hashed so far.
    pub(crate) fn digest(&self) -> Sha256 {
        let front = self.front.lock().expect("no thread panics holding the lock");
        Sha256::from_hasher(front.hasher.clone())
    }

    /// How far the file is hashed and the digest of that, once it is at least `byte_len` and nobody is hashing.
    pub(crate) fn prefix(&self, byte_len: u64) -> Option<(u64, Sha256)> {
        let front = self.front.try_lock().ok().filter(|front| front.at >= byte_len)?;
        Some((front.at, Sha256::from_hasher(front.hasher.clone())))
    }

    /// Hashes what is left of the noted extents; the digest, and how far it reaches.
    pub(crate) fn finish(
        &self,
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<(sha2::Sha256, u64), Error> {
        let mut front = self.front.lock().expect("no thread panics holding the lock");
        self.catch_up(&mut front, read)?;
        Ok((front.hasher.clone(), front.at))
    }
}

/// Hashes a mapped input while others use it, so that the file is read once.
pub struct InputHasher<'a> {
    file: &'a MappedFile,
    extents: ExtentHasher,
    // Every page before it is given back. Only who holds the front of `extents` moves it.
    released: AtomicU64,
    known: Option<Sha256>,
}

impl<'a> InputHasher<'a> {
    /// Nothing of `file` is hashed yet.
    pub fn new(file: &'a MappedFile) -> InputHasher<'a> {
        InputHasher { file, extents: ExtentHasher::new(), released: AtomicU64::new(0), known: None }
    }

    /// The digest of `file` is known: nothing is hashed, and pages are given back as they are otherwise.
    pub fn with_digest(file: &'a MappedFile, sha256: Sha256) -> InputHasher<'a> {
        InputHasher { known: Some(sha256), ..InputHasher::new(file) }
    }

    /// Says that `range` of the file will be used next.
    pub fn prepare(&self, range: Range<u64>) {
        self.file.prepare(range.start as usize..range.end as usize);
    }

    /// Says that `range` of the file was used and is in memory now: it is hashed, or noted for its turn, and its pages are
    /// given back when it is hashed, or when too many wait. No byte may be in two ranges.
    pub fn used(&self, range: Range<u64>) {
        let waiting =
            self.extents.take(range.clone(), |r, sink| self.read(r, sink)).expect("reading a map cannot fail");
        if waiting.is_some_and(|byte_len| byte_len > INPUT_WAITING_LEN) {
            self.file.release(range.start as usize..range.end as usize);
        }
    }

    fn read(&self, range: Range<u64>, sink: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + INPUT_PIECE_LEN);
            if self.known.is_none() {
                sink(&self.file.bytes()[start as usize..end as usize]);
            }
            let released = self.released.load(Ordering::Relaxed);
            if end - released >= INPUT_PIECE_LEN || end == self.file.byte_len() {
                self.file.release(released as usize..end as usize);
                self.released.store(end, Ordering::Relaxed);
            }
            start = end;
        }
        Ok(())
    }

    /// The digest of the whole file; what nobody used is read now.
    pub fn finish(self) -> Sha256 {
        if let Some(known) = self.known {
            return known;
        }
        let read = |r: Range<u64>, sink: &mut dyn FnMut(&[u8])| self.read(r, sink);
        let (mut hasher, at) = self.extents.finish(read).expect("reading a map cannot fail");
        // Parts that were noted behind a gap are hashed again from the map, with the gap.
        self.read(at..self.file.byte_len(), &mut |bytes| hasher.update(bytes)).expect("reading a map cannot fail");
        Sha256::from_hasher(hasher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_of_use_gives_the_digest_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..50_000u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        for ranges in
            [vec![], vec![0..10_000, 10_000..50_000], vec![30_000..40_000, 8..30_000], vec![40_000..50_000, 0..8]]
        {
            let hasher = InputHasher::new(&map);
            ranges.into_iter().for_each(|r| hasher.used(r));
            assert_eq!(hasher.finish(), Sha256::of(&content));
        }
        let hasher = InputHasher::with_digest(&map, Sha256::of(b"known"));
        hasher.used(8..30_000);
        assert_eq!(hasher.finish(), Sha256::of(b"known"));
    }
}
