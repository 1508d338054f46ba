//! The fast implementations, and the choice among them.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod blocks32;
mod lanes;
mod search;
mod super_blocks;

use crate::codec;
use lanes::{Pair, Portable};
use mlpack_tensor::{Dtype, GgmlType};

/// An implementation of the codecs. All give the same bits; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// The scalar reference.
    Scalar,
    /// Sixteen groups at a time in plain Rust, for the types that are searched.
    Portable,
    /// Sixteen groups at a time, and the rest of the common types, with AVX2 and F16C.
    Avx2,
}

impl Backend {
    /// The fastest implementation that this machine can run.
    pub fn best() -> Backend {
        if Backend::Avx2.runs_here() { Backend::Avx2 } else { Backend::Portable }
    }

    /// Every implementation that this machine can run, slowest first.
    pub fn available() -> Vec<Backend> {
        [Backend::Scalar, Backend::Portable, Backend::Avx2].into_iter().filter(|b| b.runs_here()).collect()
    }

    fn runs_here(self) -> bool {
        match self {
            Backend::Scalar | Backend::Portable => true,
            // The standard library asks the CPU once and remembers.
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(not(target_arch = "x86_64"))]
            Backend::Avx2 => false,
        }
    }

    /// Encodes with this implementation; `false`, with `dst` untouched, where it has none of its own for the type. The
    /// lengths fit, and `importance` is given only to types that use it.
    pub(crate) fn encode(self, ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
        match self {
            Backend::Scalar => false,
            Backend::Portable => encode_portable(ty, src, importance, dst),
            Backend::Avx2 => encode_avx2(ty, src, importance, dst),
        }
    }

    /// Widens with this implementation. The lengths fit.
    pub(crate) fn widen(self, dtype: Dtype, src: &[u8], dst: &mut [f32]) {
        match self {
            Backend::Avx2 => widen_avx2(dtype, src, dst),
            Backend::Scalar | Backend::Portable => codec::widen_plain(dtype, src, dst),
        }
    }
}

fn encode_portable(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
    type V = Pair<Portable>;
    match (ty, importance) {
        (GgmlType::Q2_K, _) => super_blocks::q2_k::<V>(src, importance, dst),
        (GgmlType::Q3_K, Some(importance)) => super_blocks::q3_k_weighted::<V>(src, importance, dst),
        (GgmlType::Q4_K, _) => super_blocks::q4_k::<V>(src, importance, dst),
        (GgmlType::Q5_K, _) => super_blocks::q5_k::<V>(src, importance, dst),
        (GgmlType::Q6_K, _) => super_blocks::q6_k::<V>(src, importance, dst),
        (GgmlType::IQ4_XS, _) => super_blocks::iq4_xs::<V>(src, importance, dst),
        (GgmlType::IQ4_NL, _) => blocks32::iq4_nl::<V>(src, importance, dst),
        (GgmlType::Q4_0, Some(w)) => blocks32::weighted::<V, blocks32::Q4_0, 18>(src, w, dst),
        (GgmlType::Q4_1, Some(w)) => blocks32::weighted::<V, blocks32::Q4_1, 20>(src, w, dst),
        (GgmlType::Q5_0, Some(w)) => blocks32::weighted::<V, blocks32::Q5_0, 22>(src, w, dst),
        (GgmlType::Q5_1, Some(w)) => blocks32::weighted::<V, blocks32::Q5_1, 24>(src, w, dst),
        _ => return false,
    }
    true
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
            (GgmlType::Q4_0, Some(importance)) => avx2::encode_q4_0(src, importance, dst),
            (GgmlType::Q4_1, Some(importance)) => avx2::encode_q4_1(src, importance, dst),
            (GgmlType::Q5_0, Some(importance)) => avx2::encode_q5_0(src, importance, dst),
            (GgmlType::Q5_1, Some(importance)) => avx2::encode_q5_1(src, importance, dst),
            _ => return false,
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

#[cfg(not(target_arch = "x86_64"))]
fn widen_avx2(dtype: Dtype, src: &[u8], dst: &mut [f32]) {
    codec::widen_plain(dtype, src, dst);
}

#[cfg(not(target_arch = "x86_64"))]
fn encode_avx2(_: GgmlType, _: &[f32], _: Option<&[f32]>, _: &mut [u8]) -> bool {
    false
}
