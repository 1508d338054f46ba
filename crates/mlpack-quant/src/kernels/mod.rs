//! The fast implementations, and the choice among them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks32;
mod decode;
mod lanes;
#[allow(
    clippy::needless_range_loop,
    reason = "arrays share an index, and an iterator adapter left out of line is compiled without the CPU features"
)]
mod lattice;
mod nbits;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod search;
mod self_check;
mod small;
mod stream;
mod super_blocks;

use crate::codec;
use crate::nbits::{NBits, NBitsPart, Scalar};
use lanes::{Lanes, Pair, Portable};
use mlpack_tensor::{Dtype, GgmlType};
use std::sync::OnceLock;

/// An implementation of the codecs. All give the same bits; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// The scalar reference.
    Scalar,
    /// Sixteen groups at a time in plain Rust, for the types that are searched, and loops that compilers turn into vectors
    /// for the rest.
    Portable,
    /// The same with AVX2 and F16C.
    Avx2,
    /// The same with AVX-512 (F, BW, DQ, VL); what memory bounds stays with AVX2.
    Avx512,
    /// The same with NEON, on 64-bit Arm.
    Neon,
}

impl Backend {
    /// The fastest implementation that this machine can run, of those that have shown themselves equal to the scalar code.
    pub fn best() -> Backend {
        let fastest_first = [Backend::Avx512, Backend::Avx2, Backend::Neon];
        fastest_first.into_iter().find(|b| b.runs_here() && b.is_trusted()).unwrap_or(Backend::Portable)
    }

    /// Whether the tests of this crate have run on it. No AVX-512 CPU was at hand, so that implementation shows on the
    /// user's own, once for each process, that it gives the scalar bytes; it takes some milliseconds.
    fn is_trusted(self) -> bool {
        static AVX512: OnceLock<bool> = OnceLock::new();
        self != Backend::Avx512 || *AVX512.get_or_init(|| self_check::equals_scalar(self))
    }

    /// Every implementation that this machine can run, slowest first.
    pub fn available() -> Vec<Backend> {
        let all = [Backend::Scalar, Backend::Portable, Backend::Neon, Backend::Avx2, Backend::Avx512];
        all.into_iter().filter(|b| b.runs_here()).collect()
    }

    fn runs_here(self) -> bool {
        match self {
            Backend::Scalar | Backend::Portable => true,
            // The standard library asks the CPU once and remembers.
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => {
                Backend::Avx2.runs_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Backend::Avx2 | Backend::Avx512 => false,
            Backend::Neon => cfg!(all(target_arch = "aarch64", target_feature = "neon")),
        }
    }

    /// Encodes with this implementation; `false`, with `dst` untouched, where it has none of its own for the type. The
    /// lengths fit, and `importance` is given only to types that use it.
    pub(crate) fn encode(self, ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
        match self {
            Backend::Scalar => false,
            Backend::Portable => encode_lanes::<Pair<Portable>>(ty, src, importance, dst) || encode_loops(ty, src, dst),
            Backend::Avx2 => encode_avx2(ty, src, importance, dst),
            Backend::Avx512 => encode_avx512(ty, src, importance, dst) || encode_avx2(ty, src, importance, dst),
            Backend::Neon => encode_neon(ty, src, importance, dst) || encode_loops(ty, src, dst),
        }
    }

    /// Encodes one part of blocks for ONNX Runtime. The lengths fit.
    pub(crate) fn encode_nbits(self, blocks: &NBits, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
        match self {
            Backend::Scalar => blocks.encode_rows::<Scalar>(part, src, row_len, dst),
            Backend::Portable | Backend::Neon => blocks.encode_rows::<nbits::Plain>(part, src, row_len, dst),
            Backend::Avx2 | Backend::Avx512 => encode_nbits_avx2(blocks, part, src, row_len, dst),
        }
    }

    /// Decodes with this implementation; `false`, with `dst` untouched, where it has none of its own for the type. The
    /// lengths fit.
    pub(crate) fn decode(self, ty: GgmlType, src: &[u8], dst: &mut [f32]) -> bool {
        match self {
            Backend::Scalar => false,
            Backend::Portable => decode::decode::<decode::Each>(ty, src, dst),
            Backend::Avx2 | Backend::Avx512 => decode_avx2(ty, src, dst),
            Backend::Neon => decode_neon(ty, src, dst),
        }
    }

    /// Widens with this implementation. The lengths fit.
    pub(crate) fn widen(self, dtype: Dtype, src: &[u8], dst: &mut [f32]) {
        match self {
            Backend::Avx2 | Backend::Avx512 => widen_avx2(dtype, src, dst),
            Backend::Scalar | Backend::Portable | Backend::Neon => codec::widen_plain(dtype, src, dst),
        }
    }
}

/// The types that are searched.
fn encode_lanes<V: Lanes>(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
    match (ty, importance) {
        (GgmlType::Q2_K, _) => super_blocks::q2_k::<V>(src, importance, dst),
        (GgmlType::Q3_K, Some(importance)) => super_blocks::q3_k_weighted::<V>(src, importance, dst),
        (GgmlType::Q4_K, _) => super_blocks::q4_k::<V>(src, importance, dst),
        (GgmlType::Q5_K, _) => super_blocks::q5_k::<V>(src, importance, dst),
        (GgmlType::Q6_K, _) => super_blocks::q6_k::<V>(src, importance, dst),
        (GgmlType::IQ4_XS, _) => super_blocks::iq4_xs::<V>(src, importance, dst),
        (GgmlType::IQ4_NL, _) => blocks32::iq4_nl::<V>(src, importance, dst),
        (GgmlType::IQ1_S, Some(w)) => lattice::portable::iq1_s(src, w, dst),
        (GgmlType::IQ1_M, _) => lattice::portable::iq1_m(src, importance, dst),
        (GgmlType::IQ2_XXS, Some(w)) => lattice::portable::iq2_xxs(src, w, dst),
        (GgmlType::IQ2_XS, Some(w)) => lattice::portable::iq2_xs(src, w, dst),
        (GgmlType::IQ2_S, _) => lattice::portable::iq2_s(src, importance, dst),
        (GgmlType::IQ3_XXS, _) => lattice::portable::iq3_xxs(src, importance, dst),
        (GgmlType::IQ3_S, _) => lattice::portable::iq3_s(src, importance, dst),
        (GgmlType::Q4_0, Some(w)) => blocks32::weighted::<V, blocks32::Q4_0, 18>(src, w, dst),
        (GgmlType::Q4_1, Some(w)) => blocks32::weighted::<V, blocks32::Q4_1, 20>(src, w, dst),
        (GgmlType::Q5_0, Some(w)) => blocks32::weighted::<V, blocks32::Q5_0, 22>(src, w, dst),
        (GgmlType::Q5_1, Some(w)) => blocks32::weighted::<V, blocks32::Q5_1, 24>(src, w, dst),
        _ => return false,
    }
    true
}

/// The types that are not searched, or not without importance.
fn encode_loops(ty: GgmlType, src: &[f32], dst: &mut [u8]) -> bool {
    stream::encode(ty, src, dst) || small::encode(ty, src, dst)
}

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
fn encode_neon(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
    if let (GgmlType::Q3_K, None) = (ty, importance) {
        super_blocks::q3_k::<neon::F16>(src, dst);
        return true;
    }
    encode_lanes::<neon::F16>(ty, src, importance, dst)
}

#[cfg(not(all(target_arch = "aarch64", target_feature = "neon")))]
fn encode_neon(_: GgmlType, _: &[f32], _: Option<&[f32]>, _: &mut [u8]) -> bool {
    false
}

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
fn decode_neon(ty: GgmlType, src: &[u8], dst: &mut [f32]) -> bool {
    decode::decode::<neon::Table>(ty, src, dst)
}

#[cfg(not(all(target_arch = "aarch64", target_feature = "neon")))]
fn decode_neon(_: GgmlType, _: &[u8], _: &mut [f32]) -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the entry point needs CPU features")]
fn encode_avx512(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
    // SAFETY: the CPU has the parts of AVX-512 that this function asks for.
    Backend::Avx512.runs_here() && unsafe { avx512::encode(ty, src, importance, dst) }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the entry point needs CPU features")]
fn decode_avx2(ty: GgmlType, src: &[u8], dst: &mut [f32]) -> bool {
    // SAFETY: the CPU has AVX2 and F16C, which is all that this function asks for.
    Backend::Avx2.runs_here() && unsafe { avx2::plain::decode(ty, src, dst) }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the entry points need CPU features")]
fn encode_avx2(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
    if !Backend::Avx2.runs_here() {
        return false;
    }
    // SAFETY: the CPU has AVX2 and F16C, which is all that these functions ask for.
    unsafe {
        match (ty, importance) {
            (GgmlType::F16, _) => avx2::stream::encode_f16(src, dst),
            (GgmlType::BF16, _) => avx2::stream::encode_bf16(src, dst),
            (GgmlType::Q4_0, None) => avx2::stream::encode_q4_0(src, dst),
            (GgmlType::Q4_1, None) => avx2::stream::encode_q4_1(src, dst),
            (GgmlType::Q5_0, None) => avx2::stream::encode_q5_0(src, dst),
            (GgmlType::Q5_1, None) => avx2::stream::encode_q5_1(src, dst),
            (GgmlType::Q8_0, _) => avx2::stream::encode_q8_0(src, dst),
            (GgmlType::Q2_K, _) => avx2::encode_q2_k(src, importance, dst),
            (GgmlType::Q3_K, _) => avx2::encode_q3_k(src, importance, dst),
            (GgmlType::Q4_K, _) => avx2::encode_q4_k(src, importance, dst),
            (GgmlType::Q5_K, _) => avx2::encode_q5_k(src, importance, dst),
            (GgmlType::Q6_K, _) => avx2::encode_q6_k(src, importance, dst),
            (GgmlType::IQ4_XS, _) => avx2::encode_iq4_xs(src, importance, dst),
            (GgmlType::IQ4_NL, _) => avx2::encode_iq4_nl(src, importance, dst),
            (GgmlType::IQ1_S, Some(importance)) => avx2::lattice::encode_iq1_s(src, importance, dst),
            (GgmlType::IQ1_M, _) => avx2::lattice::encode_iq1_m(src, importance, dst),
            (GgmlType::IQ2_XXS, Some(importance)) => avx2::lattice::encode_iq2_xxs(src, importance, dst),
            (GgmlType::IQ2_XS, Some(importance)) => avx2::lattice::encode_iq2_xs(src, importance, dst),
            (GgmlType::IQ2_S, _) => avx2::lattice::encode_iq2_s(src, importance, dst),
            (GgmlType::IQ3_XXS, _) => avx2::lattice::encode_iq3_xxs(src, importance, dst),
            (GgmlType::IQ3_S, _) => avx2::lattice::encode_iq3_s(src, importance, dst),
            (GgmlType::Q4_0, Some(importance)) => avx2::encode_q4_0(src, importance, dst),
            (GgmlType::Q4_1, Some(importance)) => avx2::encode_q4_1(src, importance, dst),
            (GgmlType::Q5_0, Some(importance)) => avx2::encode_q5_0(src, importance, dst),
            (GgmlType::Q5_1, Some(importance)) => avx2::encode_q5_1(src, importance, dst),
            _ => return avx2::plain::encode(ty, src, dst),
        }
    }
    true
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the entry points need CPU features")]
fn widen_avx2(dtype: Dtype, src: &[u8], dst: &mut [f32]) {
    // SAFETY: the CPU has AVX2 and F16C wherever the first condition holds.
    match dtype {
        Dtype::F16 if Backend::Avx2.runs_here() => unsafe { avx2::stream::widen_f16(src, dst) },
        Dtype::BF16 if Backend::Avx2.runs_here() => unsafe { avx2::stream::widen_bf16(src, dst) },
        _ => codec::widen_plain(dtype, src, dst),
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the entry point needs CPU features")]
fn encode_nbits_avx2(blocks: &NBits, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
    if !Backend::Avx2.runs_here() {
        return blocks.encode_rows::<nbits::Plain>(part, src, row_len, dst);
    }
    // SAFETY: the CPU has AVX2 and F16C, which is all that this function asks for.
    unsafe { avx2::nbits::encode(blocks, part, src, row_len, dst) }
}

#[cfg(not(target_arch = "x86_64"))]
fn encode_nbits_avx2(blocks: &NBits, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
    blocks.encode_rows::<nbits::Plain>(part, src, row_len, dst);
}

#[cfg(not(target_arch = "x86_64"))]
fn widen_avx2(dtype: Dtype, src: &[u8], dst: &mut [f32]) {
    codec::widen_plain(dtype, src, dst);
}

#[cfg(not(target_arch = "x86_64"))]
fn decode_avx2(_: GgmlType, _: &[u8], _: &mut [f32]) -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn encode_avx512(_: GgmlType, _: &[f32], _: Option<&[f32]>, _: &mut [u8]) -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn encode_avx2(_: GgmlType, _: &[f32], _: Option<&[f32]>, _: &mut [u8]) -> bool {
    false
}
