//! Vocabularies as ranks of byte strings (`tiktoken`): the lower the rank, the earlier two parts are joined.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use std::collections::HashMap;

/// Ranks by bytes.
#[derive(Default)]
pub(super) struct Ranks(HashMap<Vec<u8>, u32>);

impl Ranks {
    /// Adds a token; gives the rank that it had before.
    pub(super) fn insert(&mut self, token: Vec<u8>, rank: u32) -> Option<u32> {
        self.0.insert(token, rank)
    }

    pub(super) fn rank(&self, token: &[u8]) -> Option<u32> {
        self.0.get(token).copied()
    }

    /// The lengths of the parts that the bytes fall into when only ranks below `below` are joined, the leftmost of the
    /// lowest rank first.
    pub(super) fn parts(&self, bytes: &[u8], below: u32) -> Vec<usize> {
        let mut ends: Vec<usize> = (1..=bytes.len()).collect();
        loop {
            let mut best: Option<(u32, usize)> = None;
            let mut start = 0;
            for (i, pair) in ends.windows(2).enumerate() {
                if let Some(rank) = self.rank(&bytes[start..pair[1]])
                    && rank < below
                    && best.is_none_or(|(least, _)| rank < least)
                {
                    best = Some((rank, i));
                }
                start = pair[0];
            }
            match best {
                Some((_, i)) => ends.remove(i),
                None => break,
            };
        }
        let mut start = 0;
        ends.into_iter().map(|end| end - std::mem::replace(&mut start, end)).collect()
    }

    /// The ranks of the parts of a text without spaces to cut at; bytes that have no rank are passed over.
    pub(super) fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        if let Some(rank) = self.rank(bytes) {
            return vec![rank];
        }
        let mut rest = bytes;
        let mut out = Vec::new();
        for len in self.parts(bytes, u32::MAX) {
            let (part, after) = rest.split_at(len);
            out.extend(self.rank(part));
            rest = after;
        }
        out
    }
}

/// The character that GPT-2's byte alphabet has for a byte: itself when it is printable Latin-1, else one from U+0100 on.
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).expect("fewer than 256 characters from U+0100 on")
}

/// Bytes in GPT-2's alphabet.
pub(super) fn byte_text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| byte_char(*b)).collect()
}

/// Decodes base64 with padding (RFC 4648, section 4); `None` for anything else.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_256_characters_and_no_space() {
        let all: std::collections::BTreeSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(all.len(), 256);
        assert!(!all.contains(&' '));
        assert_eq!(byte_text(" \n\u{e9}".as_bytes()), "\u{120}\u{10a}\u{c3}\u{a9}");
        assert_eq!(all.last(), Some(&'\u{143}'));
    }

    #[test]
    fn the_lowest_rank_is_joined_first_and_the_leftmost_of_equals() {
        let mut ranks = Ranks::default();
        for (rank, token) in ["a", "b", "c", "ab", "bc", "abc", "aa"].into_iter().enumerate() {
            assert_eq!(ranks.insert(token.into(), rank as u32), None);
        }
        assert_eq!(ranks.encode(b"abc"), [5]);
        assert_eq!(ranks.encode(b"abcbc"), [5, 4]);
        assert_eq!(ranks.encode(b"aaa"), [6, 0]);
        assert_eq!(ranks.parts(b"abc", 5), [2, 1], "what the token itself is made of");
    }
}
