//! Archives: those of strangers into a folder (regular files and directories, inside the folder, within limits), and ours
//! of a package.

use crate::contents::check_name;
use crate::{Blob, Error, Package, Piece};
use mlpack_fs::Operation;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::path::Path;

/// Most entries of one archive.
const ENTRY_LIMIT: usize = 65_536;
/// Unpacked bytes for each byte of a compressed archive, beyond the first 64 MiB.
const RATIO_LIMIT: u64 = 200;
/// Bytes read from an archive in one go.
const BUFFER_LEN: usize = 1 << 20;

/// Unpacks a tar into `dir`, which is the caller's alone until it is complete. Only entries below `below` count, without
/// it. Links and devices are refused, but for links in images, which are passed over. Returns the names of the files.
pub fn unpack(archive: &Path, gzip: bool, below: &str, dir: &Path) -> Result<Vec<String>, Error> {
    let file = File::open(archive).map_err(|e| mlpack_fs::Error::io(Operation::Open, archive, e))?;
    let byte_len = file.metadata().map_err(|e| mlpack_fs::Error::io(Operation::Read, archive, e))?.len();
    let reader = BufReader::with_capacity(BUFFER_LEN, file);
    match gzip {
        true => {
            let limit = byte_len.saturating_mul(RATIO_LIMIT).max(64 << 20);
            Unpacker { archive, below, dir, limit }.run(flate2::bufread::MultiGzDecoder::new(reader))
        }
        false => Unpacker { archive, below, dir, limit: byte_len }.run(reader),
    }
}

struct Unpacker<'a> {
    archive: &'a Path,
    below: &'a str,
    dir: &'a Path,
    limit: u64,
}

impl Unpacker<'_> {
    fn run(&self, reader: impl Read) -> Result<Vec<String>, Error> {
        let malformed = |e: io::Error| Error::MalformedDocument {
            path: self.archive.to_owned(),
            expected: "a tar archive",
            reason: e.to_string(),
        };
        let mut archive = tar::Archive::new(reader.take(self.limit.saturating_add(1)));
        let mut names = BTreeSet::new();
        let mut left = self.limit;
        for (count, entry) in archive.entries().map_err(malformed)?.enumerate() {
            let mut entry = entry.map_err(malformed)?;
            if count >= ENTRY_LIMIT {
                return Err(Error::TooMany { path: self.archive.to_owned(), limit: ENTRY_LIMIT, what: "entries" });
            }
            let raw = entry.path_bytes().into_owned();
            let name = String::from_utf8(raw).map_err(|_| refuse("a name in UTF-8", "another one"))?;
            let name = name.strip_prefix("./").unwrap_or(&name);
            let kind = entry.header().entry_type();
            if kind.is_pax_global_extensions() || name.is_empty() || name == "." {
                continue;
            }
            let Some(name) = name.strip_prefix(self.below).filter(|name| !name.is_empty()) else { continue };
            let name = name.trim_end_matches('/');
            check_name(name)?;
            let path = self.dir.join(name);
            if kind.is_dir() {
                std::fs::create_dir_all(&path).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, &path, e))?;
                continue;
            }
            if !kind.is_file() {
                // An image may name its model twice; a link in anything else could lead anywhere.
                if kind.is_symlink() && !self.below.is_empty() {
                    continue;
                }
                return Err(refuse("regular files and folders", name));
            }
            let size = entry.size();
            if size > left {
                return Err(refuse("an archive that unpacks within its limit", name));
            }
            left -= size;
            if !names.insert(name.to_owned()) {
                return Err(refuse("one file of each name", name));
            }
            self.write(&mut entry, &path, size).map_err(|e| match e {
                Ok(e) => malformed(e),
                Err(e) => e,
            })?;
        }
        Ok(names.into_iter().collect())
    }

    fn write(&self, entry: &mut impl Read, path: &Path, size: u64) -> Result<(), Result<io::Error, Error>> {
        let failed = |e| Err(mlpack_fs::Error::io(Operation::Write, path, e).into());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| Err(mlpack_fs::Error::io(Operation::CreateDir, parent, e).into()))?;
        }
        // `create_new`: nothing that is there already, a link least of all, is written through.
        let mut file = File::create_new(path).map_err(failed)?;
        let mut buffer = vec![0; BUFFER_LEN.min(size.max(1) as usize)];
        let mut left = size;
        while left > 0 {
            let len = buffer.len().min(left as usize);
            match entry.read(&mut buffer[..len]) {
                Ok(0) => return Err(Ok(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    file.write_all(&buffer[..n]).map_err(failed)?;
                    left -= n as u64;
                }
                Err(e) => return Err(Ok(e)),
            }
        }
        file.sync_all().map_err(failed)
    }
}

fn refuse(expected: &'static str, found: &str) -> Error {
    Error::Contents { expected, found: found.to_owned() }
}

/// Reads an OCI layout archive into `dir`, an empty folder of the caller's: the files that a layout has and nothing else.
pub fn unpack_layout(archive: &Path, dir: &Path) -> Result<(), Error> {
    let names = unpack(archive, false, "", dir)?;
    let ours = |name: &String| {
        let blob = name.strip_prefix("blobs/sha256/").is_some_and(|hex| hex.parse::<mlpack_fs::Sha256>().is_ok());
        // docker save puts a file of its own beside the layout's.
        blob || matches!(name.as_str(), "oci-layout" | "index.json" | "manifest.json" | "repositories")
    };
    match names.iter().find(|name| !ours(name)) {
        Some(other) => Err(Error::Contents { expected: "the files of an OCI layout", found: other.clone() }),
        None => Ok(()),
    }
}

/// The archive of a package as an image layout: fixed order, no times, no owners; blobs are read where they lie.
pub fn archive(package: &Package) -> Result<Blob, Error> {
    let mut entries: BTreeMap<String, (Vec<Piece>, u64)> = BTreeMap::new();
    let mut add = |name: String, pieces: Vec<Piece>, byte_len: u64| drop(entries.insert(name, (pieces, byte_len)));
    let bytes = |bytes: &[u8]| vec![Piece::Bytes(bytes.into())];
    for blob in package.blobs() {
        add(format!("blobs/sha256/{}", blob.digest()), blob.pieces().to_vec(), blob.byte_len());
    }
    for document in package.documents() {
        let name = format!("blobs/sha256/{}", document.digest);
        add(name, bytes(&document.bytes), document.bytes.len() as u64);
    }
    let index = package.index();
    add("index.json".to_owned(), bytes(&index), index.len() as u64);
    let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
    add("oci-layout".to_owned(), bytes(marker), marker.len() as u64);
    let mut pieces = Vec::new();
    for (name, (content, byte_len)) in entries {
        pieces.push(Piece::Bytes(crate::tar::file(&name, byte_len).into()));
        pieces.extend(content);
        pieces.push(Piece::Bytes(crate::tar::padding(byte_len).into()));
    }
    pieces.push(Piece::Bytes(crate::tar::end().into()));
    Blob::of_pieces(pieces)
}

/// Writes an archive under its final name when it is complete.
pub fn write_archive(blob: &Blob, path: &Path) -> Result<(), Error> {
    crate::layout::write_blob(blob, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlpack_fs::write_atomic;
    use std::path::PathBuf;

    fn made(dir: &Path, entries: &[(&str, tar::EntryType, &[u8])]) -> PathBuf {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // The safe setter refuses what a hostile archive has.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            if *kind == tar::EntryType::Symlink {
                header.set_link_name("target").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        let path = dir.join("a.tar");
        write_atomic(&path, &builder.into_inner().unwrap()).unwrap();
        path
    }

    #[test]
    fn files_are_unpacked_and_what_leads_outside_is_refused() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let tmp = tempfile::tempdir().unwrap();
        let good = made(tmp.path(), &[("d/", Directory, b""), ("d/a", Regular, b"abc"), ("./b", Regular, b"")]);
        let out = tmp.path().join("out");
        assert_eq!(unpack(&good, false, "", &out).unwrap(), ["b", "d/a"]);
        assert_eq!(mlpack_fs::read_bounded(&out.join("d/a"), 10).unwrap(), b"abc");
        let models = made(
            tmp.path(),
            &[("etc/x", Regular, b"x"), ("models/m", Regular, b"m"), ("models/model.file", Symlink, b"")],
        );
        assert_eq!(unpack(&models, false, "models/", &tmp.path().join("models")).unwrap(), ["m"]);
        for (name, kind) in
            [("../x", Regular), ("/x", Regular), ("a/../../x", Regular), ("x", Symlink), ("x", Link), ("..", Directory)]
        {
            let path = made(tmp.path(), &[(name, kind, b"")]);
            let dir = tmp.path().join("bad");
            let error = unpack(&path, false, "", &dir).unwrap_err();
            assert!(matches!(error, Error::Contents { .. }), "{name}: {error}");
            assert!(!tmp.path().join("x").exists());
        }
        let twice = made(tmp.path(), &[("a", Regular, b"1"), ("a", Regular, b"2")]);
        assert!(matches!(unpack(&twice, false, "", &tmp.path().join("twice")), Err(Error::Contents { .. })));
        let short = tmp.path().join("short.tar");
        let bytes = mlpack_fs::read_bounded(&good, 1 << 20).unwrap();
        write_atomic(&short, &bytes[..1100]).unwrap();
        assert!(matches!(unpack(&short, false, "", &tmp.path().join("s")), Err(Error::MalformedDocument { .. })));
    }

    #[test]
    fn a_bomb_of_zeros_stops_at_its_limit() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("bomb.tar.gz");
        let mut header = tar::Header::new_ustar();
        header.set_path("zeros").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(header.as_bytes()).unwrap();
        write_atomic(&path, &encoder.finish().unwrap()).unwrap();
        let out = tmp.path().join("out");
        assert!(matches!(unpack(&path, true, "", &out), Err(Error::Contents { .. })));
        assert!(!out.join("zeros").exists());
    }
}
