//! Files over HTTP, with ranges: what storage behind a registry does.

use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};

/// A server that ends with the process.
pub struct Files {
    /// Its address, under the name `localhost`.
    pub base: String,
}

impl Files {
    /// Serves what is below `root`.
    pub fn serve(root: PathBuf) -> Result<Files> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let base = format!("http://localhost:{}/", listener.local_addr().context("cannot listen")?.port());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let root = root.clone();
                // Whoever asked sees a connection that breaks.
                std::thread::spawn(move || drop(answer(&root, stream)));
            }
        });
        Ok(Files { base })
    }
}

/// Answers one request, and closes the connection.
fn answer(root: &Path, mut stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).take(16 << 10).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        range = range.or(line.strip_prefix("range: bytes=").and_then(|text| {
            let (first, last) = text.trim().split_once('-')?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()))
        }));
    }
    let path = Path::new(target.split('?').next().unwrap_or_default().trim_start_matches('/'));
    let inside = path.components().all(|component| matches!(component, Component::Normal(_)));
    let Some(mut file) = inside.then(|| File::open(root.join(path)).ok()).flatten() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let len = file.metadata()?.len();
    let (start, end) = range.map_or((0, len), |(first, last)| (first, last.map_or(len, |last| len.min(last + 1))));
    let status = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{len}", end - 1),
        None => "200 OK".to_owned(),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", end - start);
    stream.write_all(head.as_bytes())?;
    if method == "GET" {
        file.seek(SeekFrom::Start(start))?;
        io::copy(&mut file.take(end - start), &mut stream)?;
    }
    Ok(())
}
