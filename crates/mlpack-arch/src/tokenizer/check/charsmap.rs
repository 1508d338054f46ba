//! SentencePiece's compiled replacements (`precompiled_charsmap`).
//!
//! ```text
//! u32 n            bytes of the array, little endian
//! u32 × n / 4      a double array of prefixes: base in bits 10-30, label in bits 0-7, leaf in bit 8, wide base in bit 9
//! bytes            the replacements, each with a zero byte at its end
//! ```

/// The parts of a map.
pub(super) struct Charsmap<'b> {
    array: Vec<u32>,
    replacements: &'b [u8],
}

impl<'b> Charsmap<'b> {
    /// `None` for bytes that are not a map.
    pub(super) fn parse(bytes: &'b [u8]) -> Option<Charsmap<'b>> {
        let (len, rest) = bytes.split_first_chunk()?;
        let (array, replacements) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let array = array.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four bytes"))).collect();
        Some(Charsmap { array, replacements })
    }

    /// The text with the longest known prefixes replaced, from the left. Where `keep` gives a length, that much stays.
    pub(super) fn apply(&self, text: &str, keep: impl Fn(&str) -> usize) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let kept = keep(rest);
            let (taken, with) = match kept {
                0 => self.prefix(rest.as_bytes()).unwrap_or((0, "")),
                len => (len, &rest[..len]),
            };
            if taken == 0 || !rest.is_char_boundary(taken) {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            } else {
                out.push_str(with);
                rest = &rest[taken..];
            }
        }
        out
    }

    /// The length of the longest known prefix, and its replacement.
    fn prefix(&self, text: &[u8]) -> Option<(usize, &str)> {
        let base = |unit: u32| ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize;
        let mut found = None;
        let mut node = base(*self.array.first()?);
        for (i, byte) in text.iter().enumerate().take_while(|(_, byte)| **byte != 0) {
            node ^= usize::from(*byte);
            let Some(unit) = self.array.get(node) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(*byte) {
                break;
            }
            node ^= base(*unit);
            if unit >> 8 & 1 == 1 {
                found = Some((i + 1, self.array.get(node)? & !(1 << 31)));
            }
        }
        let (len, at) = found?;
        let rest = self.replacements.get(at as usize..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some((len, std::str::from_utf8(&rest[..end]).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::ranks::base64;
    use serde_json::Value;

    #[test]
    fn the_longest_known_prefixes_are_replaced() {
        // The map of the golden cases, made by SentencePiece: U+FB01 is fi, U+FF21 is A, U+3000 is a space, …
        let cases: Value = serde_json::from_str(include_str!("../golden/cases.json")).unwrap();
        let case = cases["cases"].as_array().unwrap().iter().find(|c| c["name"] == "t5_unigram").unwrap();
        let bytes = base64(case["files"]["spiece.model"]["normalizer"]["charsmap"].as_str().unwrap()).unwrap();
        let map = Charsmap::parse(&bytes).unwrap();
        assert_eq!(map.apply("\u{fb01}\u{ff21}\u{3000}x\u{2026}\té\u{65e5}", |_| 0), "fiA x... é\u{65e5}");
        assert_eq!(map.apply("\u{fb01}\u{fb01}", |rest| if rest.len() == 6 { 3 } else { 0 }), "\u{fb01}fi");
        assert_eq!(map.apply("", |_| 0), "");
        for len in 0..bytes.len() {
            if let Some(cut) = Charsmap::parse(&bytes[..len]) {
                assert!(cut.apply("\u{fb01}\u{ff21}", |_| 0).len() <= 6, "a cut map finds less, and does not panic");
            }
        }
    }
}
