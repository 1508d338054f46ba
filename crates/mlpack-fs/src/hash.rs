//! The sequential hash of a file whose parts come in any order.

use crate::{Error, MappedFile, Sha256};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

/// Bytes of an input that are hashed before their pages are given back.
const INPUT_PIECE_LEN: u64 = 8 << 20;

/// Hashes extents in file order while they arrive in any order. An extent whose turn it is is hashed at once; one that
/// comes early is noted and read back when everything before it is hashed. Only one thread hashes at a time, and the
/// others do not wait for it.
pub(crate) struct ExtentHasher {
    front: Mutex<Front>,
    // Extents noted and not hashed yet: start -> end.
    early: Mutex<BTreeMap<u64, u64>>,
}

struct Front {
    hasher: sha2::Sha256,
    // Every byte before it is hashed.
    at: u64,
}

impl ExtentHasher {
    pub(crate) fn new() -> ExtentHasher {
        let front = Front { hasher: sha2::Sha256::new(), at: 0 };
        ExtentHasher { front: Mutex::new(front), early: Mutex::new(BTreeMap::new()) }
    }

    /// Takes the extent that starts at `start`; `bytes` are its content. `read` gives the bytes of an earlier extent.
    pub(crate) fn take(
        &self,
        start: u64,
        bytes: &[u8],
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = start + bytes.len() as u64;
        if let Ok(mut front) = self.front.try_lock()
            && front.at == start
        {
            front.hasher.update(bytes);
            front.at = end;
            return self.catch_up(&mut front, read);
        }
        self.early.lock().expect("no thread panics holding the lock").insert(start, end);
        Ok(())
    }

    /// Hashes the noted extents whose turn has come.
    fn catch_up(
        &self,
        front: &mut Front,
        read: impl Fn(Range<u64>, &mut dyn FnMut(&[u8])) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let next = self.early.lock().expect("no thread panics holding the lock").remove(&front.at);
            let Some(end) = next else { return Ok(()) };
            let start = front.at;
            read(start..end, &mut |bytes| front.hasher.update(bytes))?;
            front.at = end;
        }
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
}

impl<'a> InputHasher<'a> {
    /// Nothing of `file` is hashed yet.
    pub fn new(file: &'a MappedFile) -> InputHasher<'a> {
        InputHasher { file, extents: ExtentHasher::new() }
    }

    /// Says that `range` of the file was used and is in memory now: it is hashed, or noted for its turn, and its pages are
    /// given back. No byte may be in two ranges.
    pub fn used(&self, range: Range<u64>) {
        let bytes = &self.file.bytes()[range.start as usize..range.end as usize];
        self.extents.take(range.start, bytes, |r, sink| self.read(r, sink)).expect("reading a map cannot fail");
        self.file.release(range.start as usize..range.end as usize);
    }

    fn read(&self, range: Range<u64>, sink: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let mut start = range.start;
        while start < range.end {
            let piece = start as usize..range.end.min(start + INPUT_PIECE_LEN) as usize;
            start = piece.end as u64;
            sink(&self.file.bytes()[piece.clone()]);
            self.file.release(piece);
        }
        Ok(())
    }

    /// The digest of the whole file; what nobody used is read now.
    pub fn finish(self) -> Sha256 {
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
    }
}
