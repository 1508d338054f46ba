//! The members of a zip archive that are stored without compression.

use super::TorchProblem;
use mlpack_fs::BoundedReader;
use std::collections::BTreeMap;
use std::ops::Range;

/// The end record without its comment, and how far from the end it may begin: a comment has at most 65535 bytes.
const END_LEN: usize = 22;
const MAX_COMMENT_LEN: usize = 0xffff;

/// Bytes of a central directory entry and of a local header, without name and extra field.
const CENTRAL_LEN: u64 = 46;

/// Members by name, as offsets into the archive.
pub(super) fn members(bytes: &[u8]) -> Result<BTreeMap<String, Range<u64>>, TorchProblem> {
    let unexpected = |text: &str| TorchProblem::Unexpected(text.to_owned());
    let (count, offset) = directory(bytes)?;
    let directory = bytes.get(offset as usize..).ok_or_else(|| unexpected("the directory lies past the end"))?;
    let mut reader = BoundedReader::new(directory);
    reader.count(count, CENTRAL_LEN)?;
    let mut members = BTreeMap::new();
    for _ in 0..count {
        if reader.take(4)? != b"PK\x01\x02" {
            return Err(unexpected("the directory has an entry of another kind"));
        }
        reader.take(4)?;
        let flags = reader.u16()?;
        let method = reader.u16()?;
        reader.take(8)?;
        let (mut packed, mut size) = (u64::from(reader.u32()?), u64::from(reader.u32()?));
        let lens = [reader.u16()?, reader.u16()?, reader.u16()?].map(u64::from);
        reader.take(8)?;
        let mut local = u64::from(reader.u32()?);
        let name = String::from_utf8_lossy(reader.take(lens[0])?).into_owned();
        let mut extra = BoundedReader::new(reader.take(lens[1])?);
        reader.take(lens[2])?;
        // Field 1 holds what does not fit in 32 bits, in this order.
        while extra.remaining() >= 4 {
            let (id, len) = (extra.u16()?, extra.u16()?);
            let mut field = BoundedReader::new(extra.take(u64::from(len))?);
            if id == 1 {
                for value in [&mut size, &mut packed, &mut local] {
                    if *value == u64::from(u32::MAX) {
                        *value = field.u64()?;
                    }
                }
            }
        }
        if method != 0 || packed != size || flags & 1 != 0 {
            return Err(TorchProblem::Unexpected(format!("member {name:?} is compressed or encrypted")));
        }
        let range = member(bytes, local, size)?;
        if members.insert(name.clone(), range).is_some() {
            return Err(TorchProblem::Unexpected(format!("member {name:?} is there twice")));
        }
    }
    Ok(members)
}

/// The number of entries and the offset of the central directory, from the end record or the 64-bit one before it.
fn directory(bytes: &[u8]) -> Result<(u64, u64), TorchProblem> {
    let unexpected = |text: &str| TorchProblem::Unexpected(text.to_owned());
    let from = bytes.len().saturating_sub(END_LEN + MAX_COMMENT_LEN);
    let tail = &bytes[from..];
    let end = tail.windows(4).rposition(|w| w == b"PK\x05\x06").ok_or_else(|| unexpected("the archive has no end"))?;
    let mut reader = BoundedReader::new(&tail[end + 4..]);
    reader.take(6)?;
    let (count, _, offset) = (u64::from(reader.u16()?), reader.u32()?, u64::from(reader.u32()?));
    let comment_len = reader.u16()?;
    reader.take(comment_len.into())?;
    if count != 0xffff && offset != u64::from(u32::MAX) {
        return Ok((count, offset));
    }
    let locator = (from + end).checked_sub(20).ok_or_else(|| unexpected("the archive has no 64-bit end"))?;
    let mut reader = BoundedReader::new(&bytes[locator..]);
    if reader.take(4)? != b"PK\x06\x07" {
        return Ok((count, offset));
    }
    reader.take(4)?;
    let record = bytes.get(reader.u64()? as usize..).ok_or_else(|| unexpected("the 64-bit end lies past the end"))?;
    let mut reader = BoundedReader::new(record);
    if reader.take(4)? != b"PK\x06\x06" {
        return Err(unexpected("the archive has no 64-bit end"));
    }
    reader.take(28)?;
    let (count, _, offset) = (reader.u64()?, reader.u64()?, reader.u64()?);
    Ok((count, offset))
}

/// The data of a member, behind its local header.
fn member(bytes: &[u8], local: u64, size: u64) -> Result<Range<u64>, TorchProblem> {
    let outside = || TorchProblem::Unexpected("a member lies outside the archive".to_owned());
    let header = usize::try_from(local).ok().and_then(|at| bytes.get(at..)).ok_or_else(outside)?;
    let mut reader = BoundedReader::new(header);
    if reader.take(4)? != b"PK\x03\x04" {
        return Err(outside());
    }
    reader.take(22)?;
    let skipped = u64::from(reader.u16()?) + u64::from(reader.u16()?);
    let start = local + 30 + skipped;
    let end = start.checked_add(size).filter(|end| *end <= bytes.len() as u64).ok_or_else(outside)?;
    Ok(start..end)
}
