//! A read-only registry over an image layout (distribution-spec v1.1, the "pull" and "content discovery" categories).
//!
//! Every repository name serves the same layout: names of an air-gapped site are its own affair. A blob's answer names its
//! own address in `Location`, because `ollama pull` asks a 200 for it; ranges need no authorization, as Ollama sends none.

use crate::Error;
use mlpack_fs::{Operation, Sha256};
use mlpack_oci::{Layout, PackedDocument, Tag, media};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Largest request head read.
const HEAD_LIMIT: usize = 16 << 10;
/// Connections at the same time; further ones are closed.
const CONNECTION_LIMIT: usize = 256;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(60);
/// Tags of one answer.
const TAGS_LIMIT: usize = 10_000;

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    layout: Arc<Layout>,
    listener: TcpListener,
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

/// Ends a [`Server::run`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Stopper {
    /// No further connection is taken, and `run` returns.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // The listener waits for a connection; this is one. Where it fails nobody listens any more.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
    }
}

impl Server {
    /// Listens on an address such as `127.0.0.1:5000`; port 0 for any free one.
    pub fn bind(layout: Layout, address: &str) -> Result<Server, Error> {
        let failed = |e: io::Error| Error::Listen { address: address.to_owned(), reason: crate::http::io_reason(&e) };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Server { layout: Arc::new(layout), listener, address, stopped: Arc::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        Stopper { address: self.address, stopped: Arc::clone(&self.stopped) }
    }

    /// Answers requests until it is stopped, each connection on a thread of its own.
    pub fn run(self) -> Result<(), Error> {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in self.listener.incoming() {
            if self.stopped.load(Ordering::SeqCst) {
                return Ok(());
            }
            // A connection that broke before it was taken is the other side's affair.
            let Ok(stream) = stream else { continue };
            if open.fetch_add(1, Ordering::SeqCst) >= CONNECTION_LIMIT {
                open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (layout, open) = (Arc::clone(&self.layout), Arc::clone(&open));
            std::thread::spawn(move || {
                // Whoever asked has gone: there is nobody to tell.
                drop(converse(&layout, stream));
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
        Ok(())
    }
}

/// A request, as far as it matters here.
struct Request {
    method: String,
    target: String,
    host: String,
    accept: Vec<String>,
    range: Option<String>,
    closes: bool,
}

/// An answer.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Content,
}

enum Content {
    Bytes(Vec<u8>),
    File(File, Range<u64>),
}

/// Answers the requests of a connection one after the other.
fn converse(layout: &Layout, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let Some((request, used)) = read_head(&mut stream, &mut buffer)? else { return Ok(()) };
        buffer.drain(..used);
        let answer = match &request {
            Ok(request) => answer(layout, request),
            Err(status) => refusal(*status, "UNSUPPORTED", "the request cannot be read"),
        };
        let head = matches!(&request, Ok(request) if request.method == "HEAD");
        let closes = request.as_ref().is_ok_and(|request| request.closes) || request.is_err();
        send(&mut stream, answer, head, closes)?;
        if closes {
            return Ok(());
        }
    }
}

/// The next head, or a status for one that cannot be read, with its length; `None` at the end of the connection.
fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(Result<Request, u16>, usize)>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(used)) => return Ok(Some((Ok(request(&parsed)), used))),
            Ok(httparse::Status::Partial) if buffer.len() > HEAD_LIMIT => return Ok(Some((Err(431), 0))),
            Ok(httparse::Status::Partial) => {}
            Err(_) => return Ok(Some((Err(400), 0))),
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Ok(None),
            n => buffer.extend_from_slice(&piece[..n]),
        }
    }
}

fn request(parsed: &httparse::Request<'_, '_>) -> Request {
    let all = |name: &str| {
        let named = parsed.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).collect::<Vec<_>>();
        named.into_iter().filter_map(|h| std::str::from_utf8(h.value).ok()).map(str::to_owned).collect::<Vec<_>>()
    };
    let one = |name: &str| all(name).into_iter().next();
    // A body is no part of reading; what follows it could not be told from the next request.
    let body = one("transfer-encoding").is_some() || one("content-length").is_some_and(|len| len.trim() != "0");
    let accept = all("accept").iter().flat_map(|value| value.split(',')).map(media_type).collect();
    Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        host: one("host").unwrap_or_default(),
        accept,
        range: one("range"),
        closes: body
            || parsed.version == Some(0)
            || one("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    }
}

fn media_type(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn send(stream: &mut TcpStream, answer: Answer, head: bool, closes: bool) -> io::Result<()> {
    let len = match &answer.body {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::File(_, range) => range.end - range.start,
    };
    let mut text = format!("HTTP/1.1 {} {}\r\n", answer.status, phrase(answer.status));
    text.push_str("Docker-Distribution-Api-Version: registry/2.0\r\n");
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {len}\r\n"));
    if closes {
        text.push_str("Connection: close\r\n");
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())?;
    match answer.body {
        _ if head => Ok(()),
        Content::Bytes(bytes) => stream.write_all(&bytes),
        Content::File(mut file, range) => {
            file.seek(SeekFrom::Start(range.start))?;
            // From file to socket inside the kernel.
            match io::copy(&mut file.take(range.end - range.start), stream)? {
                sent if sent == range.end - range.start => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        _ => "Internal Server Error",
    }
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string().into_bytes();
    Answer { status, headers: vec![("Content-Type", "application/json".to_owned())], body: Content::Bytes(body) }
}

fn document(status: u16, media_type: &str, bytes: Vec<u8>) -> Answer {
    Answer { status, headers: vec![("Content-Type", media_type.to_owned())], body: Content::Bytes(bytes) }
}

fn answer(layout: &Layout, request: &Request) -> Answer {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return refusal(405, "UNSUPPORTED", "this registry is read-only");
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let unknown = || refusal(404, "NAME_UNKNOWN", "no such address");
    if matches!(path, "/v2/" | "/v2") {
        return document(200, "application/json", b"{}".to_vec());
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return unknown() };
    // The last component is the name of a thing, the one before it its kind; a repository may have any number of them.
    let mut parts = rest.rsplitn(3, '/');
    let (Some(name), Some(kind), Some(repository)) = (parts.next(), parts.next(), parts.next()) else {
        return unknown();
    };
    let found = match (kind, name) {
        ("manifests", name) => manifest(layout, name, &request.accept),
        ("blobs", name) => blob(layout, name, request, repository),
        ("tags", "list") => tags(layout, repository, query),
        ("referrers", name) => referrers(layout, name, query),
        _ => return unknown(),
    };
    // What is wrong with the layout is for those who run the server; its message has paths.
    found.unwrap_or_else(|_| refusal(500, "UNKNOWN", "the image layout cannot be read"))
}

fn digest_of(text: &str) -> Option<Sha256> {
    text.strip_prefix("sha256:")?.parse().ok()
}

fn manifest(layout: &Layout, name: &str, accept: &[String]) -> Result<Answer, mlpack_oci::Error> {
    let unknown = || Ok(refusal(404, "MANIFEST_UNKNOWN", "no such manifest, or none of the accepted types"));
    let descriptor = match digest_of(name) {
        Some(digest) => match layout.find_document(&digest)? {
            Some(descriptor) => descriptor,
            None => return unknown(),
        },
        None => {
            let Ok(tag) = name.parse::<Tag>() else { return unknown() };
            let all = layout.tags()?;
            let find = |wanted: &str| all.iter().find(|(tag, _)| tag.as_deref() == Some(wanted)).map(|(_, d)| d);
            let takes = |media_type: &str| {
                accept.is_empty() || accept.iter().any(|a| a == media_type || a == "*/*" || a == "application/*")
            };
            // Ollama asks for Docker's manifest alone; it gets the one that was published for it.
            let own = find(tag.as_str()).filter(|d| takes(d.media_type().as_ref()));
            let other = || find(&format!("{tag}-ollama")).filter(|d| takes(d.media_type().as_ref()));
            match own.or_else(other) {
                Some(descriptor) => descriptor.clone(),
                None => return unknown(),
            }
        }
    };
    let bytes = layout.read_bytes(&descriptor)?;
    let mut answer = document(200, descriptor.media_type().as_ref(), bytes);
    answer.headers.push(("Docker-Content-Digest", descriptor.digest().to_string()));
    Ok(answer)
}

fn blob(layout: &Layout, name: &str, request: &Request, repository: &str) -> Result<Answer, mlpack_oci::Error> {
    let unknown = || Ok(refusal(404, "BLOB_UNKNOWN", "no such blob"));
    let Some(digest) = digest_of(name) else { return unknown() };
    let path = layout.blob_path(&digest);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return unknown(),
        Err(e) => return Err(mlpack_fs::Error::io(Operation::Open, path, e).into()),
    };
    let byte_len = file.metadata().map_err(|e| mlpack_fs::Error::io(Operation::Read, path, e))?.len();
    let mut headers = vec![
        ("Content-Type", "application/octet-stream".to_owned()),
        ("Docker-Content-Digest", name.to_owned()),
        ("Accept-Ranges", "bytes".to_owned()),
    ];
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if plain(&request.host) && plain(repository) {
        headers.push(("Location", format!("http://{}/v2/{repository}/blobs/{name}", request.host)));
    }
    let range = match request.range.as_deref().map(|text| parse_range(text, byte_len)) {
        None | Some(Asked::Everything) => None,
        Some(Asked::Range(range)) => Some(range),
        Some(Asked::Nothing) => {
            let mut answer = refusal(416, "RANGE_INVALID", "the blob ends before the range");
            answer.headers.push(("Content-Range", format!("bytes */{byte_len}")));
            return Ok(answer);
        }
    };
    let status = match &range {
        Some(range) => {
            headers.push(("Content-Range", format!("bytes {}-{}/{byte_len}", range.start, range.end - 1)));
            206
        }
        None => 200,
    };
    Ok(Answer { status, headers, body: Content::File(file, range.unwrap_or(0..byte_len)) })
}

/// What a `Range` header asks for (RFC 9110, 14.2). What is not one range of bytes is passed over, as the RFC has it.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Everything,
    Range(Range<u64>),
    Nothing,
}

fn parse_range(text: &str, byte_len: u64) -> Asked {
    let parsed = || {
        let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        Some(match (first.trim(), last.trim()) {
            ("", suffix) => {
                let suffix: u64 = suffix.parse().ok()?;
                byte_len.saturating_sub(suffix)..if suffix == 0 { 0 } else { byte_len }
            }
            (first, "") => first.parse().ok()?..byte_len,
            (first, last) => {
                let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                if last < first {
                    return None;
                }
                first..last.saturating_add(1).min(byte_len)
            }
        })
    };
    match parsed() {
        None => Asked::Everything,
        Some(range) if range.start < range.end => Asked::Range(range),
        Some(_) => Asked::Nothing,
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

fn tags(layout: &Layout, repository: &str, query: &str) -> Result<Answer, mlpack_oci::Error> {
    let mut names: Vec<String> = layout.tags()?.into_iter().filter_map(|(tag, _)| tag).collect();
    names.sort();
    names.dedup();
    if let Some(last) = parameter(query, "last") {
        names.retain(|name| name.as_str() > last);
    }
    let limit = parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(TAGS_LIMIT).min(TAGS_LIMIT);
    let more = names.len() > limit;
    names.truncate(limit);
    let bytes = json!({"name": repository, "tags": names}).to_string().into_bytes();
    let mut answer = document(200, "application/json", bytes);
    if let (true, Some(last)) = (more, names.last()) {
        answer.headers.push(("Link", format!("</v2/{repository}/tags/list?n={limit}&last={last}>; rel=\"next\"")));
    }
    Ok(answer)
}

fn referrers(layout: &Layout, name: &str, query: &str) -> Result<Answer, mlpack_oci::Error> {
    let Some(subject) = digest_of(name) else { return Ok(refusal(400, "DIGEST_INVALID", "not a sha256 digest")) };
    let wanted = parameter(query, "artifactType").map(|text| text.replace("%2F", "/").replace("%2B", "+"));
    let mut found: Vec<Value> = Vec::new();
    for (_, descriptor) in layout.tags()? {
        if descriptor.media_type().to_string() != media::IMAGE_MANIFEST {
            continue;
        }
        let bytes = layout.read_bytes(&descriptor)?;
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let about = manifest.get("subject").and_then(|s| s.get("digest")).and_then(Value::as_str).and_then(digest_of);
        let Some(digest) = digest_of(descriptor.digest().as_ref()).filter(|_| about == Some(subject)) else { continue };
        let media_type = media::IMAGE_MANIFEST.to_owned();
        let entry = crate::referrers::descriptor(&PackedDocument { media_type, digest, bytes, subject: about });
        let of_type = |wanted: &String| entry.get("artifactType").and_then(Value::as_str) == Some(wanted);
        if wanted.as_ref().is_none_or(of_type) && !found.contains(&entry) {
            found.push(entry);
        }
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": found});
    let mut answer = document(200, media::IMAGE_INDEX, index.to_string().into_bytes());
    if wanted.is_some() {
        answer.headers.push(("OCI-Filters-Applied", "artifactType".to_owned()));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        for (text, asked) in [
            ("bytes=0-9", Asked::Range(0..10)),
            ("bytes=90-", Asked::Range(90..100)),
            ("bytes=-10", Asked::Range(90..100)),
            ("bytes=-1000", Asked::Range(0..100)),
            ("bytes=90-1000", Asked::Range(90..100)),
            ("bytes=100-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=5-4", Asked::Everything),
            ("bytes=0-1,3-4", Asked::Everything),
            ("lines=0-1", Asked::Everything),
        ] {
            assert_eq!(parse_range(text, 100), asked, "{text}");
        }
    }
}
