//! Tar headers that depend on nothing but the name and the length (POSIX.1-2001 ustar, with pax records where it is too small).
//!
//! ```text
//! 0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12 | 148 checksum 8 | 156 type 1
//! 157 link 100 | 257 "ustar\0" "00" | 265 names 64 | 329 device 16 | 345 prefix 155 | 500 zero 12
//! ```

/// The unit of everything in a tar.
const BLOCK: u64 = 512;
/// The first length that eleven octal digits cannot tell.
const OCTAL_END: u64 = 1 << 33;

/// The header of a regular file; its content and [`padding`] follow.
pub(crate) fn file(name: &str, byte_len: u64) -> Vec<u8> {
    entry(name, b'0', byte_len, "", 0o644)
}

/// A directory; the name ends with a slash.
pub(crate) fn directory(name: &str) -> Vec<u8> {
    entry(name, b'5', 0, "", 0o755)
}

/// A symbolic link.
pub(crate) fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name, b'2', 0, target, 0o777)
}

/// What fills the last block of a file.
pub(crate) fn padding(byte_len: u64) -> Vec<u8> {
    vec![0; (byte_len.next_multiple_of(BLOCK) - byte_len) as usize]
}

/// What ends an archive.
pub(crate) fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK as usize]
}

fn entry(name: &str, kind: u8, byte_len: u64, link: &str, mode: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let split = split(name);
    let mut records = String::new();
    if split.is_none() {
        records.push_str(&record("path", name));
    }
    if link.len() > 100 {
        records.push_str(&record("linkpath", link));
    }
    if byte_len >= OCTAL_END {
        records.push_str(&record("size", &byte_len.to_string()));
    }
    if !records.is_empty() {
        header(&mut bytes, ("", "pax"), b'x', records.len() as u64, "", 0o644);
        bytes.extend_from_slice(records.as_bytes());
        bytes.extend(padding(records.len() as u64));
    }
    let short = split.unwrap_or_else(|| ("", cut(name)));
    header(&mut bytes, short, kind, if byte_len < OCTAL_END { byte_len } else { 0 }, cut(link), mode);
    bytes
}

/// The name as prefix and name, where it fits.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    let fits = |(at, _): &(usize, &str)| *at <= 155 && name.len() - at - 1 <= 100 && at + 1 < name.len();
    name.match_indices('/').find(fits).map(|(at, _)| (&name[..at], &name[at + 1..]))
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(100);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `LEN KEY=VALUE\n`, where LEN counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    format!("{len} {key}={value}\n")
}

fn header(bytes: &mut Vec<u8>, (prefix, name): (&str, &str), kind: u8, byte_len: u64, link: &str, mode: u32) {
    let mut block = [0u8; BLOCK as usize];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{byte_len:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.extend_from_slice(&block);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// GNU tar reads what is written here: names, links and content.
    #[test]
    fn gnu_tar_lists_and_unpacks_it() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("models/{}/{}", "d".repeat(120), "n".repeat(90));
        let longer = format!("models/{}", "x".repeat(200));
        let mut bytes = directory("models/");
        for name in ["models/a", &long, &longer] {
            bytes.extend(file(name, 3));
            bytes.extend(b"abc");
            bytes.extend(padding(3));
        }
        bytes.extend(link("models/model.file", "a"));
        bytes.extend(end());
        let archive = dir.path().join("a.tar");
        std::fs::write(&archive, &bytes).unwrap();
        let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        assert!(listed.status.success());
        let expected = format!("models/\nmodels/a\n{long}\n{longer}\nmodels/model.file\n");
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), expected);
        let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir.path()).status().unwrap();
        assert!(unpacked.success());
        assert_eq!(mlpack_fs::read_bounded(&dir.path().join(&longer), 10).unwrap(), b"abc");
        assert_eq!(mlpack_fs::read_bounded(&dir.path().join("models/model.file"), 10).unwrap(), b"abc");
    }

    #[test]
    fn a_length_over_eight_gibibytes_is_a_pax_record() {
        let bytes = file("m", 1 << 40);
        assert_eq!(bytes.len(), 3 * 512);
        assert!(bytes[512..].starts_with(b"22 size=1099511627776\n"));
    }
}
