//! SHA-256 of two streams at once.
//!
//! One stream cannot keep a core busy: each of its SHA instructions waits for the one before, so a core hashes 1.5 GB/s of one stream
//! but 3.0 GB/s of two whose instructions take turns (x86-64 with SHA extensions). A conversion has two streams almost always,
//! the file that it reads and the file that it writes. Rounds of one stream, and of both where the CPU has no such instructions, are
//! those of the sha2 crate; the rounds of two are here. The function is that of FIPS 180-4.

use crate::Sha256;
use sha2::block_api::compress256;

const BLOCK_LEN: usize = 64;

/// Bytes of the length at the end of the last block.
const LENGTH_LEN: usize = 8;

/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// The digest of bytes that come piece by piece, in order.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    state: [u32; 8],
    byte_len: u64,
    // Begins with the bytes after the last whole block: `byte_len` says how many.
    partial: [u8; BLOCK_LEN],
}

impl Stream {
    /// Nothing is hashed yet.
    pub(crate) fn new() -> Stream {
        Stream { state: INITIAL, byte_len: 0, partial: [0; BLOCK_LEN] }
    }

    /// The next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill(bytes);
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.partial[..rest.len()].copy_from_slice(rest);
        self.byte_len += bytes.len() as u64;
    }

    /// The digest of all bytes so far.
    pub(crate) fn finish(mut self) -> Sha256 {
        let bit_len = self.byte_len.wrapping_mul(8);
        let filled = self.partial_len();
        let zeros = (2 * BLOCK_LEN - LENGTH_LEN - 1 - filled) % BLOCK_LEN;
        let mut padding = [0; 2 * BLOCK_LEN];
        padding[0] = 0x80;
        padding[1 + zeros..][..LENGTH_LEN].copy_from_slice(&bit_len.to_be_bytes());
        self.update(&padding[..1 + zeros + LENGTH_LEN]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Sha256::from_bytes(digest)
    }

    /// Completes the block that was begun; what is left of `bytes`. Where something is left, no block is begun.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.partial_len();
        if filled == 0 {
            return bytes;
        }
        let (first, rest) = bytes.split_at(bytes.len().min(BLOCK_LEN - filled));
        self.partial[filled..][..first.len()].copy_from_slice(first);
        self.byte_len += first.len() as u64;
        if filled + first.len() == BLOCK_LEN {
            compress256(&mut self.state, &[self.partial]);
        }
        rest
    }

    fn partial_len(&self) -> usize {
        (self.byte_len % BLOCK_LEN as u64) as usize
    }
}

/// The next bytes of two streams: the whole blocks that both have at once, the rest one after the other.
pub(crate) fn update_both(a: &mut Stream, a_bytes: &[u8], b: &mut Stream, b_bytes: &[u8]) {
    let (a_bytes, b_bytes) = (a.fill(a_bytes), b.fill(b_bytes));
    let (a_blocks, b_blocks) = (a_bytes.as_chunks().0, b_bytes.as_chunks().0);
    let both = a_blocks.len().min(b_blocks.len());
    compress_both(&mut a.state, &a_blocks[..both], &mut b.state, &b_blocks[..both]);
    let byte_len = both * BLOCK_LEN;
    for (stream, bytes) in [(a, a_bytes), (b, b_bytes)] {
        stream.byte_len += byte_len as u64;
        stream.update(&bytes[byte_len..]);
    }
}

/// As many blocks of one stream as of the other.
fn compress_both(a: &mut [u32; 8], a_blocks: &[[u8; BLOCK_LEN]], b: &mut [u32; 8], b_blocks: &[[u8; BLOCK_LEN]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3") {
        // SAFETY: the CPU has the features that the function is compiled for.
        #[allow(unsafe_code, reason = "the entry point needs CPU features")]
        unsafe {
            sha_extensions::compress_both([a, b], a_blocks, b_blocks);
        }
        return;
    }
    compress256(a, a_blocks);
    compress256(b, b_blocks);
}

#[cfg(target_arch = "x86_64")]
mod sha_extensions {
    //! The rounds with the SHA extensions of x86-64. Each step is done for both streams before the next.

    use super::BLOCK_LEN;
    use core::arch::x86_64::*;

    /// FIPS 180-4, 4.2.2, four words a group of rounds.
    #[rustfmt::skip]
    static ROUNDS: [[u32; 4]; 16] = [
        [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5], [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
        [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3], [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
        [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc], [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
        [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7], [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
        [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13], [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
        [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3], [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
        [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5], [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
        [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208], [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
    ];

    /// One stream within its block. The instructions want the state's words in this order, the first on top.
    #[derive(Clone, Copy)]
    struct Lane {
        abef: __m128i,
        cdgh: __m128i,
        // The last sixteen words of the message schedule.
        words: [__m128i; 4],
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress_both(states: [&mut [u32; 8]; 2], a: &[[u8; BLOCK_LEN]], b: &[[u8; BLOCK_LEN]]) {
        let zero = _mm_setzero_si128();
        let mut lanes = [Lane { abef: zero, cdgh: zero, words: [zero; 4] }; 2];
        for (lane, state) in lanes.iter_mut().zip(&states) {
            let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
            lane.abef = _mm_set_epi32(a, b, e, f);
            lane.cdgh = _mm_set_epi32(c, d, g, h);
        }
        for blocks in a.iter().zip(b) {
            let before = lanes;
            for (lane, block) in lanes.iter_mut().zip([blocks.0, blocks.1]) {
                lane.words = load(block);
            }
            for i in 0..4 {
                rounds(&mut lanes, i, i);
            }
            for group in [4, 8, 12] {
                for i in 0..4 {
                    for lane in &mut lanes {
                        schedule(lane, i);
                    }
                    rounds(&mut lanes, group + i, i);
                }
            }
            for (lane, before) in lanes.iter_mut().zip(before) {
                lane.abef = _mm_add_epi32(lane.abef, before.abef);
                lane.cdgh = _mm_add_epi32(lane.cdgh, before.cdgh);
            }
        }
        for (lane, state) in lanes.into_iter().zip(states) {
            let (abef, cdgh) = (words(lane.abef), words(lane.cdgh));
            *state = [abef[3], abef[2], cdgh[3], cdgh[2], abef[1], abef[0], cdgh[1], cdgh[0]];
        }
    }

    /// Four rounds of both streams with four words of their schedules.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn rounds(lanes: &mut [Lane; 2], group: usize, four: usize) {
        let [a, b, c, d] = ROUNDS[group].map(|word| word as i32);
        let constants = _mm_set_epi32(d, c, b, a);
        for lane in lanes {
            let sum = _mm_add_epi32(lane.words[four], constants);
            lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, sum);
            lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32(sum, 0b1110));
        }
    }

    /// Replaces the oldest four words of the schedule, those at `four`, by the next.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn schedule(lane: &mut Lane, four: usize) {
        let [w0, w1, w2, w3] = [0, 1, 2, 3].map(|i| lane.words[(four + i) % 4]);
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
        lane.words[four] = _mm_sha256msg2_epu32(sum, w3);
    }

    /// The sixteen big-endian words of a block.
    #[inline]
    #[target_feature(enable = "ssse3")]
    fn load(block: &[u8; BLOCK_LEN]) -> [__m128i; 4] {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let start: *const __m128i = block.as_ptr().cast();
        let mut words = [swap; 4];
        for (i, words) in words.iter_mut().enumerate() {
            // SAFETY: 16 bytes at 16 * i, with i below 4, lie within the 64 bytes of the block, and the load needs no
            // alignment.
            #[allow(unsafe_code, reason = "a load through a pointer")]
            let bytes = unsafe { _mm_loadu_si128(start.add(i)) };
            *words = _mm_shuffle_epi8(bytes, swap);
        }
        words
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn words(vector: __m128i) -> [u32; 4] {
        let words = [
            _mm_extract_epi32(vector, 0),
            _mm_extract_epi32(vector, 1),
            _mm_extract_epi32(vector, 2),
            _mm_extract_epi32(vector, 3),
        ];
        words.map(|word| word as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest as _;

    /// Numbers that look like chance (Knuth's MMIX generator).
    fn numbers() -> impl FnMut(usize) -> usize {
        let mut state = 1u64;
        move |below| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        }
    }

    fn expected(bytes: &[u8]) -> Sha256 {
        Sha256::from_bytes(sha2::Sha256::digest(bytes).into())
    }

    #[test]
    fn a_stream_of_any_length_has_the_digest_of_the_library() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * i % 251) as u8).collect();
        for len in 0..bytes.len() {
            let mut stream = Stream::new();
            stream.update(&bytes[..len / 3]);
            stream.update(&bytes[len / 3..len]);
            assert_eq!(stream.finish(), expected(&bytes[..len]), "{len} bytes");
        }
    }

    #[test]
    fn two_streams_in_any_pieces_have_the_digests_of_the_library() {
        let mut number = numbers();
        let bytes: Vec<u8> = (0..20_000).map(|_| number(256) as u8).collect();
        for _ in 0..300 {
            // Anywhere in memory, and far apart in length.
            let whole = [0; 2].map(|_| {
                let start = number(100);
                let len = [0, number(130), number(4_000), number(19_000)][number(4)];
                &bytes[start..start + len]
            });
            let (mut a, mut b) = (Stream::new(), Stream::new());
            let mut rest = whole;
            while rest.iter().any(|rest| !rest.is_empty()) {
                let pieces = rest.map(|rest| rest.split_at(number(rest.len() + 1).max(rest.len().min(1))));
                match number(4) {
                    0 => {
                        pieces.map(|(piece, _)| piece).into_iter().zip([&mut a, &mut b]).for_each(|(p, s)| s.update(p))
                    }
                    _ => update_both(&mut a, pieces[0].0, &mut b, pieces[1].0),
                }
                rest = pieces.map(|(_, rest)| rest);
            }
            assert_eq!([a.finish(), b.finish()], whole.map(expected));
        }
    }
}
