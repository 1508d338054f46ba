//! A package into a repository: blobs at the same time, then manifests, then tags.

use crate::journal::Journal;
use crate::places::Places;
use crate::upload::{Outcome, upload};
use crate::{Error, Repository, referrers};
use mlpack_fs::Sha256;
use mlpack_oci::{Blob, Package};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes that are told while they go: positive, or negative when they have to go again.
pub type Progress<'a> = &'a (dyn Fn(i64) + Sync);

/// What to push.
#[derive(Clone, Copy)]
pub struct PushRequest<'a> {
    /// The blobs and the documents.
    pub package: &'a Package,
    /// Where open uploads are noted, so that a killed run goes on.
    pub journal: Option<&'a Path>,
    /// Repositories of the same registry that may have blobs of the package already.
    pub mount_from: &'a [String],
    /// Where it is noted which repositories of the registry have which blobs, so that they are not sent to others.
    pub places: Option<&'a Path>,
    /// Told while bytes go.
    pub progress: Progress<'a>,
}

/// What [`push()`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Blobs that were sent.
    pub sent: usize,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Blobs that were there already, or came from another repository of the registry.
    pub skipped: usize,
    /// Their bytes.
    pub bytes_skipped: u64,
    /// Whether the registry keeps referrers itself; `None` where nothing refers to anything.
    pub referrers_api: Option<bool>,
}

/// Pushes a package: its blobs in parallel, its documents in order, its tags last. After an error nothing has a new tag.
pub fn push(repository: &Repository<'_>, request: &PushRequest<'_>) -> Result<Pushed, Error> {
    let journal = Journal::open(request.journal, &repository.to_string())?;
    if let Some(learned) = journal.limits() {
        *repository.client.limits.lock().expect("no thread panics holding the lock") = learned;
    }
    let places = Places::open(request.places, repository.client.host())?;
    let blobs: Vec<&Blob> = request.package.blobs().collect();
    let outcomes = upload_all(repository, &blobs, request, &places, &journal)?;
    let mut pushed = Pushed::default();
    for (blob, outcome) in blobs.iter().zip(&outcomes) {
        let (count, bytes) = match outcome {
            Outcome::Sent => (&mut pushed.sent, &mut pushed.bytes_sent),
            Outcome::Existed | Outcome::Mounted => (&mut pushed.skipped, &mut pushed.bytes_skipped),
        };
        *count += 1;
        *bytes += blob.byte_len();
    }
    for document in request.package.documents() {
        let name = format!("sha256:{}", document.digest);
        let noted = repository.put_document(&name, &document.media_type, &document.bytes)?;
        if let Some(subject) = &document.subject {
            pushed.referrers_api = Some(pushed.referrers_api.unwrap_or(true) && noted);
            if !noted {
                referrers::add_to_fallback(repository, subject, document)?;
            }
        }
    }
    for (tag, digest) in request.package.tags() {
        let document = request.package.document(digest).expect("a tag of a package names one of its documents");
        repository.put_document(tag.as_str(), &document.media_type, &document.bytes)?;
    }
    journal.finish()?;
    places.note(request.places, repository.name(), blobs.into_iter())?;
    Ok(pushed)
}

/// The blobs, some at a time, largest first. The first error in the package's order is the one that is told.
fn upload_all(
    repository: &Repository<'_>,
    blobs: &[&Blob],
    request: &PushRequest<'_>,
    places: &Places,
    journal: &Journal,
) -> Result<Vec<Outcome>, Error> {
    let mut order: Vec<usize> = (0..blobs.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(blobs[at].byte_len()), *blobs[at].digest()));
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let results: Mutex<Vec<Option<Result<Outcome, Error>>>> = Mutex::new(blobs.iter().map(|_| None).collect());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let known = places.others(blobs[at].digest(), repository.name());
            let from: Vec<String> = request.mount_from.iter().chain(known).cloned().collect();
            let result = upload(repository, blobs[at], from, journal, request.progress);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            } else if matches!(result, Ok(Outcome::Existed | Outcome::Mounted)) {
                (request.progress)(blobs[at].byte_len() as i64);
            }
            results.lock().expect("no thread panics holding the lock")[at] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..repository.client.connections.min(blobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().expect("no thread panics holding the lock");
    let mut outcomes = Vec::with_capacity(blobs.len());
    // Blobs that were never begun stand beside the error that stopped them.
    let mut begun = Vec::with_capacity(blobs.len());
    for result in results {
        match result {
            Some(Err(error)) => return Err(error),
            Some(Ok(outcome)) => outcomes.push(outcome),
            None => begun.push(()),
        }
    }
    assert!(begun.is_empty(), "a blob is left out only where another one failed");
    Ok(outcomes)
}

/// The digest of a blob as registries spell it.
pub(crate) fn spelled(digest: &Sha256) -> String {
    format!("sha256:{digest}")
}
