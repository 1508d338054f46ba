//! A self-check at run time: an implementation against the scalar code, on the machine that is to use it.

use super::Backend;
use crate::codec::{can_encode, encode_on, needs_importance, uses_importance};
use mlpack_tensor::GgmlType;

/// Values of a row: sixteen super-blocks, so that every lane has one, and three for the rest that lanes leave over.
const ROW_LEN: usize = (16 + 3) * 256;

/// Whether an implementation gives the bytes of the scalar code for every type, on values of ordinary and of odd sizes.
pub(super) fn equals_scalar(backend: Backend) -> bool {
    let values = probe(0x9e37_79b9);
    let importance: Vec<f32> = probe(0x85eb_ca6b).iter().map(|v| v.abs()).collect();
    let equal = |ty: GgmlType, importance: Option<&[f32]>| {
        let Some(byte_len) = ty.row_byte_len(ROW_LEN as u64) else { return true };
        let (mut ours, mut theirs) = (vec![0; byte_len as usize], vec![0; byte_len as usize]);
        let by = |backend, out: &mut [u8]| encode_on(backend, ty, &values, ROW_LEN, importance, out).is_ok();
        by(backend, &mut ours) && by(Backend::Scalar, &mut theirs) && ours == theirs
    };
    let mut types = GgmlType::ALL.iter().copied().filter(|ty| can_encode(*ty) && ty.is_quantized());
    types.all(|ty| (needs_importance(ty) || equal(ty, None)) && (!uses_importance(ty) || equal(ty, Some(&importance))))
}

/// Values like those of weights, in groups of 32 of unlike sizes; every seventh group is zeros, an outlier, or ties.
fn probe(seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // xorshift32 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut values = vec![0.0; ROW_LEN];
    for (i, group) in values.chunks_mut(32).enumerate() {
        let scale = 2f32.powi((next() % 16) as i32 - 12);
        for v in group.iter_mut() {
            *v = (next() as i32 as f32 / i32::MAX as f32) * scale;
        }
        match i % 21 {
            0 => group.fill(0.0),
            7 => group[(next() % 32) as usize] *= 1000.0,
            14 => group.iter_mut().enumerate().for_each(|(j, v)| *v = (j as f32 - 15.5) * scale),
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_implementation_passes_its_own_check() {
        for backend in Backend::available() {
            assert!(equals_scalar(backend), "{backend:?}");
        }
    }
}
