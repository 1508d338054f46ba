//! The kernels give the bytes of mlpack-quant's scalar reference: compiled for the host, behind a model of the driver.

#[path = "../../mlpack-quant/tests/inputs/mod.rs"]
mod inputs;

use mlpack_device::{Device, HostModel, Limits, Outcome, Output, Slab, can_encode};
use mlpack_quant::{Backend, encode_on, needs_importance, uses_importance};
use mlpack_tensor::{Dtype, GgmlType};
use proptest::prelude::*;

fn device() -> (HostModel, Device) {
    let model = HostModel::new();
    let device = model.open(0, Limits { memory: None, lanes: 1 }).unwrap();
    (model, device)
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| can_encode(*ty, true))
}

/// Whether a type is encoded so.
fn takes(ty: GgmlType, importance: bool) -> bool {
    if importance { uses_importance(ty) } else { !needs_importance(ty) }
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn expected(ty: GgmlType, x: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; ty.row_byte_len(x.len() as u64).unwrap() as usize];
    encode_on(Backend::Scalar, ty, x, row_len, importance, &mut out).unwrap();
    out
}

fn found(device: &Device, ty: GgmlType, x: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0x5a; ty.row_byte_len(x.len() as u64).unwrap() as usize];
    let rows = bytes_of(x);
    let slab = Slab { dtype: Dtype::F32, pieces: &[&rows], row_len, deltas: &[] };
    let outcome = device.run(&slab, &mut [Output::Encoded { ty, importance, bytes: &mut bytes }]).unwrap();
    assert_eq!(outcome, Outcome::Done);
    bytes
}

#[test]
fn a_device_encodes_every_type_that_the_cpu_encodes() {
    for ty in GgmlType::ALL.iter().copied() {
        assert_eq!(can_encode(ty, true), mlpack_quant::can_encode(ty), "{ty}");
        assert_eq!(can_encode(ty, false), mlpack_quant::can_encode(ty) && !needs_importance(ty), "{ty}");
    }
}

#[test]
fn every_case_of_the_goldens_is_encoded_as_the_reference_does() {
    let (_model, device) = device();
    let mut checked = 0;
    for ty in types() {
        for case in inputs::CASES {
            for row_len in inputs::row_lens(ty.block_len()) {
                let x = inputs::values(case, row_len);
                assert!(x.iter().all(|v| v.is_finite()), "{case}");
                let kinds = [None, Some("even"), Some("wide")];
                for kind in kinds.into_iter().filter(|kind| takes(ty, kind.is_some())) {
                    let importance = kind.map(|kind| inputs::importance(kind, case, row_len));
                    let importance = importance.as_deref();
                    let same = found(&device, ty, &x, row_len, importance) == expected(ty, &x, row_len, importance);
                    assert!(same, "{ty} {case} rows of {row_len}, importance {kind:?}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 1500, "only {checked} were compared");
}

/// Groups of sixteen values, each of one kind, so that the lanes of a block go different ways.
fn group() -> impl Strategy<Value = Vec<f32>> {
    let special = prop::sample::select(vec![
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        0.5,
        2.5,
        65504.0,
        -65520.0,
        1e-15,
        -9e-16,
        1e-30,
        1e-40,
        -1e-45,
        1e20,
        -3e38,
        f32::MAX,
        f32::MIN_POSITIVE,
    ]);
    let scaled = |exponents: std::ops::Range<i32>| {
        (prop::collection::vec(-1.0f32..1.0, 16), exponents)
            .prop_map(|(x, exponent)| x.iter().map(|v| v * 2f32.powi(exponent)).collect::<Vec<f32>>())
    };
    prop_oneof![
        6 => prop::collection::vec(-0.05f32..0.05, 16),
        2 => scaled(-30..30),
        1 => scaled(-148..127),
        1 => special.clone().prop_map(|v| vec![v; 16]),
        1 => prop::collection::vec(special.clone(), 16),
        1 => prop::collection::vec((-64..64i32).prop_map(|v| v as f32 * 0.5), 16),
        1 => prop::collection::vec((-24..=24i32).prop_map(|v| v as f32 * 0.25), 16),
        1 => (0..16usize, special).prop_map(|(at, v)| {
            let mut group = vec![0.0; 16];
            group[at] = v;
            group
        }),
        // Any finite float: exponents of all ones lose a bit.
        1 => prop::collection::vec(any::<u32>(), 16).prop_map(|bits| {
            let finite = |b: u32| if b & 0x7f80_0000 == 0x7f80_0000 { b & !0x0080_0000 } else { b };
            bits.into_iter().map(|b| f32::from_bits(finite(b))).collect()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_of_every_kind_are_encoded_as_the_reference_does(
        x in prop::collection::vec(group(), 48).prop_map(|groups| groups.concat()),
        weights in prop::collection::vec(prop_oneof![
            8 => 0.0f32..2.0,
            2 => Just(0.0),
            1 => prop::sample::select(vec![1e-38f32, 1e-20, 1e10, 3e38]),
        ], 768),
        rows in prop::sample::select(vec![1usize, 3]),
    ) {
        let (_model, device) = device();
        let row_len = x.len() / rows;
        for ty in types() {
            for importance in [None, Some(&weights[..row_len])].into_iter().filter(|i| takes(ty, i.is_some())) {
                let (ours, theirs) = (found(&device, ty, &x, row_len, importance), expected(ty, &x, row_len, importance));
                let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
                prop_assert!(at.is_none(), "{ty} with importance {}: byte {at:?}: {:?}", importance.is_some(), at.map(|at| (ours[at], theirs[at])));
            }
        }
    }
}

#[test]
fn stored_rows_are_widened_exactly() {
    let (_model, device) = device();
    let halves: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    let floats: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7f80 != 0x7f80).collect();
    for (dtype, stored) in [(Dtype::F16, halves), (Dtype::BF16, floats)] {
        let rows: Vec<u8> = stored.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut expected = vec![0.0; stored.len()];
        mlpack_quant::widen(dtype, &rows, &mut expected).unwrap();
        let mut bytes = vec![0; stored.len() * 4];
        let slab = Slab { dtype, pieces: &[&rows], row_len: 32, deltas: &[] };
        let mut outputs = [Output::Encoded { ty: GgmlType::F32, importance: None, bytes: &mut bytes }];
        assert_eq!(device.run(&slab, &mut outputs).unwrap(), Outcome::Done);
        assert!(bytes == bytes_of(&expected), "{dtype}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_seen() {
    let (_model, device) = device();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![0.5f32; 4096];
        x[3000] = value;
        let rows = bytes_of(&x);
        let mut bytes = vec![0; 4096 / 32 * 34];
        let slab = Slab { dtype: Dtype::F32, pieces: &[&rows], row_len: 32, deltas: &[] };
        let mut outputs = [Output::Encoded { ty: GgmlType::Q8_0, importance: None, bytes: &mut bytes }];
        assert_eq!(device.run(&slab, &mut outputs).unwrap(), Outcome::NotFinite);
    }
}
