//! The sequential hash of a file whose parts come in any order.

use crate::pair::{Stream, update_both};
use crate::{Error, InputExtent, Sha256, SharedBytes};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Bytes of one file that are hashed before it is seen again which two have the most.
const PIECE_LEN: usize = 32 << 10;

/// Bytes that are read back at a time.
const READ_LEN: usize = 256 << 10;

/// Bytes behind what is hashed that are kept in memory for their turn. What lies further ahead is read back.
const WAITING_LEN: u64 = 32 << 20;

/// Hashes extents in file order while they arrive in any order. An extent whose turn it is is hashed at once; one that
/// comes early is noted, and hashed when everything before it is: from its bytes where they are still in memory, else they
/// are read back. Only one thread hashes at a time, and the others do not wait for it.
pub(crate) struct ExtentHasher {
    front: Mutex<Front>,
    // Where the front was when somebody last looked: it is nowhere before that.
    hashed_to: AtomicU64,
    early: Mutex<Early>,
}

struct Front {
    stream: Stream,
    // Every byte before it is hashed.
    at: u64,
}

/// Extents noted and not hashed yet.
#[derive(Default)]
struct Early {
    // By their starts.
    extents: BTreeMap<u64, Noted>,
    // Starts and ends of what is hashed only beside something else for now.
    offered: BTreeMap<u64, u64>,
}

struct Noted {
    end: u64,
    // And how many of them come before. `None` where they are to be read back.
    bytes: Option<(SharedBytes, usize)>,
}

impl Early {
    fn add(&mut self, extent: Range<u64>, bytes: Option<(SharedBytes, usize)>) {
        self.extents.insert(extent.start, Noted { end: extent.end, bytes });
    }

    /// Whether the extent that starts at `start` is noted and may be hashed alone.
    fn is_ready(&self, start: u64) -> bool {
        let before = self.offered.range(..=start).next_back();
        self.extents.contains_key(&start) && before.is_none_or(|(_, end)| *end <= start)
    }
}

/// The file whose extents are hashed.
pub(crate) trait Content {
    /// Reads the bytes from `start` on, of which all are there.
    fn read_back(&self, start: u64, bytes: &mut [u8]) -> Result<(), Error>;
}

/// Bytes to be hashed.
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Kept(SharedBytes, usize),
    Read(Vec<u8>),
}

impl Bytes<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Kept(bytes, before) => &bytes[*before..],
            Bytes::Read(bytes) => bytes,
        }
    }
}

/// A thread's way through the extents of one file while it has their front.
pub(crate) struct Run<'a> {
    extents: &'a ExtentHasher,
    content: &'a dyn Content,
    front: MutexGuard<'a, Front>,
    // An extent that the caller has in memory, whether it is noted or not.
    mine: Option<(u64, &'a [u8])>,
    // Whether what is offered is hashed too, but only beside other files.
    offered: bool,
    // Where the extent ends whose turn it is.
    end: u64,
    bytes: Bytes<'a>,
    // How many of `bytes` are hashed.
    done: usize,
}

impl<'a> Run<'a> {
    fn new(extents: &'a ExtentHasher, content: &'a dyn Content, front: MutexGuard<'a, Front>) -> Run<'a> {
        let end = front.at;
        Run { extents, content, front, mine: None, offered: false, end, bytes: Bytes::Borrowed(&[]), done: 0 }
    }

    /// Looks for the next bytes, where none are left.
    fn fill(&mut self) -> Result<(), Error> {
        if !self.rest().is_empty() {
            return Ok(());
        }
        self.done = 0;
        let mut room = match std::mem::replace(&mut self.bytes, Bytes::Borrowed(&[])) {
            Bytes::Read(room) => room,
            _ => Vec::new(),
        };
        let at = self.front.at;
        let mine = self.mine.and_then(|(start, bytes)| bytes.get(at.checked_sub(start)? as usize..));
        let mine = mine.filter(|bytes| !bytes.is_empty());
        if at == self.end {
            let mut early = self.extents.early();
            let noted = if self.offered || early.is_ready(at) { early.extents.remove(&at) } else { None };
            drop(early);
            let end = noted.as_ref().map(|noted| noted.end).or(mine.map(|bytes| at + bytes.len() as u64));
            let Some(end) = end else { return Ok(()) };
            self.end = end;
            if let Some((bytes, before)) = noted.and_then(|noted| noted.bytes) {
                self.bytes = Bytes::Kept(bytes, before);
                return Ok(());
            }
        }
        if let Some(bytes) = mine {
            self.bytes = Bytes::Borrowed(&bytes[..bytes.len().min((self.end - at) as usize)]);
            return Ok(());
        }
        room.resize(READ_LEN.min((self.end - at) as usize), 0);
        self.content.read_back(at, &mut room)?;
        self.bytes = Bytes::Read(room);
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        &self.bytes.as_slice()[self.done..]
    }

    /// Hashes some of the bytes, alone.
    fn hash_alone(&mut self) {
        let len = self.rest().len().min(PIECE_LEN);
        self.front.stream.update(&self.bytes.as_slice()[self.done..][..len]);
        self.pass(len);
    }

    /// Hashes some of the bytes of both, as many of one as of the other.
    fn hash_with(&mut self, other: &mut Run<'_>) {
        let len = self.rest().len().min(other.rest().len()).min(PIECE_LEN);
        let (bytes, other_bytes) = (&self.bytes.as_slice()[self.done..], &other.bytes.as_slice()[other.done..]);
        update_both(&mut self.front.stream, &bytes[..len], &mut other.front.stream, &other_bytes[..len]);
        self.pass(len);
        other.pass(len);
    }

    fn pass(&mut self, len: usize) {
        self.done += len;
        self.front.at += len as u64;
        self.extents.hashed_to.store(self.front.at, Ordering::Relaxed);
    }
}

/// Hashes everything whose turn has come in several files, two files at a time: always those that have the most bytes, so that
/// hardly any are left to be hashed alone. As much of `beside` as can be is hashed with them.
pub(crate) fn hash_together<'a>(mut runs: Vec<Run<'a>>, beside: Option<InputExtent<'a>>) -> Result<(), Error> {
    runs.extend(beside.and_then(InputExtent::run));
    loop {
        runs.iter_mut().try_for_each(Run::fill)?;
        runs.retain(|run| run.offered || !run.rest().is_empty());
        if runs.iter().all(|run| run.offered) {
            return Ok(());
        }
        runs.sort_unstable_by_key(|run| Reverse(run.rest().len()));
        match &mut runs[..] {
            [first, second, ..] if !second.rest().is_empty() => first.hash_with(second),
            [first, ..] => first.hash_alone(),
            [] => unreachable!("one has bytes"),
        }
    }
}

impl Drop for Run<'_> {
    /// What is left of an extent is noted for its turn. Only an input is left within an extent, and can be read again.
    fn drop(&mut self) {
        if self.front.at < self.end {
            let kept = match &self.bytes {
                Bytes::Kept(bytes, before) => Some((bytes.clone(), before + self.done)),
                Bytes::Borrowed(_) | Bytes::Read(_) => None,
            };
            self.extents.early().add(self.front.at..self.end, kept);
        }
    }
}

impl ExtentHasher {
    pub(crate) fn new() -> ExtentHasher {
        ExtentHasher::starting(Front { stream: Stream::new(), at: 0 })
    }

    fn starting(front: Front) -> ExtentHasher {
        ExtentHasher { hashed_to: AtomicU64::new(front.at), front: Mutex::new(front), early: Mutex::default() }
    }

    /// Notes an extent that cannot be read back yet: its bytes are kept until it is hashed, or [`ExtentHasher::written`].
    pub(crate) fn note_bytes(&self, start: u64, bytes: SharedBytes) {
        self.early().add(start..start + bytes.len() as u64, Some((bytes, 0)));
    }

    /// Whether the bytes at an offset will soon be hashed.
    fn is_near(&self, offset: u64) -> bool {
        offset < self.hashed_to.load(Ordering::Relaxed) + WAITING_LEN
    }

    /// The way through an extent and what is noted behind it, if its turn has come and nobody hashes.
    pub(crate) fn turn<'a>(&'a self, start: u64, bytes: &'a [u8], content: &'a dyn Content) -> Option<Run<'a>> {
        self.run_from(|front| front.at == start, (start, bytes), content)
    }

    /// The way through what is noted, if the turn of something has come and nobody hashes. `mine` is where bytes begin that the
    /// caller has, and these.
    pub(crate) fn left_over<'a>(&'a self, mine: (u64, &'a [u8]), content: &'a dyn Content) -> Option<Run<'a>> {
        self.run_from(|front| self.early().is_ready(front.at), mine, content)
    }

    fn run_from<'a>(
        &'a self,
        begins: impl Fn(&Front) -> bool,
        mine: (u64, &'a [u8]),
        content: &'a dyn Content,
    ) -> Option<Run<'a>> {
        let front = self.front.try_lock().ok().filter(|front| begins(front))?;
        let mut run = Run::new(self, content, front);
        run.mine = Some(mine);
        Some(run)
    }

    /// Says that the extent that starts at `start` can be read back from now on.
    pub(crate) fn written(&self, start: u64) {
        if !self.is_near(start)
            && let Some(noted) = self.early().extents.get_mut(&start)
        {
            noted.bytes = None;
        }
    }

    /// Notes an extent whose bytes can be read back already.
    pub(crate) fn note(&self, extent: Range<u64>) {
        if extent.start < extent.end {
            self.early().add(extent, None);
        }
    }

    /// The way through everything that is noted, offered or not, unless somebody hashes. `mine` is where bytes begin that the
    /// caller has, and these.
    pub(crate) fn run<'a>(&'a self, mine: (u64, &'a [u8]), content: &'a dyn Content) -> Option<Run<'a>> {
        let mut run = self.run_from(|_| true, mine, content)?;
        run.offered = true;
        Some(run)
    }

    /// The way through a whole file.
    pub(crate) fn whole<'a>(&'a self, byte_len: u64, content: &'a dyn Content) -> Run<'a> {
        self.note(0..byte_len);
        Run::new(self, content, self.front())
    }

    /// Notes an extent that can be read back, to be hashed only beside another file until it is taken with
    /// [`ExtentHasher::take_noted`]. Until then its bytes are kept, where they are given.
    pub(crate) fn offer(&self, extent: Range<u64>, bytes: Option<&SharedBytes>) {
        if extent.start < extent.end {
            let mut early = self.early();
            early.offered.insert(extent.start, extent.end);
            early.add(extent, bytes.map(|bytes| (bytes.clone(), 0)));
        }
    }

    /// Takes an extent that can be read back, whether it was offered or not. `mine` is where bytes begin that the caller has, and
    /// these.
    pub(crate) fn take_noted(
        &self,
        extent: Range<u64>,
        mine: Option<(u64, &[u8])>,
        content: &dyn Content,
    ) -> Result<(), Error> {
        if self.early().offered.remove(&extent.start).is_none() {
            self.note(extent.clone());
        }
        // Whoever noted the next extent while this thread hashed left it to this thread.
        while let Some(run) = self.left_over(mine.unwrap_or((0, &[])), content) {
            hash_together(vec![run], None)?;
        }
        if !self.is_near(extent.start) {
            self.early().extents.range_mut(extent).for_each(|(_, noted)| noted.bytes = None);
        }
        Ok(())
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().expect("no thread panics holding the lock")
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().expect("no thread panics holding the lock")
    }

    /// The same after the next extent.
    pub(crate) fn continued(&self, extent: Range<u64>, content: &dyn Content) -> Result<ExtentHasher, Error> {
        let front = self.front();
        assert_eq!(front.at, extent.start, "extents are hashed in file order");
        let after = ExtentHasher::starting(Front { stream: front.stream.clone(), at: front.at });
        after.note(extent);
        after.finish(content)?;
        Ok(after)
    }

    /// The digest of everything hashed so far.
    pub(crate) fn digest(&self) -> Sha256 {
        self.front().stream.clone().finish()
    }

    /// How far the file is hashed and the digest of that, once it is at least `byte_len` and nobody is hashing.
    pub(crate) fn prefix(&self, byte_len: u64) -> Option<(u64, Sha256)> {
        let front = self.front.try_lock().ok().filter(|front| front.at >= byte_len)?;
        Some((front.at, front.stream.clone().finish()))
    }

    /// Hashes what is left of a file of `byte_len` bytes that can all be read back, noted or not; the digest.
    pub(crate) fn finish_whole(&self, byte_len: u64, content: &dyn Content) -> Result<Sha256, Error> {
        let (_, at) = self.finish(content)?;
        // What was noted behind a gap is read again, with the gap.
        *self.early() = Early::default();
        self.note(at..byte_len);
        Ok(self.finish(content)?.0)
    }

    /// Hashes what is left of the noted extents; the digest, and how far it reaches.
    pub(crate) fn finish(&self, content: &dyn Content) -> Result<(Sha256, u64), Error> {
        self.early().offered.clear();
        hash_together(vec![Run::new(self, content, self.front())], None)?;
        let front = self.front();
        Ok((front.stream.clone().finish(), front.at))
    }
}
