//! The texts that a graph and the reference are asked about: numbers of tokens, the same in every run.

use mlpack_arch::{Decoder, Encoder, Positions};
use mlpack_onnx::FixedDims;

/// Tokens of the first text, where no size is fixed; each further one of three is shorter by a third.
const LENGTH: u64 = 18;

/// Texts of several lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The tokens of each text.
    pub texts: Vec<Vec<u32>>,
    /// Positions of an input.
    pub sequence: u64,
    /// Positions of the cache that are no text.
    pub past: u64,
    /// Tokens of each text that come after the others, one by one.
    pub steps: u64,
}

impl Probe {
    /// Texts for a decoder, padded on the left: the last tokens come one by one, unless sizes are fixed.
    pub fn of_decoder(decoder: &Decoder, fixed: &FixedDims) -> Probe {
        let is_open = fixed.sequence.is_none() && fixed.past.is_none();
        let past = fixed.past.unwrap_or(0);
        // GroupQueryAttention takes a cache and several new tokens for one text alone.
        let count = fixed.batch.unwrap_or(if past > 0 { 1 } else { 2 });
        let longest = fixed.sequence.unwrap_or(LENGTH).min(decoder.context);
        let texts = texts(count, longest.min(LENGTH), decoder.vocabulary, u64::MAX);
        let steps = if is_open { 3.min(longest - 1) } else { 0 };
        Probe { texts, sequence: fixed.sequence.unwrap_or(longest) - steps, past, steps }
    }

    /// Texts for an encoder, padded on the right.
    pub fn of_encoder(encoder: &Encoder, fixed: &FixedDims) -> Probe {
        let limit = match encoder.positions {
            Positions::Rotary => u64::MAX,
            Positions::Sequence => encoder.positions_count,
            Positions::Unpadded => encoder.positions_count.saturating_sub(encoder.padding + 1),
        };
        let longest = fixed.sequence.unwrap_or(LENGTH).min(LENGTH).min(limit).max(1);
        let texts = texts(fixed.batch.unwrap_or(3), longest, encoder.vocabulary, encoder.padding);
        Probe { texts, sequence: fixed.sequence.unwrap_or(longest), past: 0, steps: 0 }
    }
}

/// Tokens that are not padding, all over the vocabulary.
fn texts(count: u64, longest: u64, vocabulary: u64, padding: u64) -> Vec<Vec<u32>> {
    let mut state = 0u64;
    let mut token = || {
        // splitmix64 (Steele, Lea, Flood 2014)
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let token = (z ^ z >> 31) % vocabulary;
        if token == padding { (token + 1) % vocabulary } else { token }
    };
    let length = |i: u64| (longest - longest / 3 * (i % 3)).max(1);
    (0..count).map(|i| (0..length(i)).map(|_| token() as u32).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_several_lengths_and_no_padding() {
        let found = texts(4, 18, 7, 3);
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [18, 12, 6, 18]);
        assert!(found.iter().flatten().all(|token| *token < 7 && *token != 3));
        assert_eq!(texts(4, 18, 7, 3), found);
        assert_eq!(texts(3, 1, 7, 3).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
