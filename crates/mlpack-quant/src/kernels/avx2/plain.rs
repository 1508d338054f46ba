//! The plain Rust of `decode` and `small`, compiled for AVX2.

use crate::kernels::decode::{self, Lookup};
use crate::kernels::small;
use mlpack_tensor::GgmlType;
use std::arch::x86_64::*;

struct Shuffle;

impl Lookup for Shuffle {
    #[inline(always)]
    fn entries(table: &[i8; 16], codes: [u8; 16]) -> [i8; 16] {
        // SAFETY: used only below `decode`, whose CPU has AVX2; the loads and the store are of sixteen bytes.
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            let entries = _mm_shuffle_epi8(table, _mm_loadu_si128(codes.as_ptr().cast()));
            let mut out = [0; 16];
            _mm_storeu_si128(out.as_mut_ptr().cast(), entries);
            out
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn decode(ty: GgmlType, src: &[u8], dst: &mut [f32]) -> bool {
    decode::decode::<Shuffle>(ty, src, dst)
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode(ty: GgmlType, src: &[f32], dst: &mut [u8]) -> bool {
    small::encode(ty, src, dst)
}
