//! The two ways to cut a text into tokens: joining neighbours (BPE, and SentencePiece's BPE by scores), and the best of
//! all ways (Unigram).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Joins neighbours, those of the highest priority first and the leftmost of equals, until none has a priority. `starts`
/// are the offsets of the symbols to begin with, in order.
pub(super) fn join(text: &str, starts: &[usize], priority: impl Fn(&str, &str) -> Option<u32>) -> Vec<Range<usize>> {
    const NONE: usize = usize::MAX;
    struct Symbol {
        range: Range<usize>,
        before: usize,
        after: usize,
    }
    let mut symbols: Vec<Symbol> = Vec::with_capacity(starts.len());
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(text.len());
        let after = if i + 1 < starts.len() { i + 1 } else { NONE };
        symbols.push(Symbol { range: *start..end, before: i.wrapping_sub(1), after });
    }
    let mut queue = BinaryHeap::new();
    let candidate = |symbols: &[Symbol], left: usize, right: usize| {
        if left == NONE || right == NONE {
            return None;
        }
        let (l, r) = (&symbols[left].range, &symbols[right].range);
        let priority = priority(&text[l.clone()], &text[r.clone()])?;
        Some((priority, Reverse(left), right, l.len(), r.len()))
    };
    queue.extend((1..symbols.len()).filter_map(|right| candidate(&symbols, right - 1, right)));
    while let Some((_, Reverse(left), right, left_len, right_len)) = queue.pop() {
        // Either side may have been joined with another since.
        if symbols[left].range.len() != left_len || symbols[right].range.len() != right_len {
            continue;
        }
        symbols[left].range.end = symbols[right].range.end;
        symbols[right].range = 0..0;
        let after = symbols[right].after;
        symbols[left].after = after;
        if after != NONE {
            symbols[after].before = left;
        }
        let before = symbols[left].before;
        queue.extend(candidate(&symbols, before, left));
        queue.extend(candidate(&symbols, left, after));
    }
    symbols.into_iter().map(|symbol| symbol.range).filter(|range| !range.is_empty()).collect()
}

/// A score as a priority: the order of the numbers is kept.
pub(super) fn priority_of(score: f32) -> u32 {
    let bits = score.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The tokens with the highest sum of scores (Viterbi). A character that is no token by itself may stand as `unknown`;
/// unknown tokens side by side are one. `max_len` is the length of the longest token in bytes.
pub(super) fn best(
    text: &str,
    max_len: usize,
    token: impl Fn(&str) -> Option<(u32, f64)>,
    unknown: (u32, f64),
) -> Vec<u32> {
    let mut best: Vec<(f64, usize, u32)> = vec![(f64::NEG_INFINITY, 0, unknown.0); text.len() + 1];
    best[0].0 = 0.0;
    for (start, c) in text.char_indices() {
        let so_far = best[start].0;
        let first_end = start + c.len_utf8();
        let mut alone = false;
        for end in (first_end..=text.len().min(start + max_len)).filter(|end| text.is_char_boundary(*end)) {
            let Some((id, score)) = token(&text[start..end]) else { continue };
            alone |= end == first_end;
            if so_far + score > best[end].0 {
                best[end] = (so_far + score, start, id);
            }
        }
        if !alone && so_far + unknown.1 > best[first_end].0 {
            best[first_end] = (so_far + unknown.1, start, unknown.0);
        }
    }
    let mut ids = Vec::new();
    let mut end = text.len();
    while end > 0 {
        let (_, start, id) = best[end];
        if !(id == unknown.0 && ids.last() == Some(&id)) {
            ids.push(id);
        }
        end = start;
    }
    ids.reverse();
    ids
}

/// The offsets of the characters of a text.
pub(super) fn chars(text: &str) -> Vec<usize> {
    text.char_indices().map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_by_priority_and_from_the_left() {
        let rank = |left: &str, right: &str| match (left, right) {
            ("b", "c") => Some(9),
            ("a", "b") => Some(5),
            ("a", "bc") => Some(7),
            ("x", "x") => Some(1),
            _ => None,
        };
        let parts = |text: &str| -> Vec<String> {
            join(text, &chars(text), rank).into_iter().map(|range| text[range].to_owned()).collect()
        };
        assert_eq!(parts("abc"), ["abc"]);
        assert_eq!(parts("abab"), ["ab", "ab"]);
        assert_eq!(parts("xxx"), ["xx", "x"]);
        assert_eq!(parts("é"), ["é"]);
        assert_eq!(parts(""), [""; 0]);
    }

    #[test]
    fn scores_keep_their_order_as_priorities() {
        let scores = [-10_000.0, -1.5, -0.0, 0.0, 1e-9, 3.0];
        assert!(scores.windows(2).all(|pair| priority_of(pair[0]) < priority_of(pair[1])));
    }

    #[test]
    fn the_best_way_wins_over_the_longest_token() {
        let token = |text: &str| match text {
            "a" => Some((1, -1.0)),
            "b" => Some((2, -1.0)),
            "ab" => Some((3, -5.0)),
            "é" => Some((4, -9.0)),
            _ => None,
        };
        assert_eq!(best("ab", 8, token, (0, -20.0)), [1, 2]);
        assert_eq!(best("a日本b", 8, token, (0, -20.0)), [1, 0, 2], "unknown characters side by side are one token");
        assert_eq!(best("é", 8, token, (0, -2.0)), [4], "a known character is never unknown");
        assert_eq!(best("", 8, token, (0, -2.0)), [0; 0]);
    }
}
