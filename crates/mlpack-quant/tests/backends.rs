//! Every implementation gives the bytes of the scalar reference, for values of every kind; and no value panics.

use mlpack_quant::{
    Backend, NBits, NBitsPart, can_decode, can_encode, decode, decode_on, encode_on, needs_importance, uses_importance,
    widen_on,
};
use mlpack_tensor::{Dtype, GgmlType};
use proptest::prelude::*;

/// Groups of sixteen values, each of one kind, so that the lanes of a vector go different ways.
fn group() -> impl Strategy<Value = Vec<f32>> {
    let scaled = (prop::collection::vec(-1.0f32..1.0, 16), -30..30i32)
        .prop_map(|(x, exponent)| x.iter().map(|v| v * 2f32.powi(exponent)).collect());
    let special = prop::sample::select(vec![
        0.0f32, -0.0, 1.0, -1.0, 0.5, 2.5, 65504.0, -65520.0, 1e-15, -9e-16, 1e-30, 1e-40, -1e-45, 1e20, -3e38,
    ]);
    prop_oneof![
        6 => prop::collection::vec(-0.05f32..0.05, 16),
        2 => scaled,
        1 => special.clone().prop_map(|v| vec![v; 16]),
        1 => prop::collection::vec(special.clone(), 16),
        1 => prop::collection::vec((-64..64i32).prop_map(|v| v as f32 * 0.5), 16),
        1 => prop::collection::vec((-24..=24i32).prop_map(|v| v as f32 * 0.25), 16),
        1 => (prop::collection::vec(-3.0f32..3.0, 16), 0..40i32)
            .prop_map(|(x, exponent)| x.iter().map(|v| v * 2f32.powi(exponent - 15)).collect()),
        1 => (0..16usize, special).prop_map(|(at, v)| {
            let mut group = vec![0.0; 16];
            group[at] = v;
            group
        }),
        1 => prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 16),
    ]
}

fn values(groups: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(group(), groups).prop_map(|groups| groups.concat())
}

fn encoded(backend: Backend, ty: GgmlType, x: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; ty.row_byte_len(x.len() as u64).unwrap() as usize];
    encode_on(backend, ty, x, row_len, importance, &mut out).unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_backend_equals_the_scalar_reference(x in values(48..49), rows in prop::sample::select(vec![1usize, 3])) {
        for &ty in GgmlType::ALL.iter().filter(|&&ty| can_encode(ty) && !needs_importance(ty)) {
            let row_len = x.len() / rows;
            let expected = encoded(Backend::Scalar, ty, &x, row_len, None);
            for backend in Backend::available() {
                let found = encoded(backend, ty, &x, row_len, None);
                let at = found.iter().zip(&expected).position(|(a, b)| a != b);
                prop_assert!(at.is_none(), "{ty} {backend:?}: byte {at:?}: {:?}", at.map(|at| (found[at], expected[at])));
            }
        }
    }

    #[test]
    fn every_backend_equals_the_scalar_reference_with_importance(
        x in values(48..49),
        weights in prop::collection::vec(prop_oneof![4 => 0.0f32..2.0, 1 => Just(0.0)], 768),
        rows in prop::sample::select(vec![1usize, 3]),
    ) {
        for &ty in GgmlType::ALL.iter().filter(|&&ty| can_encode(ty) && uses_importance(ty)) {
            let row_len = x.len() / rows;
            let importance = Some(&weights[..row_len]);
            let expected = encoded(Backend::Scalar, ty, &x, row_len, importance);
            for backend in Backend::available() {
                let found = encoded(backend, ty, &x, row_len, importance);
                let at = found.iter().zip(&expected).position(|(a, b)| a != b);
                prop_assert!(at.is_none(), "{ty} {backend:?}: byte {at:?}: {:?}", at.map(|at| (found[at], expected[at])));
            }
        }
    }

    #[test]
    fn every_backend_makes_the_blocks_of_the_scalar_reference(x in values(3..20), rows in prop::sample::select(vec![1usize, 3])) {
        let row_len = x.len() / rows;
        let x = &x[..rows * row_len];
        for bits in [4, 8] {
            for (symmetric, scale) in [(true, Dtype::F32), (false, Dtype::F16), (true, Dtype::BF16), (false, Dtype::F32)] {
                for block in [16, 32, 128] {
                    let blocks = NBits { bits, block, symmetric, scale };
                    for part in [NBitsPart::Codes, NBitsPart::Scales, NBitsPart::ZeroPoints] {
                        let encoded = |backend| {
                            let mut out = vec![0xa5; rows * blocks.row_byte_len(part, row_len as u64) as usize];
                            blocks.encode_on(backend, part, x, row_len, &mut out);
                            out
                        };
                        let expected = encoded(Backend::Scalar);
                        for backend in Backend::available() {
                            let found = encoded(backend);
                            let at = found.iter().zip(&expected).position(|(a, b)| a != b);
                            prop_assert!(at.is_none(), "{blocks:?} {part:?} {backend:?}: byte {at:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_backend_widens_alike(bytes in prop::collection::vec(any::<u8>(), 8 * 43)) {
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
            let mut expected = vec![0.0; bytes.len() / dtype.byte_size() as usize];
            widen_on(Backend::Scalar, dtype, &bytes, &mut expected).unwrap();
            for backend in Backend::available() {
                let mut found = vec![0.0; expected.len()];
                widen_on(backend, dtype, &bytes, &mut found).unwrap();
                let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                prop_assert!(same, "{dtype} {backend:?}");
            }
        }
    }

    #[test]
    fn every_backend_decodes_alike(words in prop::collection::vec(any::<u64>(), 3 * 1024 / 8)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for &ty in GgmlType::ALL.iter().filter(|&&ty| can_decode(ty)) {
            let blocks = bytes.len() as u64 / ty.block_byte_len();
            let src = &bytes[..(blocks * ty.block_byte_len()) as usize];
            let mut expected = vec![0.0; (blocks * ty.block_len()) as usize];
            decode_on(Backend::Scalar, ty, src, &mut expected).unwrap();
            for backend in Backend::available() {
                let mut found = vec![1.0; expected.len()];
                decode_on(backend, ty, src, &mut found).unwrap();
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let at = found.iter().zip(&expected).position(|pair| !same(pair));
                prop_assert!(at.is_none(), "{ty} {backend:?}: value {at:?}: {:?}", at.map(|at| (found[at], expected[at])));
            }
        }
    }

    #[test]
    fn decoding_stays_within_the_step_of_the_type(x in prop::collection::vec(-1.0f32..1.0, 256)) {
        // The widest step between neighbouring values that a block spanning [-1, 1] can have, with room for its scale's
        // own rounding.
        for (ty, step) in STEPS {
            let mut back = vec![0.0; 256];
            decode(ty, &encoded(Backend::best(), ty, &x, 256, None), &mut back).unwrap();
            for (a, b) in x.iter().zip(&back) {
                prop_assert!((a - b).abs() <= step, "{ty}: {a} came back as {b}");
            }
        }
    }
}

const STEPS: [(GgmlType, f32); 11] = [
    (GgmlType::F16, 0.0005),
    (GgmlType::BF16, 0.004),
    (GgmlType::Q8_0, 0.0045),
    (GgmlType::Q6_K, 0.035),
    (GgmlType::Q5_0, 0.065),
    (GgmlType::Q5_1, 0.034),
    (GgmlType::Q5_K, 0.07),
    (GgmlType::Q4_0, 0.13),
    (GgmlType::Q4_1, 0.07),
    (GgmlType::Q4_K, 0.14),
    (GgmlType::Q3_K, 0.4),
];
