//! Blobs into files: in parts at the same time, each file under its final name only when its bytes have their digest.
//!
//! ```text
//! .NAME.mlpack-partial    the bytes, in place
//! .NAME.mlpack-parts      "sha256 LENGTH PART-LENGTH", then the number of each part that is whole, a line each
//! ```
//!
//! The second file makes a killed run go on. What it says is not trusted: all bytes are hashed before the file gets its name,
//! and where they are not right they are fetched once more from the start.

use crate::client::{Call, Repository};
use crate::http::{Content, Failure, Response, io_reason};
use crate::push::Progress;
use crate::retry::Attempts;
use crate::url::Url;
use crate::{Error, client};
use mlpack_fs::{AtomicFile, Operation, Sha256, read_to_string_bounded};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Bytes of one part.
const PART_LEN: u64 = 16 << 20;
/// Bytes read at a time.
const BUFFER_LEN: usize = 256 << 10;
/// Largest list of parts read: 16 TiB of blob.
const PARTS_LIMIT: u64 = 16 << 20;

/// A blob and the file that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its digest.
    pub digest: Sha256,
    /// Its length in bytes.
    pub byte_len: u64,
    /// The file.
    pub path: PathBuf,
    /// Parts of it that lie in another file on this machine, by their place; they do not overlap. They are copied, not
    /// fetched, and hashed with the rest.
    pub known: Vec<Known>,
}

/// Bytes of a blob that another file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where they belong.
    pub range: Range<u64>,
    /// The file.
    pub path: PathBuf,
    /// Where they are in it.
    pub offset: u64,
}

/// What [`pull()`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Bytes that were fetched.
    pub bytes_fetched: u64,
    /// Bytes that an earlier run had fetched.
    pub bytes_kept: u64,
}

/// Fetches blobs. All files get their names when all of them are right; after an error what was fetched is kept for the
/// next run, unless it is wrong.
pub fn pull(repository: &Repository<'_>, wanted: &[Wanted], progress: Progress<'_>) -> Result<Pulled, Error> {
    // What is fetched again after a wrong digest is fetched whole.
    let plain: Vec<Wanted> = wanted.iter().map(|wanted| Wanted { known: Vec::new(), ..wanted.clone() }).collect();
    let mut pulled = Pulled::default();
    check_space(wanted)?;
    let mut transfers = Vec::new();
    for wanted in wanted {
        transfers.push(Transfer::open(wanted, true)?);
    }
    pulled.bytes_kept = transfers.iter().map(Transfer::kept).sum();
    progress(pulled.bytes_kept as i64);
    let mut again = false;
    loop {
        let result = fetch_all(repository, &transfers, progress);
        pulled.bytes_fetched += transfers.iter().map(|t| t.fetched.load(Ordering::Relaxed)).sum::<u64>();
        if let Err(error) = result {
            transfers.into_iter().for_each(Transfer::keep);
            return Err(error);
        }
        let mut wrong = Vec::new();
        let mut right = Vec::new();
        for transfer in transfers {
            let found = transfer.file.digest()?;
            match found == transfer.wanted.digest {
                true => right.push(transfer),
                false => wrong.push((transfer, found)),
            }
        }
        if wrong.is_empty() {
            for transfer in right {
                transfer.seal()?;
            }
            return Ok(pulled);
        }
        transfers = right;
        for (transfer, found) in wrong {
            let wanted = transfer.wanted;
            transfer.discard()?;
            if again {
                transfers.into_iter().for_each(Transfer::keep);
                return Err(Error::WrongDigest {
                    operation: operation(repository, wanted),
                    url: repository.url(&format!("blobs/sha256:{}", wanted.digest)).to_string(),
                    expected: wanted.digest,
                    found,
                });
            }
            progress(-(wanted.byte_len as i64));
            let whole = plain.iter().find(|whole| whole.path == wanted.path).expect("each has its plain form");
            transfers.push(Transfer::open(whole, false)?);
        }
        again = true;
    }
}

fn operation(repository: &Repository<'_>, wanted: &Wanted) -> String {
    format!("pull blob sha256:{} of `{repository}`", wanted.digest)
}

/// A blob on its way.
struct Transfer<'a> {
    wanted: &'a Wanted,
    file: AtomicFile,
    parts: Vec<Part>,
    list: Mutex<File>,
    /// Set by the one that reads the whole body, from a server that knows no ranges.
    whole: AtomicBool,
    fetched: AtomicU64,
}

struct Part {
    range: Range<u64>,
    /// Everything of the part before it is written.
    at: AtomicU64,
}

impl Part {
    fn is_done(&self) -> bool {
        self.at.load(Ordering::Relaxed) == self.range.end
    }
}

fn parts_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.mlpack-parts"))
}

impl<'a> Transfer<'a> {
    fn open(wanted: &'a Wanted, resume: bool) -> Result<Transfer<'a>, Error> {
        let all = part_ranges(wanted);
        let layout = all.iter().map(|r| format!("{}-{}", r.start, r.end)).collect::<Vec<_>>().join(" ");
        let head = format!("{} {} {}\n", wanted.digest, wanted.byte_len, Sha256::of(layout.as_bytes()));
        let list_path = parts_path(&wanted.path);
        let done = if resume { done_parts(&list_path, &head, all.len())? } else { Vec::new() };
        let ranges: Vec<Range<u64>> = done.iter().map(|no| all[*no].clone()).collect();
        let (file, taken) = AtomicFile::resume(&wanted.path, wanted.byte_len, &ranges)?;
        let error = |e| mlpack_fs::Error::io(Operation::Create, &list_path, e);
        let mut list = OpenOptions::new().create(true).append(true).open(&list_path).map_err(error)?;
        if taken.is_empty() {
            list.set_len(0).and_then(|()| list.write_all(head.as_bytes())).map_err(error)?;
        }
        let parts = all
            .into_iter()
            .map(|range| {
                let at = AtomicU64::new(if taken.contains(&range) { range.end } else { range.start });
                Part { range, at }
            })
            .collect();
        for known in &wanted.known {
            copy_known(&file, known)?;
        }
        let (whole, fetched) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Transfer { wanted, file, parts, list: Mutex::new(list), whole, fetched })
    }

    fn kept(&self) -> u64 {
        let known: u64 = self.wanted.known.iter().map(|known| known.range.end - known.range.start).sum();
        let parts: u64 = self.parts.iter().map(|part| part.at.load(Ordering::Relaxed) - part.range.start).sum();
        known + parts
    }

    /// Writes bytes that belong at the part's place, and notes a part that is whole.
    fn write(&self, no: usize, bytes: &[u8], progress: Progress<'_>) -> Result<(), Error> {
        let part = &self.parts[no];
        let at = part.at.load(Ordering::Relaxed);
        self.file.write_at(at, bytes)?;
        part.at.store(at + bytes.len() as u64, Ordering::Relaxed);
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        progress(bytes.len() as i64);
        if part.is_done() {
            let line = format!("{no}\n");
            let mut list = self.list.lock().expect("no thread panics holding the lock");
            let path = parts_path(&self.wanted.path);
            list.write_all(line.as_bytes()).map_err(|e| mlpack_fs::Error::io(Operation::Write, path, e))?;
        }
        Ok(())
    }

    fn keep(self) {
        self.file.keep();
    }

    fn discard(self) -> Result<(), Error> {
        drop(self.file);
        remove_list(&self.wanted.path)
    }

    fn seal(self) -> Result<(), Error> {
        self.file.seal()?;
        remove_list(&self.wanted.path)
    }
}

/// What is to be fetched, in parts of a bounded length: everything but what is known.
fn part_ranges(wanted: &Wanted) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    let end = wanted.byte_len;
    for gap_end in wanted.known.iter().map(|known| known.range.start).chain([end]) {
        while start < gap_end {
            let stop = gap_end.min(start + PART_LEN);
            ranges.push(start..stop);
            start = stop;
        }
        start = wanted.known.iter().find(|known| known.range.start == gap_end).map_or(end, |known| known.range.end);
    }
    ranges
}

/// Copies bytes that another file has.
fn copy_known(file: &AtomicFile, known: &Known) -> Result<(), Error> {
    use std::io::Seek as _;
    let failed = |e| mlpack_fs::Error::io(Operation::Read, &known.path, e);
    let mut source = File::open(&known.path).map_err(failed)?;
    source.seek(io::SeekFrom::Start(known.offset)).map_err(failed)?;
    let mut buffer = vec![0; BUFFER_LEN];
    let mut at = known.range.start;
    while at < known.range.end {
        let len = buffer.len().min((known.range.end - at) as usize);
        source.read_exact(&mut buffer[..len]).map_err(failed)?;
        file.write_at(at, &buffer[..len])?;
        at += len as u64;
    }
    Ok(())
}

fn remove_list(path: &Path) -> Result<(), Error> {
    let path = parts_path(path);
    std::fs::remove_file(&path).map_err(|e| mlpack_fs::Error::io(Operation::Remove, path, e).into())
}

/// The parts that an earlier run finished; none where it was about something else.
fn done_parts(path: &Path, head: &str, count: usize) -> Result<Vec<usize>, Error> {
    let text = match read_to_string_bounded(path, PARTS_LIMIT) {
        Ok(text) => text,
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        Err(mlpack_fs::Error::NotUtf8 { .. } | mlpack_fs::Error::TooLarge { .. }) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let Some(lines) = text.strip_prefix(head) else { return Ok(Vec::new()) };
    let mut done: Vec<usize> = lines
        .split_inclusive('\n')
        // The last line may be cut short.
        .filter_map(|line| line.strip_suffix('\n')?.parse().ok())
        .filter(|no| *no < count)
        .collect();
    done.sort_unstable();
    done.dedup();
    Ok(done)
}

/// What is still to come must fit on the disk, before anything is reserved or fetched.
fn check_space(wanted: &[Wanted]) -> Result<(), Error> {
    let Some(dir) = wanted.iter().find_map(|w| w.path.parent()) else { return Ok(()) };
    let there = |w: &Wanted| {
        let name = w.path.file_name().unwrap_or_default().to_string_lossy();
        std::fs::metadata(w.path.with_file_name(format!(".{name}.mlpack-partial"))).is_ok_and(|m| m.len() == w.byte_len)
    };
    let lens = wanted.iter().filter(|w| !there(w)).map(|w| w.byte_len);
    let needed = lens.fold(0u64, u64::saturating_add);
    match mlpack_fs::free_bytes(dir) {
        Some(free) if free < needed => Err(Error::NoSpace { dir: dir.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

/// Fetches every part that is not there, largest files first.
fn fetch_all(repository: &Repository<'_>, transfers: &[Transfer<'_>], progress: Progress<'_>) -> Result<(), Error> {
    let mut order: Vec<&Transfer<'_>> = transfers.iter().collect();
    order.sort_by_key(|t| (std::cmp::Reverse(t.wanted.byte_len), t.wanted.digest));
    let tasks: Vec<(&Transfer<'_>, usize)> = order
        .into_iter()
        .flat_map(|t| (0..t.parts.len()).filter(|no| !t.parts[*no].is_done()).map(move |no| (t, no)))
        .collect();
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let work = || {
        let mut buffer = vec![0; BUFFER_LEN];
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((transfer, no)) = tasks.get(at) else { return };
            if let Err(error) = fetch(repository, transfer, *no, &mut buffer, progress) {
                stop.store(true, Ordering::Relaxed);
                let mut first = failure.lock().expect("no thread panics holding the lock");
                if first.as_ref().is_none_or(|(other, _)| at < *other) {
                    *first = Some((at, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..repository.client.connections.min(tasks.len()) {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().expect("no thread panics holding the lock") {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// How reading a body ended.
enum Body {
    /// All that was wanted came.
    Whole,
    /// It broke off.
    Broken(String),
}

/// Fetches a part, through as many answers as it takes.
fn fetch(
    repository: &Repository<'_>,
    transfer: &Transfer<'_>,
    no: usize,
    buffer: &mut [u8],
    progress: Progress<'_>,
) -> Result<(), Error> {
    let client = repository.client;
    let part = &transfer.parts[no];
    let scope = repository.pull_scope();
    let operation = operation(repository, transfer.wanted);
    let mut attempts = client.retry.attempts();
    let mut whole = false;
    while !part.is_done() || whole {
        if transfer.whole.load(Ordering::Relaxed) && !whole {
            // Somebody else reads the whole body.
            return Ok(());
        }
        let start = part.at.load(Ordering::Relaxed);
        let before = transfer.fetched.load(Ordering::Relaxed);
        let range = format!("bytes={start}-{}", part.range.end - 1);
        let asks_range = !whole && (transfer.parts.len() > 1 || start > 0 || part.range.end < transfer.wanted.byte_len);
        let headers: &[(&str, &str)] = if asks_range { &[("range", &range)] } else { &[] };
        let call = Call {
            method: "GET",
            url: repository.url(&format!("blobs/sha256:{}", transfer.wanted.digest)),
            scope: &scope,
            operation: &operation,
            headers,
            content: Content::None,
        };
        let (response, url) = match client.once(&call) {
            Ok(answer) => answer,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Connection(reason)) => {
                again(&mut attempts, None, || client.unreachable(&call.url, reason, client.retry.limit + 1))?;
                continue;
            }
        };
        let body = match response.status {
            206 => {
                check_range(repository, &call, &url, &response, start, part.range.end, transfer.wanted.byte_len)?;
                read_part(transfer, no, response, buffer, progress)?
            }
            200 => {
                if let Some(found) = response.content_length().filter(|len| *len != transfer.wanted.byte_len) {
                    let expected = transfer.wanted.byte_len;
                    return Err(Error::WrongLength { operation, url: url.to_string(), expected, found });
                }
                if !whole && transfer.parts.len() > 1 && transfer.whole.swap(true, Ordering::Relaxed) {
                    return Ok(());
                }
                whole = true;
                read_whole(transfer, &call, &url, response, buffer, progress)?
            }
            status if client::is_passing(status) => {
                let asked = client::retry_after(&response);
                let error = client.status_error(&call, &url, "200 or 206", response, attempts.failed() + 1);
                again(&mut attempts, asked, || error)?;
                continue;
            }
            _ => return Err(client.status_error(&call, &url, "200 or 206", response, 1)),
        };
        match body {
            Body::Whole => return Ok(()),
            Body::Broken(reason) => {
                if transfer.fetched.load(Ordering::Relaxed) > before {
                    attempts.progress();
                }
                again(&mut attempts, None, || client.unreachable(&url, reason, client.retry.limit + 1))?;
            }
        }
    }
    Ok(())
}

/// Pauses before another try, or gives up with the error.
fn again(
    attempts: &mut Attempts<'_>,
    asked: Option<std::time::Duration>,
    error: impl FnOnce() -> Error,
) -> Result<(), Error> {
    if attempts.again(asked) { Ok(()) } else { Err(error()) }
}

/// `Content-Range: bytes START-END/LENGTH` must be what was asked for.
fn check_range(
    repository: &Repository<'_>,
    call: &Call<'_>,
    url: &Url,
    response: &Response,
    start: u64,
    end: u64,
    byte_len: u64,
) -> Result<(), Error> {
    let text = response.header("content-range").unwrap_or_default();
    let parsed = || {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { byte_len } else { total.parse().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, total))
    };
    match parsed() {
        Some((found, _, total)) if found == start && total != byte_len => {
            let (operation, url) = (call.operation.to_owned(), url.to_string());
            Err(Error::WrongLength { operation, url, expected: byte_len, found: total })
        }
        Some((found, last, _)) if found == start && last <= end && last > start => Ok(()),
        _ => Err(repository.client.protocol(call, url, "the range that was asked for", text.to_owned())),
    }
}

/// The rest of a part from a body that is that and no more.
fn read_part(
    transfer: &Transfer<'_>,
    no: usize,
    response: Response,
    buffer: &mut [u8],
    progress: Progress<'_>,
) -> Result<Body, Error> {
    let part = &transfer.parts[no];
    let mut reader = response.reader();
    while !part.is_done() {
        let left = part.range.end - part.at.load(Ordering::Relaxed);
        let len = buffer.len().min(left as usize);
        match reader.read(&mut buffer[..len]) {
            Ok(0) => return Ok(Body::Broken("the body ends early".to_owned())),
            Ok(n) => transfer.write(no, &buffer[..n], progress)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Ok(Body::Broken(io_reason(&e))),
        }
    }
    // To the end of the body, so that the connection serves the next request.
    drop(io::copy(&mut reader.take(1), &mut io::sink()));
    Ok(Body::Whole)
}

/// All parts from a body that is the whole blob; what is written already is passed over.
fn read_whole(
    transfer: &Transfer<'_>,
    call: &Call<'_>,
    url: &Url,
    response: Response,
    buffer: &mut [u8],
    progress: Progress<'_>,
) -> Result<Body, Error> {
    let byte_len = transfer.wanted.byte_len;
    let mut reader = response.reader();
    let mut offset = 0;
    let mut no = 0;
    while offset < byte_len {
        while transfer.parts.get(no).is_some_and(|part| part.range.end <= offset) {
            no += 1;
        }
        // The next part, or what is known before it or after the last one.
        let part = transfer.parts.get(no).filter(|part| part.range.start <= offset);
        let stop = match (part, transfer.parts.get(no)) {
            (Some(part), _) => part.range.end,
            (None, Some(next)) => next.range.start,
            (None, None) => byte_len,
        };
        let len = buffer.len().min((stop - offset) as usize);
        let n = match reader.read(&mut buffer[..len]) {
            Ok(0) => return Ok(Body::Broken("the body ends early".to_owned())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Ok(Body::Broken(io_reason(&e))),
        };
        let end = offset + n as u64;
        if let Some(at) = part.map(|part| part.at.load(Ordering::Relaxed)).filter(|at| *at < end) {
            transfer.write(no, &buffer[(at - offset) as usize..n], progress)?;
        }
        offset = end;
    }
    match io::copy(&mut reader.take(1), &mut io::sink()) {
        Ok(1..) => {
            let (operation, url) = (call.operation.to_owned(), url.to_string());
            Err(Error::WrongLength { operation, url, expected: byte_len, found: byte_len + 1 })
        }
        _ => Ok(Body::Whole),
    }
}
