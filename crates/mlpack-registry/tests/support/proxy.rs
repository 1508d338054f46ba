//! An HTTP proxy that breaks things on purpose, one request a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// It goes through.
    Pass,
    /// It goes through, and its answer gets another status.
    PassAs(u16),
    /// The body is read, and this is the answer: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Without reading the body.
    AnswerAtOnce(u16, Vec<(&'static str, String)>),
    /// So many bytes of the body go through, then both sides are cut.
    DropBody(u64),
    /// The connection is closed before anything.
    Drop,
    /// The request's header of that name is taken out.
    Without(&'static str),
    /// The answer's body ends after so many bytes.
    Truncate(u64),
    /// A byte of the answer's body is another one.
    Corrupt(u64),
    /// The answer stands still after so many bytes of its body, until the test ends.
    Stall(u64),
    /// The process that asked is killed after so many bytes of its body, or, when all of that went through, of the answer's.
    Kill { pid: u32, after: u64 },
}

/// A request as the proxy saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body_len: u64,
    /// Whether it reached the registry whole.
    pub passed: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

type Script = Box<dyn FnMut(&Seen) -> Act + Send>;

pub struct Proxy {
    pub host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy before `upstream`; the script says what happens to each request.
    pub fn start(upstream: &str, script: impl FnMut(&Seen) -> Act + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let ended: Arc<AtomicBool> = Arc::default();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let (log, stop, upstream) = (Arc::clone(&seen), Arc::clone(&ended), upstream.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (log, script, stop, upstream) =
                    (Arc::clone(&log), Arc::clone(&script), Arc::clone(&stop), upstream.clone());
                std::thread::spawn(move || drop(relay(stream, &upstream, &script, &log, &stop)));
            }
        });
        Proxy { host, seen, ended }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests of a method.
    pub fn of(&self, method: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|s| s.method == method).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.host));
    }
}

/// The process may have ended by itself.
fn kill(pid: u32) {
    drop(Command::new("kill").args(["-9", &pid.to_string()]).output().unwrap());
}

fn read_head(stream: &mut TcpStream) -> io::Result<Option<(Vec<String>, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            return Ok(Some((head.split("\r\n").map(str::to_owned).collect(), bytes.split_off(end + 4))));
        }
        match stream.read(&mut piece)? {
            0 => return Ok(None),
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
}

fn relay(
    mut client: TcpStream,
    upstream: &str,
    script: &Mutex<Script>,
    log: &Mutex<Vec<Seen>>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let Some((lines, early)) = read_head(&mut client)? else { return Ok(()) };
    let mut words = lines[0].split(' ');
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let headers: Vec<(String, String)> =
        lines[1..].iter().filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let mut seen = Seen { method, target, headers, body_len: 0, passed: false };
    let len: u64 = seen.header("content-length").map_or(0, |v| v.parse().unwrap());
    let expects = seen.header("expect").is_some();
    let act = (script.lock().unwrap())(&seen);
    let answer = |client: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &[u8], full: u64| {
        let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {full}\r\n");
        headers.iter().for_each(|(n, v)| text.push_str(&format!("{n}: {v}\r\n")));
        client.write_all(format!("{text}\r\n").as_bytes())?;
        client.write_all(body)
    };
    match &act {
        Act::Drop => {
            log.lock().unwrap().push(seen);
            return client.shutdown(Shutdown::Both);
        }
        Act::AnswerAtOnce(status, headers) => {
            log.lock().unwrap().push(seen);
            answer(&mut client, *status, headers, b"", 0)?;
            // A connection that is closed with bytes unread is reset, and the answer with it may never be seen.
            client.shutdown(Shutdown::Write)?;
            return io::copy(&mut (&client).take(len), &mut io::sink()).map(drop);
        }
        _ => {}
    }
    if expects {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if let Act::Answer(status, headers, body) = &act {
        io::copy(&mut (&client).take(len - early.len() as u64), &mut io::sink())?;
        seen.body_len = len;
        log.lock().unwrap().push(seen);
        return answer(&mut client, *status, headers, body, body.len() as u64);
    }
    let mut server = TcpStream::connect(upstream)?;
    let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", seen.method, seen.target);
    for (name, value) in &seen.headers {
        let lower = name.to_ascii_lowercase();
        let hidden = matches!(&act, Act::Without(header) if lower == *header);
        if !hidden && !matches!(lower.as_str(), "connection" | "expect") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    server.write_all(format!("{head}\r\n").as_bytes())?;
    let through = match &act {
        Act::DropBody(limit) => len.min(*limit),
        Act::Kill { after, .. } => len.min(*after),
        _ => len,
    };
    let mut body = early.chain(&client).take(through);
    seen.body_len = io::copy(&mut body, &mut server)?;
    let cut = matches!(act, Act::DropBody(_)) || matches!(act, Act::Kill { .. } if through < len);
    seen.passed = !cut && seen.body_len == len;
    log.lock().unwrap().push(seen);
    if cut {
        if let Act::Kill { pid, .. } = &act {
            kill(*pid);
        }
        server.shutdown(Shutdown::Both)?;
        return client.shutdown(Shutdown::Both);
    }
    let Some((lines, early)) = read_head(&mut server)? else { return client.shutdown(Shutdown::Both) };
    if let Act::Kill { pid, after } = &act
        && *after == len
    {
        // The registry has done what was asked, and nobody learns of it.
        kill(*pid);
        return client.shutdown(Shutdown::Both);
    }
    let status: u16 = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    let status = if let Act::PassAs(other) = &act { *other } else { status };
    let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    lines[1..].iter().filter(|l| !l.to_ascii_lowercase().starts_with("connection")).for_each(|l| {
        text.push_str(l);
        text.push_str("\r\n");
    });
    client.write_all(format!("{text}\r\n").as_bytes())?;
    let mut body = early.chain(server);
    match act {
        Act::Truncate(limit) => {
            io::copy(&mut body.take(limit), &mut client)?;
        }
        Act::Stall(limit) => {
            io::copy(&mut body.by_ref().take(limit), &mut client)?;
            // Until the other side has enough of waiting.
            while !ended.load(Ordering::SeqCst) && client.read(&mut [0; 64])? > 0 {}
        }
        Act::Kill { pid, after } => {
            io::copy(&mut body.take(after - len), &mut client)?;
            kill(pid);
        }
        Act::Corrupt(at) => {
            io::copy(&mut body.by_ref().take(at), &mut client)?;
            let mut byte = [0];
            if body.read(&mut byte)? == 1 {
                client.write_all(&[byte[0] ^ 1])?;
            }
            io::copy(&mut body, &mut client)?;
        }
        _ => {
            io::copy(&mut body, &mut client)?;
        }
    }
    client.shutdown(Shutdown::Both)
}
