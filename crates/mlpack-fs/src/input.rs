//! The digest of an input on the way.

use crate::hash::{Content, ExtentHasher, Run, hash_together};
use crate::{Error, MappedFile, Sha256, SharedBytes};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Hashes an input while others use it, from the bytes that they have in memory.
pub struct InputHasher<'a> {
    file: &'a MappedFile,
    extents: ExtentHasher,
    known: Option<Sha256>,
}

/// Bytes of an input that the caller has in memory, to be hashed beside the outputs that are made of them
/// ([`write_together`](crate::write_together)).
#[derive(Clone, Copy)]
pub struct InputExtent<'a> {
    /// The input, to which the extent was offered ([`InputHasher::offer`]).
    pub input: &'a InputHasher<'a>,
    /// Where the bytes begin in it.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> InputHasher<'a> {
    /// Nothing of `file` is hashed yet.
    pub fn new(file: &'a MappedFile) -> InputHasher<'a> {
        InputHasher { file, extents: ExtentHasher::new(), known: None }
    }

    /// The digest of `file` is known: nothing is hashed.
    pub fn with_digest(file: &'a MappedFile, sha256: Sha256) -> InputHasher<'a> {
        InputHasher { known: Some(sha256), ..InputHasher::new(file) }
    }

    /// The file.
    pub fn file(&self) -> &'a MappedFile {
        self.file
    }

    /// Says that `range` of the file will be used next: it may be hashed beside an output from now on, from `bytes`, where they are
    /// given, else from the file.
    pub fn offer(&self, range: Range<u64>, bytes: Option<&SharedBytes>) {
        if self.known.is_none() {
            self.extents.offer(range, bytes);
        }
    }

    /// Says that `range` of the file, an offered one or not, was used: what is not hashed of it yet is hashed, or noted for its
    /// turn and read again then. No byte may be in two ranges. `bytes` are those of the range, where the caller has them.
    ///
    /// # Errors
    /// When the file cannot be read again.
    pub fn used(&self, range: Range<u64>, bytes: Option<&[u8]>) -> Result<(), Error> {
        if self.known.is_some() {
            return Ok(());
        }
        let start = range.start;
        self.extents.take_noted(range, bytes.map(|bytes| (start, bytes)), self)
    }

    /// The digest of the whole file; what nobody used is read now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn finish(self) -> Result<Sha256, Error> {
        match self.known {
            Some(known) => Ok(known),
            None => self.extents.finish_whole(self.file.byte_len(), &self),
        }
    }
}

/// The digests of files, two of which are hashed at a time by each thread: those of about the same length, so that hardly
/// anything is hashed alone.
///
/// # Errors
/// Of the first file that cannot be read.
pub fn hash_files<P: AsRef<Path> + Sync>(paths: &[P]) -> Result<Vec<Sha256>, Error> {
    let len = |i: &usize| std::fs::metadata(paths[*i].as_ref()).map_or(0, |metadata| metadata.len());
    let mut order: Vec<usize> = (0..paths.len()).collect();
    order.sort_by_cached_key(|i| Reverse(len(i)));
    let pairs: Vec<&[usize]> = order.chunks(2).collect();
    let (next, digests) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pairs.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(pair) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = hash_pair(&pair.iter().map(|i| paths[*i].as_ref()).collect::<Vec<_>>());
                    let mut digests = digests.lock().expect("no thread panics holding the lock");
                    match found {
                        Ok(found) => digests.extend(pair.iter().copied().zip(found.into_iter().map(Ok))),
                        Err(error) => drop(digests.insert(pair[0], Err(error))),
                    }
                }
            });
        }
    });
    digests.into_inner().expect("no thread panics holding the lock").into_values().collect()
}

fn hash_pair(paths: &[&Path]) -> Result<Vec<Sha256>, Error> {
    let files = paths.iter().map(|path| MappedFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    let hashers: Vec<InputHasher<'_>> = files.iter().map(InputHasher::new).collect();
    let runs = hashers.iter().map(|hasher| hasher.extents.whole(hasher.file.byte_len(), hasher)).collect();
    hash_together(runs, None)?;
    hashers.into_iter().map(InputHasher::finish).collect()
}

impl<'a> InputExtent<'a> {
    /// The way through what is there to be hashed of the input, unless somebody hashes or the digest is known.
    pub(crate) fn run(self) -> Option<Run<'a>> {
        match self.input.known {
            Some(_) => None,
            None => self.input.extents.run((self.offset, self.bytes), self.input),
        }
    }
}

impl Content for InputHasher<'_> {
    fn read_back(&self, start: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.file.read_at(start, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AtomicFile, Buffers, Data, Extent, write_together};

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
            for range in ranges {
                let bytes = (range.start % 3 == 0).then(|| &content[range.start as usize..range.end as usize]);
                hasher.used(range, bytes).unwrap();
            }
            assert_eq!(hasher.finish().unwrap(), Sha256::of(&content));
        }
        let hasher = InputHasher::with_digest(&map, Sha256::of(b"known"));
        hasher.used(8..30_000, None).unwrap();
        assert_eq!(hasher.finish().unwrap(), Sha256::of(b"known"));
    }

    #[test]
    fn a_file_that_becomes_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 50_000]).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let hasher = InputHasher::new(&map);
        hasher.used(0..20_000, None).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(30_000).unwrap();
        let error = hasher.finish().unwrap_err();
        assert!(error.to_string().contains("has become shorter"), "{error}");
    }

    #[test]
    fn many_files_have_the_digests_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = (0..9u32).map(|i| vec![i as u8; (i * i * 40_000 % 700_001) as usize]).collect();
        let paths: Vec<_> = (0..contents.len()).map(|i| dir.path().join(i.to_string())).collect();
        paths.iter().zip(&contents).for_each(|(path, content)| std::fs::write(path, content).unwrap());
        let expected: Vec<Sha256> = contents.iter().map(|content| Sha256::of(content)).collect();
        assert_eq!(hash_files(&paths).unwrap(), expected);
        assert_eq!(hash_files(&paths[..1]).unwrap(), expected[..1]);
        assert_eq!(hash_files::<&Path>(&[]).unwrap(), []);
        std::fs::remove_file(&paths[7]).unwrap();
        assert!(hash_files(&paths).unwrap_err().is_not_found());
    }

    #[test]
    fn what_is_offered_is_hashed_beside_an_output_as_far_as_that_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..1_000u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let hashed = |hasher: &InputHasher<'_>| hasher.extents.prefix(0).unwrap();
        let output = AtomicFile::create(&dir.path().join("out"), 700).unwrap();
        let hasher = InputHasher::new(&map);
        let write = |range: Range<usize>| {
            let extent =
                Extent { file: &output, offset: range.start as u64, data: Data::Borrowed(&content[range.clone()]) };
            let of_input = InputExtent { input: &hasher, offset: range.start as u64, bytes: &content[range] };
            write_together(&[extent], Some(of_input)).unwrap();
        };
        hasher.offer(0..400, None);
        hasher.offer(400..1_000, None);
        assert_eq!(hashed(&hasher).0, 0);
        write(300..600);
        assert_eq!(hashed(&hasher).0, 0, "it was not the output's turn");
        write(0..300);
        assert_eq!(hashed(&hasher), (600, Sha256::of(&content[..600])));
        hasher.used(0..400, None).unwrap();
        assert_eq!(hashed(&hasher).0, 600, "the other extent is still in use");
        hasher.used(400..1_000, Some(&content[400..])).unwrap();
        assert_eq!(hashed(&hasher), (1_000, Sha256::of(&content)));
        write(600..700);
        assert_eq!(output.seal().unwrap(), Sha256::of(&content[..700]));
        assert_eq!(hasher.finish().unwrap(), Sha256::of(&content));
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
            input.used(0..content.len() as u64 / 400, None).unwrap();
            let next = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let mut buffers = Buffers::default();
                        let mut shared = |bytes: &[u8]| {
                            let mut buffer = buffers.take(bytes.len());
                            buffer.bytes_mut().copy_from_slice(bytes);
                            let shared = buffer.share();
                            buffers.give_back(shared.clone());
                            shared
                        };
                        while let Some(slab) = slabs.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let range = |len: usize| slab * len / 400..(slab + 1) * len / 400;
                            let of_input = range(content.len());
                            let bytes = &content[of_input.clone()];
                            let of_input = of_input.start as u64..of_input.end as u64;
                            let offered = shared(bytes);
                            input.offer(of_input.clone(), (slab % 3 == 0).then_some(&offered));
                            drop(offered);
                            let copies = outputs.each_ref().map(|(_, bytes)| shared(&bytes[range(bytes.len())]));
                            let mut extents = Vec::new();
                            for ((file, bytes), copy) in outputs.iter().zip(&copies) {
                                let range = range(bytes.len());
                                let offset = range.start as u64;
                                let borrowed = Data::Borrowed(&bytes[range]);
                                let data = if slab % 2 == 0 { Data::Shared(copy) } else { borrowed };
                                extents.push(Extent { file, offset, data });
                            }
                            let beside = InputExtent { input: &input, offset: of_input.start, bytes };
                            write_together(&extents, Some(beside)).unwrap();
                            input.used(of_input, Some(bytes)).unwrap();
                        }
                    });
                }
            });
            for (file, bytes) in outputs {
                assert_eq!(file.seal().unwrap(), Sha256::of(bytes));
            }
            assert_eq!(input.finish().unwrap(), known.unwrap_or(Sha256::of(&content)));
        }
    }
}
