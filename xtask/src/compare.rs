//! Compares two GGUF files and says where they differ first.

use anyhow::Result;
use mlpack_fs::MappedFile;
use mlpack_gguf::GgufFile;
use mlpack_tensor::{Escaped, join_limited};
use std::path::Path;

/// Differences shown of one kind.
const SHOWN: usize = 8;

/// `None` when both files hold the same bytes; else lines that name the first differences.
pub fn gguf(ours: &Path, reference: &Path) -> Result<Option<Vec<String>>> {
    let (a, b) = (MappedFile::open(ours)?, MappedFile::open(reference)?);
    let Some(offset) = first_difference(a.bytes(), b.bytes()) else { return Ok(None) };
    let mut lines = vec![format!(
        "first differing byte: {offset} (ours has {} bytes, the reference {})",
        a.byte_len(),
        b.byte_len()
    )];
    let (ours, reference) = (GgufFile::open(ours)?, GgufFile::open(reference)?);
    lines.extend(metadata(&ours, &reference));
    lines.extend(tensors(&ours, &reference));
    if lines.len() == 1 {
        lines.push("same metadata and tensors: the layout or the padding differs".to_owned());
    }
    Ok(Some(lines))
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let common = a.len().min(b.len());
    // Slices compare many times faster than bytes, so that only the piece with the difference is looked at closely.
    let piece = 1 << 16;
    let start = (0..common).step_by(piece).find(|at| {
        let end = (at + piece).min(common);
        a[*at..end] != b[*at..end]
    });
    match start {
        Some(start) => (start..common).find(|at| a[*at] != b[*at]),
        None => (a.len() != b.len()).then_some(common),
    }
}

fn metadata(ours: &GgufFile, reference: &GgufFile) -> Vec<String> {
    let keys = |file: &GgufFile| file.metadata().iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    let mut lines = names("keys", &keys(ours), &keys(reference));
    let values = ours.metadata().iter().filter_map(|(key, a)| Some((key, a, reference.metadata().find(key)?)));
    let differing = values.filter_map(|(key, a, b)| {
        // The debug text has the type in it, and every bit of a float.
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        let at = first_difference(a.as_bytes(), b.as_bytes())?;
        Some(format!("key `{}`\n      ours:      {}\n      reference: {}", Escaped(key), near(&a, at), near(&b, at)))
    });
    push_limited(&mut lines, differing.collect(), "keys");
    lines
}

fn tensors(ours: &GgufFile, reference: &GgufFile) -> Vec<String> {
    let table = |file: &GgufFile| file.tensors().iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    let mut lines = names("tensors", &table(ours), &table(reference));
    let mut differing = Vec::new();
    for a in ours.tensors() {
        let Some(b) = reference.tensors().iter().find(|b| b.name == a.name) else { continue };
        let name = Escaped(&a.name);
        if (a.ty, &a.shape) != (b.ty, &b.shape) {
            let described = |tensor: &mlpack_gguf::Tensor| format!("{} x {}", tensor.ty, tensor.shape);
            differing.push(format!("tensor `{name}`: ours is {}, the reference {}", described(a), described(b)));
            continue;
        }
        let (a_bytes, b_bytes) = (ours.bytes(a), reference.bytes(b));
        if let Some(at) = first_difference(a_bytes, b_bytes) {
            let count = a_bytes.iter().zip(b_bytes).filter(|(a, b)| a != b).count();
            differing.push(format!(
                "tensor `{name}` ({} x {}): {count} of {} bytes differ, the first at {at}",
                a.ty,
                a.shape,
                a_bytes.len()
            ));
        }
    }
    push_limited(&mut lines, differing, "tensors");
    lines
}

/// How two ordered lists of names differ.
fn names(what: &str, ours: &[String], reference: &[String]) -> Vec<String> {
    let without = |a: &[String], b: &[String]| a.iter().filter(|name| !b.contains(name)).cloned().collect::<Vec<_>>();
    let mut lines = Vec::new();
    for (side, only) in [("ours", without(ours, reference)), ("the reference", without(reference, ours))] {
        if !only.is_empty() {
            lines.push(format!("{what} only in {side}: {}", join_limited(only.iter().map(String::as_str), SHOWN)));
        }
    }
    if lines.is_empty()
        && let Some(at) = ours.iter().zip(reference).position(|(a, b)| a != b)
    {
        let (a, b) = (Escaped(&ours[at]), Escaped(&reference[at]));
        lines.push(format!("order of {what} differs from place {at} on: ours `{a}`, the reference `{b}`"));
    }
    lines
}

fn push_limited(lines: &mut Vec<String>, mut differing: Vec<String>, what: &str) {
    let more = differing.len().saturating_sub(SHOWN);
    differing.truncate(SHOWN);
    lines.append(&mut differing);
    if more > 0 {
        lines.push(format!("and {more} more differing {what}"));
    }
}

/// The part of a long text around byte `at`.
fn near(text: &str, at: usize) -> String {
    let start = text.floor_char_boundary(at.saturating_sub(60));
    let end = text.floor_char_boundary((at + 60).min(text.len()));
    let dots = |cut: bool| if cut { "…" } else { "" };
    format!("{}{}{}", dots(start > 0), Escaped(&text[start..end]), dots(end < text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlpack_gguf::{Layout, TensorSpec};
    use mlpack_tensor::{GgmlType, Metadata, Shape};
    use std::path::PathBuf;

    /// Writes a file with one tensor of four F32.
    fn file(dir: &Path, name: &str, keys: &[(&str, u32)], tensor: &str, last_byte: u8) -> PathBuf {
        let mut metadata = Metadata::new();
        for (key, value) in keys {
            metadata.set(*key, (*value).into());
        }
        let spec = TensorSpec { name: tensor.to_owned(), ty: GgmlType::F32, shape: Shape::new(vec![4]) };
        let layout = Layout::new(&metadata, vec![spec]).unwrap();
        let mut bytes = layout.header().to_vec();
        bytes.resize(layout.byte_len() as usize, 0);
        bytes[layout.tensors()[0].range.start as usize + 15] = last_byte;
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn differences(ours: (&[(&str, u32)], &str, u8), reference: (&[(&str, u32)], &str, u8)) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let a = file(dir.path(), "a", ours.0, ours.1, ours.2);
        let b = file(dir.path(), "b", reference.0, reference.1, reference.2);
        gguf(&a, &b).unwrap().map(|lines| lines[1..].join("\n"))
    }

    #[test]
    fn the_same_bytes_are_no_difference() {
        assert_eq!(differences((&[("a", 1)], "t", 0), (&[("a", 1)], "t", 0)), None);
    }

    #[test]
    fn each_difference_is_named() {
        let one = |ours, reference| differences(ours, reference).unwrap();
        let value = one((&[("a", 1)], "t", 0), (&[("a", 2)], "t", 0));
        assert_eq!(value, "key `a`\n      ours:      U32(1)\n      reference: U32(2)");
        let order = one((&[("a", 1), ("b", 2)], "t", 0), (&[("b", 2), ("a", 1)], "t", 0));
        assert_eq!(order, "order of keys differs from place 0 on: ours `a`, the reference `b`");
        let extra = one((&[("a", 1), ("b", 2)], "t", 0), (&[("a", 1)], "t", 0));
        assert_eq!(extra, "keys only in ours: `b`");
        let tensor = one((&[], "t", 0), (&[], "u", 0));
        assert_eq!(tensor, "tensors only in ours: `t`\ntensors only in the reference: `u`");
        let data = one((&[], "t", 7), (&[], "t", 0));
        assert_eq!(data, "tensor `t` (F32 x [4]): 1 of 16 bytes differ, the first at 15");
    }

    #[test]
    fn a_difference_past_the_first_piece_and_at_the_end_is_found() {
        let a = vec![0; 200_000];
        let mut b = a.clone();
        assert_eq!(first_difference(&a, &b), None);
        b[199_999] = 1;
        assert_eq!(first_difference(&a, &b), Some(199_999));
        assert_eq!(first_difference(&a, &a[..5]), Some(5));
    }
}
