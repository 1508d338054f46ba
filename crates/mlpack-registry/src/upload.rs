//! One blob into a repository (distribution-spec v1.1, "Pushing blobs").
//!
//! ```text
//! HEAD    there already: done
//! POST    ?mount=&from=   another repository has it: done; else a session
//! PATCH   chunk after chunk; the registry's `Range` says how far it is, never our own count
//! PUT     ?digest=        the end; or the whole blob, where the registry takes nothing else
//! ```
//!
//! A failure in the middle asks the session how far it is and goes on from there; a session that is gone begins anew.

use crate::Error;
use crate::client::{Call, Repository, is_passing, retry_after};
use crate::http::{Content, Failure, Response};
use crate::journal::{Journal, Session};
use crate::limits::Limits;
use crate::url::Url;
use mlpack_oci::Blob;
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Drops of a connection in the middle of a chunk, one after the other, before a smaller chunk is tried.
const DROPS: u32 = 2;
/// The least chunk that a bad line leads to.
const LINE_CHUNK: u64 = 1 << 20;
/// What registries that refuse a range take (ghcr.io).
const SMALL_CHUNK: u64 = 4 << 20;

/// How a blob came to be in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Existed,
    Mounted,
    Sent,
}

/// Where bytes are told as they go, negative ones when they have to go again.
pub(crate) type Sent<'a> = &'a (dyn Fn(i64) + Sync);

/// What one request has told of its bytes.
struct Told<'a> {
    sent: Sent<'a>,
    bytes: AtomicI64,
}

impl<'a> Told<'a> {
    fn new(sent: Sent<'a>) -> Told<'a> {
        Told { sent, bytes: AtomicI64::new(0) }
    }

    fn tell(&self, bytes: i64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (self.sent)(bytes);
    }

    /// Sets right what was told once it is known how many bytes arrived: a request that was made twice, for a new token,
    /// has told its bytes twice.
    fn arrived(&self, bytes: u64) {
        (self.sent)(bytes as i64 - self.bytes.load(Ordering::Relaxed));
    }
}

struct Upload<'a> {
    repository: &'a Repository<'a>,
    blob: &'a Blob,
    scope: String,
    operation: String,
    /// Repositories of the same registry that may have the blob.
    from: Vec<String>,
    journal: &'a Journal,
    sent: Sent<'a>,
    session: Option<Open>,
    /// Chunks of this upload alone, on a line that breaks.
    line_chunk: Cell<u64>,
    drops: u32,
    digest_refused: bool,
}

/// An open session.
struct Open {
    url: Url,
    offset: u64,
}

/// What one request led to.
enum Step {
    Done(Outcome),
    /// Bytes arrived.
    Progress,
    /// Nothing arrived, and the next request is another one.
    Changed,
    /// Worth another try.
    Failed {
        reason: Reason,
        asked: Option<Duration>,
    },
}

enum Reason {
    Connection(String),
    Status(Error),
}

/// Brings a blob into the repository.
pub(crate) fn upload(
    repository: &Repository<'_>,
    blob: &Blob,
    from: Vec<String>,
    journal: &Journal,
    sent: Sent<'_>,
) -> Result<Outcome, Error> {
    let mut scope = repository.push_scope();
    for source in &from {
        scope.push_str(&format!(" repository:{source}:pull"));
    }
    let digest = blob.digest();
    let operation = format!("push blob sha256:{digest} to `{repository}`");
    if let Some(found) = repository.blob_len_as(digest, &scope)? {
        if found != blob.byte_len() {
            let url = repository.url(&format!("blobs/sha256:{digest}")).to_string();
            return Err(Error::WrongLength { operation, url, expected: blob.byte_len(), found });
        }
        journal.note(digest, None, repository.client.limits())?;
        return Ok(Outcome::Existed);
    }
    let mut upload = Upload {
        repository,
        blob,
        scope,
        operation,
        from,
        journal,
        sent,
        session: None,
        line_chunk: Cell::new(u64::MAX),
        drops: 0,
        digest_refused: false,
    };
    upload.take_over()?;
    upload.run()
}

impl crate::Client {
    pub(crate) fn limits(&self) -> Limits {
        *self.limits.lock().expect("no thread panics holding the lock")
    }

    fn learn(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.limits.lock().expect("no thread panics holding the lock"));
    }
}

impl Upload<'_> {
    fn run(&mut self) -> Result<Outcome, Error> {
        let client = self.repository.client;
        let mut attempts = client.retry.attempts();
        loop {
            match self.advance()? {
                Step::Done(outcome) => {
                    self.journal.note(self.blob.digest(), None, client.limits())?;
                    return Ok(outcome);
                }
                Step::Progress => {
                    attempts.progress();
                    self.drops = 0;
                }
                Step::Changed => {}
                Step::Failed { reason, asked } => {
                    let tries = attempts.failed() + 1;
                    if !attempts.again(asked) {
                        return Err(match reason {
                            Reason::Connection(reason) => {
                                let url = self.repository.url("blobs/uploads/");
                                client.unreachable(&url, reason, tries)
                            }
                            Reason::Status(error) => error,
                        });
                    }
                    if self.arrived_meanwhile()? {
                        return Ok(Outcome::Sent);
                    }
                    self.ask_session()?;
                }
            }
        }
    }

    /// Takes over a session of an earlier run.
    fn take_over(&mut self) -> Result<(), Error> {
        let Some(Session { location, .. }) = self.journal.session(self.blob.digest()) else { return Ok(()) };
        if let Some(url) = Url::parse(&location) {
            self.session = Some(Open { url, offset: 0 });
            self.ask_session()?;
            if let Some(open) = &self.session {
                (self.sent)(open.offset as i64);
            }
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Step, Error> {
        let limits = self.repository.client.limits();
        let len = self.blob.byte_len();
        let chunk = limits.chunk.min(self.line_chunk.get());
        match &self.session {
            None => self.open(),
            Some(open) if open.offset == 0 && (limits.monolithic || len <= chunk) => self.put(0),
            Some(_) if limits.monolithic => {
                self.forget();
                Ok(Step::Changed)
            }
            Some(open) if open.offset < len => {
                let end = len.min(open.offset + chunk);
                self.patch(open.offset, end)
            }
            Some(_) => self.put(len),
        }
    }

    /// POST: a session, or the blob of another repository.
    fn open(&mut self) -> Result<Step, Error> {
        let digest = format!("sha256:{}", self.blob.digest());
        let mut url = self.repository.url("blobs/uploads/");
        let mount = self.from.pop();
        if mount.is_none() && !self.blob.is_here() {
            return Err(Error::NotHere { digest: *self.blob.digest(), repository: self.repository.to_string() });
        }
        if let Some(from) = &mount {
            url = url.with_parameter("mount", &digest).with_parameter("from", from);
        }
        let call = self.call("POST", url, &[], Content::None);
        let (response, url) = match self.repository.client.once(&call) {
            Ok(answer) => answer,
            Err(failure) => return failed(failure),
        };
        match response.status {
            201 if mount.is_some() => {
                response.drain();
                Ok(Step::Done(Outcome::Mounted))
            }
            202 => {
                if let Some(least) = response.header("oci-chunk-min-length").and_then(|v| v.trim().parse::<u64>().ok())
                {
                    // A registry behind S3; what it asks for counts for more than what we would choose.
                    self.repository.client.learn(|limits| limits.chunk = limits.chunk.max(least.min(1 << 30)));
                }
                let Some(location) = response.header("location").and_then(|l| url.follow(l)) else {
                    let found = "none that can be used".to_owned();
                    return Err(self.repository.client.protocol(&call, &url, "a Location", found));
                };
                response.drain();
                if self.blob.is_here() {
                    self.session = Some(Open { url: location, offset: 0 });
                }
                Ok(Step::Changed)
            }
            // A mount that is refused is no reason not to send the blob.
            400..=499 if mount.is_some() && response.status != 429 => {
                response.drain();
                Ok(Step::Changed)
            }
            _ => self.refused(&call, &url, "202", response),
        }
    }

    /// PATCH: the bytes from `start` to `end`.
    fn patch(&mut self, start: u64, end: u64) -> Result<Step, Error> {
        let client = self.repository.client;
        let open = self.session.as_ref().expect("a chunk goes into a session");
        let range = format!("{start}-{}", end - 1);
        let told = Told::new(self.sent);
        let tell = |n: i64| told.tell(n);
        let content = Content::Blob { blob: self.blob, range: start..end, sent: &tell };
        let headers = [("content-type", "application/octet-stream"), ("content-range", range.as_str())];
        let call = self.call("PATCH", open.url.clone(), &headers, content);
        let answer = client.once(&call);
        let arrived = |bytes: u64| told.arrived(bytes);
        let (response, url) = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                arrived(0);
                self.drops += 1;
                if self.drops >= DROPS && end - start > LINE_CHUNK {
                    self.line_chunk.set(((end - start) / 2).max(LINE_CHUNK));
                    self.drops = 0;
                }
                return failed(failure);
            }
        };
        let status = response.status;
        match status {
            200 | 202 | 204 => {
                let location = response.header("location").and_then(|l| url.follow(l));
                let next = response.header("range").and_then(range_end).unwrap_or(end);
                response.drain();
                if next > end || next < start {
                    // It has other bytes than ours: only a new session is sure.
                    arrived(0);
                    self.forget();
                    let reason = Reason::Connection(format!("the registry has {next} bytes of {start} to {end} sent"));
                    return Ok(Step::Failed { reason, asked: None });
                }
                arrived(next - start);
                let open = self.session.as_mut().expect("a chunk goes into a session");
                open.offset = next;
                if let Some(location) = location {
                    open.url = location;
                }
                self.note()?;
                match next > start {
                    true => Ok(Step::Progress),
                    false => {
                        Ok(Step::Failed { reason: Reason::Connection("nothing was taken".to_owned()), asked: None })
                    }
                }
            }
            201 => {
                // Amazon's registries take the first PATCH for the whole blob.
                response.drain();
                arrived(0);
                if end == self.blob.byte_len() && self.arrived_meanwhile()? {
                    return Ok(Step::Done(Outcome::Sent));
                }
                client.learn(|limits| limits.monolithic = true);
                self.forget();
                Ok(Step::Changed)
            }
            413 => {
                response.drain();
                arrived(0);
                client.learn(|limits| limits.shrink(end - start));
                self.ask_session()?;
                Ok(Step::Changed)
            }
            416 => {
                arrived(0);
                let says = response.header("range").and_then(range_end);
                response.drain();
                if says.is_none_or(|says| says == start) {
                    self.ask_session()?;
                } else if let (Some(open), Some(says)) = (&mut self.session, says) {
                    open.offset = says.min(self.blob.byte_len());
                }
                if self.session.as_ref().is_none_or(|open| open.offset == start) {
                    client.learn(|limits| match end - start > SMALL_CHUNK {
                        true => limits.chunk = SMALL_CHUNK,
                        false => limits.shrink(end - start),
                    });
                    return Ok(Step::Changed);
                }
                Ok(Step::Failed {
                    reason: Reason::Connection("the registry is at another offset".to_owned()),
                    asked: None,
                })
            }
            405 | 501 => {
                response.drain();
                arrived(0);
                client.learn(|limits| limits.monolithic = true);
                self.forget();
                Ok(Step::Changed)
            }
            400 | 404 | 409 => {
                arrived(0);
                let error = client.status_error(&call, &url, "202", response, 1);
                self.forget();
                Ok(Step::Failed { reason: Reason::Status(error), asked: None })
            }
            _ => {
                arrived(0);
                self.refused(&call, &url, "202", response)
            }
        }
    }

    /// PUT: the end of the session, with the bytes from `start` on.
    fn put(&mut self, start: u64) -> Result<Step, Error> {
        let client = self.repository.client;
        let len = self.blob.byte_len();
        let open = self.session.as_ref().expect("a session is ended");
        let digest = format!("sha256:{}", self.blob.digest());
        let url = open.url.with_parameter("digest", &digest);
        let told = Told::new(self.sent);
        let tell = |n: i64| told.tell(n);
        let content = match start == len {
            true => Content::None,
            false => Content::Blob { blob: self.blob, range: start..len, sent: &tell },
        };
        let headers = [("content-type", "application/octet-stream")];
        let call = self.call("PUT", url, &headers, content);
        let answer = client.once(&call);
        let arrived = |bytes: u64| told.arrived(bytes);
        let (response, url) = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                arrived(0);
                return failed(failure);
            }
        };
        match response.status {
            200 | 201 | 204 => {
                let stated =
                    response.header("docker-content-digest").and_then(|d| d.strip_prefix("sha256:")?.parse().ok());
                response.drain();
                arrived(len - start);
                match stated {
                    Some(found) if found != *self.blob.digest() => Err(Error::WrongDigest {
                        operation: self.operation.clone(),
                        url: url.to_string(),
                        expected: *self.blob.digest(),
                        found,
                    }),
                    _ => Ok(Step::Done(Outcome::Sent)),
                }
            }
            413 if len - start > 0 && !client.limits().monolithic => {
                response.drain();
                arrived(0);
                client.learn(|limits| limits.shrink(limits.chunk.min(len - start)));
                self.forget();
                Ok(Step::Changed)
            }
            400 | 404 | 409 | 416 => {
                arrived(0);
                let error = client.status_error(&call, &url, "201", response, 1);
                let digest = matches!(&error, Error::Status { detail, .. } if detail.contains("DIGEST_INVALID"));
                if digest && self.digest_refused {
                    return Err(error);
                }
                self.digest_refused |= digest;
                self.forget();
                Ok(Step::Failed { reason: Reason::Status(error), asked: None })
            }
            _ => {
                arrived(0);
                self.refused(&call, &url, "201", response)
            }
        }
    }

    /// Asks the session how far it is; forgets it when it is gone or does not tell.
    fn ask_session(&mut self) -> Result<(), Error> {
        let Some(open) = &self.session else { return Ok(()) };
        let call = self.call("GET", open.url.clone(), &[], Content::None);
        let before = open.offset;
        let (offset, location) = match self.repository.client.once(&call) {
            Ok((response, url)) => {
                let location = response.header("location").and_then(|l| url.follow(l));
                let offset = match response.status {
                    200 | 202 | 204 => Some(response.header("range").and_then(range_end).unwrap_or(0)),
                    416 => response.header("range").and_then(range_end),
                    _ => None,
                };
                response.drain();
                (offset, location)
            }
            Err(Failure::Final(error)) => return Err(error),
            // The line is still down: the session is asked again after the next pause.
            Err(Failure::Connection(_)) => return Ok(()),
        };
        match offset.filter(|offset| *offset <= self.blob.byte_len()) {
            Some(offset) => {
                let open = self.session.as_mut().expect("it was there above");
                open.offset = offset;
                if let Some(location) = location {
                    open.url = location;
                }
                (self.sent)(offset as i64 - before as i64);
                self.note()
            }
            None => {
                self.forget();
                Ok(())
            }
        }
    }

    /// Whether the blob is there although no answer said so.
    fn arrived_meanwhile(&self) -> Result<bool, Error> {
        let call =
            self.call("HEAD", self.repository.url(&format!("blobs/sha256:{}", self.blob.digest())), &[], Content::None);
        match self.repository.client.once(&call) {
            Ok((response, _)) => Ok(response.status == 200 && response.content_length() == Some(self.blob.byte_len())),
            Err(Failure::Connection(_)) => Ok(false),
            Err(Failure::Final(error)) => Err(error),
        }
    }

    fn refused(&self, call: &Call<'_>, url: &Url, expected: &'static str, response: Response) -> Result<Step, Error> {
        let passing = is_passing(response.status);
        let asked = retry_after(&response);
        let error = self.repository.client.status_error(call, url, expected, response, 1);
        match passing {
            true => Ok(Step::Failed { reason: Reason::Status(error), asked }),
            false => Err(error),
        }
    }

    fn forget(&mut self) {
        if let Some(open) = self.session.take() {
            (self.sent)(-(open.offset as i64));
        }
    }

    fn note(&self) -> Result<(), Error> {
        let session = self.session.as_ref().map(|open| Session { location: open.url.full(), offset: open.offset });
        self.journal.note(self.blob.digest(), session, self.repository.client.limits())
    }

    fn call<'c>(
        &'c self,
        method: &'static str,
        url: Url,
        headers: &'c [(&'c str, &'c str)],
        content: Content<'c>,
    ) -> Call<'c> {
        Call { method, url, scope: &self.scope, operation: &self.operation, headers, content }
    }
}

fn failed(failure: Failure) -> Result<Step, Error> {
    match failure {
        Failure::Final(error) => Err(error),
        Failure::Connection(reason) => Ok(Step::Failed { reason: Reason::Connection(reason), asked: None }),
    }
}

/// Bytes that a `Range: 0-N` tells. Docker's registry says `0-0` of an empty upload, and no chunk of ours has one byte.
fn range_end(text: &str) -> Option<u64> {
    let text = text.trim().strip_prefix("bytes=").unwrap_or(text.trim());
    let (start, last) = text.split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    match (start.trim(), last) {
        ("0", 0) => Some(0),
        ("0", last) => last.checked_add(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_sessions_are_read_and_nonsense_is_not() {
        for (text, end) in [("0-0", Some(0)), ("0-9", Some(10)), (" bytes=0-9", Some(10))] {
            assert_eq!(range_end(text), end);
        }
        for text in ["", "9", "1-9", "0-", "0-x", "0--1", "0-18446744073709551615"] {
            assert_eq!(range_end(text), None, "{text}");
        }
    }
}
