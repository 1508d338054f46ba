//! The digest of an input on the way.

use crate::hash::{Bytes, Content, ExtentHasher, Run};
use crate::{Error, MappedFile, Sha256};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of an input that are hashed before their pages are given back: giving back interrupts every thread.
const INPUT_PIECE_LEN: u64 = 4 << 20;

/// Bytes of an input that may wait in memory for their turn to be hashed: a layer of a model of a billion parameters. More
/// are given back and read again.
const INPUT_WAITING_LEN: u64 = 128 << 20;

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

    /// Says that `range` of the file will be used next: it may be hashed beside an output from now on
    /// ([`write_together`](crate::write_together)).
    pub fn prepare(&self, range: Range<u64>) {
        self.file.prepare(range.start as usize..range.end as usize);
        self.extents.offer(range);
    }

    /// Says that `range` of the file, a prepared one or not, was used and is in memory now: what is not hashed of it yet is hashed,
    /// or noted for its turn, and its pages are given back when it is hashed, or when too many wait. No byte may be in two ranges.
    pub fn used(&self, range: Range<u64>) {
        let waiting = self.extents.take_noted(range.clone(), self).expect("reading a map cannot fail");
        if waiting.is_some_and(|byte_len| byte_len > INPUT_WAITING_LEN) {
            self.file.release(range.start as usize..range.end as usize);
        }
    }

    /// The way through what is there to be hashed, unless somebody hashes or the digest is known.
    pub(crate) fn run(&self) -> Option<Run<'_>> {
        if self.known.is_some() { None } else { self.extents.run(self) }
    }

    /// The digest of the whole file; what nobody used is read now.
    pub fn finish(self) -> Sha256 {
        if let Some(known) = self.known {
            return known;
        }
        self.extents.finish_whole(self.file.byte_len(), &self).expect("reading a map cannot fail")
    }
}

impl Content for InputHasher<'_> {
    fn read(&self, range: Range<u64>, _room: Vec<u8>) -> Result<Bytes<'_>, Error> {
        let end = range.end.min(range.start + INPUT_PIECE_LEN);
        Ok(Bytes::Borrowed(&self.file.bytes()[range.start as usize..end as usize]))
    }

    fn is_hashed(&self) -> bool {
        self.known.is_none()
    }

    fn hashed(&self, end: u64) {
        let released = self.released.load(Ordering::Relaxed);
        if end - released >= INPUT_PIECE_LEN || end == self.file.byte_len() {
            self.file.release(released as usize..end as usize);
            self.released.store(end, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AtomicFile, Extent, write_together};
    use std::sync::atomic::AtomicUsize;

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

    fn write(file: &AtomicFile, offset: u64, bytes: &[u8], input: &InputHasher<'_>) {
        write_together(&[Extent { file, offset, bytes }], Some(input)).unwrap();
    }

    #[test]
    fn what_is_prepared_is_hashed_beside_an_output_as_far_as_that_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..1_000u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let hashed = |hasher: &InputHasher<'_>| hasher.extents.prefix(0).unwrap();
        let output = AtomicFile::create(&dir.path().join("out"), 700).unwrap();
        let hasher = InputHasher::new(&map);
        hasher.prepare(0..400);
        hasher.prepare(400..1_000);
        assert_eq!(hashed(&hasher).0, 0);
        write(&output, 300, &content[300..600], &hasher);
        assert_eq!(hashed(&hasher).0, 0, "it was not the output's turn");
        write(&output, 0, &content[..300], &hasher);
        assert_eq!(hashed(&hasher), (600, Sha256::of(&content[..600])));
        hasher.used(0..400);
        assert_eq!(hashed(&hasher).0, 600, "the other extent is still in use");
        hasher.used(400..1_000);
        assert_eq!(hashed(&hasher), (1_000, Sha256::of(&content)));
        write(&output, 600, &content[600..700], &hasher);
        assert_eq!(output.seal().unwrap(), Sha256::of(&content[..700]));
        assert_eq!(hasher.finish(), Sha256::of(&content));
    }

    #[test]
    fn threads_that_hash_inputs_beside_outputs_get_the_digests_of_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..1_200_000u32).map(|i| (i.wrapping_mul(i) % 253) as u8).collect();
        let half: Vec<u8> = content.iter().step_by(2).copied().collect();
        let path = dir.path().join("f");
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        // Neighbours change places.
        let mut slabs: Vec<usize> = (1..400).collect();
        slabs.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        for known in [None, Some(Sha256::of(b"known"))] {
            let input = known.map_or_else(|| InputHasher::new(&map), |known| InputHasher::with_digest(&map, known));
            let outputs = [("same", &content), ("half", &half)]
                .map(|(name, bytes)| (AtomicFile::create(&dir.path().join(name), bytes.len() as u64).unwrap(), bytes));
            outputs.iter().for_each(|(file, bytes)| file.write_at(0, &bytes[..bytes.len() / 400]).unwrap());
            input.used(0..content.len() as u64 / 400);
            let next = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        while let Some(slab) = slabs.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let range = |len: usize| slab * len / 400..(slab + 1) * len / 400;
                            let of_input = range(content.len());
                            let of_input = of_input.start as u64..of_input.end as u64;
                            input.prepare(of_input.clone());
                            let extents = outputs.each_ref().map(|(file, bytes)| {
                                let range = range(bytes.len());
                                Extent { file, offset: range.start as u64, bytes: &bytes[range] }
                            });
                            write_together(&extents, Some(&input)).unwrap();
                            input.used(of_input);
                        }
                    });
                }
            });
            for (file, bytes) in outputs {
                assert_eq!(file.seal().unwrap(), Sha256::of(bytes));
            }
            assert_eq!(input.finish(), known.unwrap_or(Sha256::of(&content)));
        }
    }
}
