//! One registry: requests with authentication, redirects and retries; manifests and the presence of blobs.

use crate::auth::Auth;
use crate::http::{Content, Failure, Http, Response, io_reason};
use crate::limits::Limits;
use crate::retry::{Retry, http_date};
use crate::url::Url;
use crate::{Credentials, Error};
use mlpack_fs::Sha256;
use mlpack_oci::{Tag, media};
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Largest manifest or index taken: what the distribution spec asks registries to take at least.
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;
/// Redirects followed one after the other.
const REDIRECT_LIMIT: usize = 5;
/// Most of an error's text that is read.
const DETAIL_LIMIT: u64 = 16 << 10;

/// How a client behaves.
#[derive(Clone)]
pub struct Options {
    /// Speak http instead of https.
    pub plain_http: bool,
    /// Files with further certificate authorities, in PEM.
    pub ca_files: Vec<PathBuf>,
    /// Tries after the first one, without progress in between.
    pub retries: u32,
    /// Transfers at the same time.
    pub connections: usize,
    /// How long nothing may come or go before a connection counts as lost.
    pub idle: Duration,
    /// Bytes of one part of an upload, instead of what is known about the registry.
    pub chunk_len: Option<u64>,
    /// What the client calls itself.
    pub user_agent: String,
    /// Waits between tries.
    pub pause: Arc<dyn Fn(Duration) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            plain_http: false,
            ca_files: Vec::new(),
            retries: 6,
            connections: 4,
            idle: Duration::from_secs(60),
            chunk_len: None,
            user_agent: concat!("mlpack/", env!("CARGO_PKG_VERSION")).to_owned(),
            pause: Arc::new(std::thread::sleep),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("plain_http", &self.plain_http)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// A registry, with what is known about it.
#[derive(Debug)]
pub struct Client {
    base: Url,
    http: Http,
    auth: Auth,
    pub(crate) retry: Retry,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) connections: usize,
}

/// A name in a registry under which manifests and blobs are.
#[derive(Clone, Debug)]
pub struct Repository<'a> {
    pub(crate) client: &'a Client,
    name: String,
}

/// A manifest or an index as the registry has it, checked against its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Sha256,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A request that may be made more than once.
pub(crate) struct Call<'a> {
    pub method: &'static str,
    pub url: Url,
    pub scope: &'a str,
    /// What is attempted, for messages: "push blob sha256:…".
    pub operation: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub content: Content<'a>,
}

impl Client {
    /// A client of the registry at `host` (`HOST[:PORT]`). Nothing is sent yet.
    pub fn new(host: &str, options: Options, credentials: Option<Credentials>) -> Result<Client, Error> {
        let scheme = if options.plain_http { "http" } else { "https" };
        // Docker's own registry answers at another name than images have.
        let host = if matches!(host, "docker.io" | "index.docker.io") { "registry-1.docker.io" } else { host };
        let base = Url::parse(&format!("{scheme}://{host}/")).ok_or_else(|| Error::Unreachable {
            url: format!("{scheme}://{}", host.split('@').next_back().unwrap_or_default()),
            reason: "the address cannot be used".to_owned(),
            tries: 0,
        })?;
        let mut limits = Limits::of_host(base.host());
        if let Some(chunk) = options.chunk_len {
            limits = Limits { chunk: chunk.max(1), monolithic: false };
        }
        Ok(Client {
            http: Http::new(&options)?,
            auth: Auth::new(credentials),
            retry: Retry { limit: options.retries, pause: Arc::clone(&options.pause) },
            limits: Mutex::new(limits),
            connections: options.connections.max(1),
            base,
        })
    }

    /// Host and port, as they are reached.
    pub fn host(&self) -> &str {
        &self.base.authority
    }

    /// A repository of this registry.
    pub fn repository(&self, name: &str) -> Repository<'_> {
        Repository { client: self, name: name.to_owned() }
    }

    /// Makes a request once: with authentication, which may take a second one, and following redirects. Returns the answer and
    /// the address that gave it.
    pub(crate) fn once(&self, call: &Call<'_>) -> Result<(Response, Url), Failure> {
        let mut url = call.url.clone();
        let mut answered = false;
        let mut redirects = 0;
        loop {
            let ours = url.same_origin(&self.base);
            let authorization = if ours { self.auth.header(call.scope) } else { None };
            let mut headers: Vec<(&str, &str)> = call.headers.to_vec();
            headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
            let response = self.http.send(call.method, &url, &headers, &call.content)?;
            match response.status {
                401 if ours && !answered => {
                    answered = true;
                    if !self.auth.answer(&self.http, &self.base, &response, call.scope, authorization.as_deref())? {
                        return Ok((response, url));
                    }
                    response.drain();
                }
                301 | 302 | 303 | 307 | 308 => {
                    // A method with a body goes on only where the answer says that the method stays.
                    let goes_on = matches!(call.method, "GET" | "HEAD") || matches!(response.status, 307 | 308);
                    let Some(location) = response.header("location").filter(|_| goes_on) else {
                        return Ok((response, url));
                    };
                    let Some(next) = url.follow(location) else {
                        let found = "a redirect to an address that cannot be used".to_owned();
                        let expected = "an http(s) address, and https after https";
                        return Err(self.protocol(call, &url, expected, found).into());
                    };
                    redirects += 1;
                    if redirects > REDIRECT_LIMIT {
                        let (operation, url) = (call.operation.to_owned(), call.url.to_string());
                        return Err(Error::Redirects { operation, url, limit: REDIRECT_LIMIT }.into());
                    }
                    response.drain();
                    url = next;
                }
                _ => return Ok((response, url)),
            }
        }
    }

    /// Makes a request until it gives an answer that is final; `wanted` says which statuses are right, and any other
    /// that is final is an error.
    pub(crate) fn send(
        &self,
        call: &Call<'_>,
        expected: &'static str,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<(Response, Url), Error> {
        let mut attempts = self.retry.attempts();
        loop {
            match self.once(call) {
                Ok((response, url)) if wanted(response.status) => return Ok((response, url)),
                Ok((response, url)) if is_passing(response.status) => {
                    let asked = retry_after(&response);
                    let failed = attempts.failed();
                    if !attempts.again(asked) {
                        return Err(self.status_error(call, &url, expected, response, failed + 1));
                    }
                }
                Ok((response, url)) => return Err(self.status_error(call, &url, expected, response, 1)),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Connection(reason)) => {
                    let failed = attempts.failed();
                    if is_hopeless(&reason) || !attempts.again(None) {
                        return Err(self.unreachable(&call.url, reason, failed + 1));
                    }
                }
            }
        }
    }

    pub(crate) fn unreachable(&self, url: &Url, reason: String, tries: u32) -> Error {
        Error::Unreachable { url: url.to_string(), reason: self.auth.redact(&reason), tries }
    }

    pub(crate) fn protocol(&self, call: &Call<'_>, url: &Url, expected: &'static str, found: String) -> Error {
        let found = self.auth.redact(&found);
        Error::Protocol { operation: call.operation.to_owned(), url: url.to_string(), expected, found }
    }

    /// The error of a status that ends the work, with the registry's own words.
    pub(crate) fn status_error(
        &self,
        call: &Call<'_>,
        url: &Url,
        expected: &'static str,
        response: Response,
        tries: u32,
    ) -> Error {
        let (operation, status) = (call.operation.to_owned(), response.status);
        if matches!(status, 401 | 403) && url.same_origin(&self.base) {
            response.drain();
            return Error::Unauthorized {
                operation,
                url: url.to_string(),
                status,
                credentials: self.auth.has_credentials(),
            };
        }
        let bytes = response.bytes(DETAIL_LIMIT).ok().flatten().unwrap_or_default();
        let detail = self.auth.redact(&detail(&bytes));
        Error::Status { operation, url: url.to_string(), expected, status, detail, tries }
    }
}

/// `{"errors":[{"code":"DENIED","message":"…"}]}` as "DENIED: …"; nothing of what is no such document.
fn detail(bytes: &[u8]) -> String {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let errors = value.get("errors").and_then(Value::as_array);
    let words = errors.into_iter().flatten().take(3).map(|error| {
        let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
        format!("{}: {}", text("code"), text("message"))
    });
    words.collect::<Vec<_>>().join("; ")
}

/// Statuses that may be others the next time.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 507..=599)
}

/// `Retry-After`: seconds, or a date, which counts from the answer's own.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.header("retry-after")?.trim();
    let seconds = text.parse().ok().or_else(|| {
        let from = response.header("date").and_then(http_date)?;
        Some(http_date(text)?.saturating_sub(from))
    });
    seconds.map(Duration::from_secs)
}

/// Failures of a connection that no other try mends.
fn is_hopeless(reason: &str) -> bool {
    reason.starts_with("TLS:") || reason == "the address cannot be used"
}

impl fmt::Display for Repository<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.client.host(), self.name)
    }
}

impl Repository<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self, rest: &str) -> Url {
        let path_and_query = format!("/v2/{}/{rest}", self.name);
        Url { path_and_query, ..self.client.base.clone() }
    }

    pub(crate) fn pull_scope(&self) -> String {
        format!("repository:{}:pull", self.name)
    }

    pub(crate) fn push_scope(&self) -> String {
        format!("repository:{}:pull,push", self.name)
    }

    /// The length of a blob, or `None` when the repository does not have it.
    pub fn blob_len(&self, digest: &Sha256) -> Result<Option<u64>, Error> {
        self.blob_len_as(digest, &self.pull_scope())
    }

    pub(crate) fn blob_len_as(&self, digest: &Sha256, scope: &str) -> Result<Option<u64>, Error> {
        let call = Call {
            method: "HEAD",
            url: self.url(&format!("blobs/sha256:{digest}")),
            scope,
            operation: &format!("look for blob sha256:{digest}"),
            headers: &[],
            content: Content::None,
        };
        let (response, url) = self.client.send(&call, "200 or 404", |status| matches!(status, 200 | 404))?;
        if response.status == 404 {
            return Ok(None);
        }
        match response.content_length() {
            Some(len) => Ok(Some(len)),
            None => Err(self.client.protocol(&call, &url, "a Content-Length", "none".to_owned())),
        }
    }

    /// A small blob, such as a config, checked against its digest.
    pub fn small_blob(&self, digest: &Sha256) -> Result<Vec<u8>, Error> {
        let scope = self.pull_scope();
        let call = Call {
            method: "GET",
            url: self.url(&format!("blobs/sha256:{digest}")),
            scope: &scope,
            operation: &format!("pull blob sha256:{digest} of `{self}`"),
            headers: &[],
            content: Content::None,
        };
        let (response, url) = self.client.send(&call, "200", |status| status == 200)?;
        let bytes = match response.bytes(MANIFEST_LIMIT) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let (operation, url) = (call.operation.to_owned(), url.to_string());
                return Err(Error::TooLarge { operation, url, limit: MANIFEST_LIMIT });
            }
            Err(e) => return Err(self.client.unreachable(&url, io_reason(&e), 1)),
        };
        match Sha256::of(&bytes) {
            found if found == *digest => Ok(bytes),
            found => {
                let (operation, url) = (call.operation.to_owned(), url.to_string());
                Err(Error::WrongDigest { operation, url, expected: *digest, found })
            }
        }
    }

    /// A manifest or an index: by its tag, or by its digest. Its bytes have the digest that the registry and the caller name.
    pub fn document(&self, tag: Option<&Tag>, digest: Option<&Sha256>) -> Result<Document, Error> {
        let name = match (digest, tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, Some(tag)) => tag.to_string(),
            (None, None) => "latest".to_owned(),
        };
        self.document_named(&name, digest)
    }

    pub(crate) fn document_named(&self, name: &str, digest: Option<&Sha256>) -> Result<Document, Error> {
        let accept = [media::IMAGE_INDEX, media::IMAGE_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST].join(", ");
        let scope = self.pull_scope();
        let call = Call {
            method: "GET",
            url: self.url(&format!("manifests/{name}")),
            scope: &scope,
            operation: &format!("pull manifest `{name}` of `{self}`"),
            headers: &[("accept", &accept)],
            content: Content::None,
        };
        let mut attempts = self.client.retry.attempts();
        let (bytes, url, header, stated) = loop {
            let (response, url) = self.client.send(&call, "200", |status| status == 200)?;
            let media_type = response.header("content-type").unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            let stated = response.header("docker-content-digest").and_then(|d| d.strip_prefix("sha256:")?.parse().ok());
            match response.bytes(MANIFEST_LIMIT) {
                Ok(Some(bytes)) => break (bytes, url, media_type, stated),
                Ok(None) => {
                    let (operation, url) = (call.operation.to_owned(), url.to_string());
                    return Err(Error::TooLarge { operation, url, limit: MANIFEST_LIMIT });
                }
                Err(e) => {
                    let failed = attempts.failed();
                    if !attempts.again(None) {
                        return Err(self.client.unreachable(&url, io_reason(&e), failed + 1));
                    }
                }
            }
        };
        let found = Sha256::of(&bytes);
        if let Some(&expected) = digest.or(stated.as_ref()).filter(|expected| **expected != found) {
            let (operation, url) = (call.operation.to_owned(), url.to_string());
            return Err(Error::WrongDigest { operation, url, expected, found });
        }
        // The document's own word counts for more than the header's.
        let own: Option<Value> = serde_json::from_slice(&bytes).ok();
        let own = own.as_ref().and_then(|v| v.get("mediaType")).and_then(Value::as_str).map(str::to_owned);
        Ok(Document { media_type: own.unwrap_or(header), digest: found, bytes })
    }

    /// Puts a manifest or an index under a name, its digest or a tag. The blobs and manifests that it names must be there.
    /// Returns whether the registry took note of its `subject`.
    pub(crate) fn put_document(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<bool, Error> {
        let expected = Sha256::of(bytes);
        let scope = self.push_scope();
        let call = Call {
            method: "PUT",
            url: self.url(&format!("manifests/{name}")),
            scope: &scope,
            operation: &format!("push manifest `{name}` to `{self}`"),
            headers: &[("content-type", media_type)],
            content: Content::Bytes(bytes),
        };
        let (response, url) = self.client.send(&call, "201", |status| matches!(status, 200..=202))?;
        let subject = response.header("oci-subject").is_some();
        let stated = response.header("docker-content-digest").and_then(|d| d.strip_prefix("sha256:")?.parse().ok());
        response.drain();
        match stated {
            Some(found) if found != expected => {
                Err(Error::WrongDigest { operation: call.operation.to_owned(), url: url.to_string(), expected, found })
            }
            _ => Ok(subject),
        }
    }
}
