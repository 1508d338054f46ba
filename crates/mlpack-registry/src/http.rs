//! One request and its answer, over `ureq`. No redirect is followed and no status is an error here.

use crate::url::Url;
use crate::{Error, Options};
use mlpack_oci::{Blob, BlobReader};
use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;
use ureq::http::{HeaderMap, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, AsSendBody, Body, RequestExt as _, SendBody};

/// Bytes of buffer on each side of a connection.
const BUFFER_LEN: usize = 256 << 10;
/// Bodies from this length on ask first whether they may come.
const EXPECT_LEN: u64 = 1 << 20;
/// Largest certificate file read.
const PEM_LIMIT: u64 = 16 << 20;
/// An answer's body that is read to its end, to keep the connection.
const DRAIN_LEN: u64 = 64 << 10;

/// Connections and how they are made.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    idle: Duration,
}

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Content<'a> {
    None,
    Bytes(&'a [u8]),
    /// A range of a blob; bytes are told as they go out.
    Blob {
        blob: &'a Blob,
        range: Range<u64>,
        sent: &'a (dyn Fn(i64) + Sync),
    },
}

/// Why there is no answer.
pub(crate) enum Failure {
    /// The connection: worth another try.
    Connection(String),
    /// Nothing that another try would mend.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

/// An answer whose body is not read yet.
pub(crate) struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    body: Body,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The body as it comes.
    pub fn reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// The whole body, or `None` when it is larger than the limit. A length that is announced is believed only to refuse.
    pub fn bytes(self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        if self.content_length().is_some_and(|len| len > limit) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.body.into_reader().take(limit + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= limit).then_some(bytes))
    }

    /// Reads what is left of a short body, so that its connection serves the next request.
    pub fn drain(self) {
        // What cannot be read costs a connection and nothing else.
        drop(io::copy(&mut self.body.into_reader().take(DRAIN_LEN), &mut io::sink()));
    }
}

impl Http {
    pub fn new(options: &Options) -> Result<Http, Error> {
        let tls = TlsConfig::builder().root_certs(roots(options)?).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls)
            .accept_encoding("identity")
            .user_agent(options.user_agent.clone())
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_per_write(Some(options.idle))
            .input_buffer_size(BUFFER_LEN)
            .output_buffer_size(BUFFER_LEN)
            .max_idle_connections(16)
            .max_idle_connections_per_host(16)
            .build();
        Ok(Http { agent: config.new_agent(), idle: options.idle })
    }

    /// Makes one request.
    pub fn send(
        &self,
        method: &'static str,
        url: &Url,
        headers: &[(&str, &str)],
        content: &Content<'_>,
    ) -> Result<Response, Failure> {
        let mut request = Request::builder().method(method).uri(url.full());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // A registry takes its time to finish a blob of many gigabytes.
        let patience = if method == "PUT" { self.idle * 10 } else { self.idle };
        match content {
            Content::None if matches!(method, "PUT" | "POST" | "PATCH") => self.run(request.body(&[][..]), patience),
            Content::None => self.run(request.body(()), patience),
            Content::Bytes(bytes) => self.run(request.body(*bytes), patience),
            Content::Blob { blob, range, sent } => {
                let len = range.end - range.start;
                request = request.header("content-length", len);
                if len >= EXPECT_LEN {
                    request = request.header("expect", "100-continue");
                }
                let mut source =
                    Source { reader: blob.reader(range.clone()).map_err(Error::from)?, sent: *sent, failed: None };
                let answer = self.run(request.body(SendBody::from_reader(&mut source)), patience);
                match source.failed {
                    Some(e) => Err(Failure::Final(blob.read_error(e).into())),
                    None => answer,
                }
            }
        }
    }

    fn run<B: AsSendBody>(
        &self,
        request: Result<Request<B>, ureq::http::Error>,
        patience: Duration,
    ) -> Result<Response, Failure> {
        let request = request.map_err(|e| Failure::Connection(e.to_string()))?;
        let answer = request.with_agent(&self.agent).configure().timeout_per_read(Some(patience)).run();
        let (parts, body) = answer.map_err(|e| Failure::Connection(reason(&e)))?.into_parts();
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

/// A failure in words, without an address: it may hold a secret.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(e) => io_reason(e),
        ureq::Error::Timeout(_) => "nothing came for too long".to_owned(),
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => "the address cannot be used".to_owned(),
        ureq::Error::Rustls(e) => format!("TLS: {e}"),
        e => e.to_string(),
    }
}

/// The same for a body that breaks off.
pub(crate) fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map(|first| format!("{}{}", first.to_lowercase(), chars.as_str())).unwrap_or_default()
}

/// The blob's bytes on their way; remembers an error of our own side.
struct Source<'a> {
    reader: BlobReader<'a>,
    sent: &'a (dyn Fn(i64) + Sync),
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(n) => {
                (self.sent)(n as i64);
                Ok(n)
            }
            Err(e) => {
                let kind = e.kind();
                self.failed = Some(e);
                Err(kind.into())
            }
        }
    }
}

/// The authorities to trust: the system's and those of the given files; a list that comes with the program where the
/// system has none.
fn roots(options: &Options) -> Result<RootCerts, Error> {
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    for path in &options.ca_files {
        let pem = mlpack_fs::read_bounded(path, PEM_LIMIT)?;
        let bad = |found: String| Error::Certificates { path: path.clone(), found };
        let before = roots.len();
        for item in parse_pem(&pem) {
            match item.map_err(|e| bad(e.to_string()))? {
                PemItem::Certificate(certificate) => roots.push(certificate),
                _ => return Err(bad("something that is no certificate".to_owned())),
            }
        }
        if roots.len() == before {
            return Err(bad("no certificate".to_owned()));
        }
    }
    let system = rustls_native_certs::load_native_certs().certs;
    if system.is_empty() && roots.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    roots.extend(system.iter().map(|der| Certificate::from_der(der).to_owned()));
    Ok(RootCerts::new_with_certs(&roots))
}
