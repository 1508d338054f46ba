//! Sums against straightforward float64 arithmetic, cuts into slabs against no cuts, and what a gate lets pass.

use super::*;
use proptest::prelude::*;

/// Values between -1 and 1 from a fixed sequence, with the seed's own.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The error of a tensor that is cut before the given rows; slabs arrive last first.
fn error(row_len: usize, source: &[f32], stored: &[f32], cuts: &[usize]) -> TensorError {
    let rows = source.len() / row_len;
    let mut bounds: Vec<usize> = [0, rows].iter().chain(cuts).copied().collect();
    bounds.sort_unstable();
    let mut sums = ErrorSums::default();
    for pair in bounds.windows(2).rev() {
        let mut slab = SlabSums::new(pair[0] as u64);
        let range = pair[0] * row_len..pair[1] * row_len;
        slab.add_rows(row_len, &source[range.clone()], &stored[range]);
        sums.add(slab);
    }
    sums.finish()
}

fn whole(row_len: usize, source: &[f32], stored: &[f32]) -> TensorError {
    error(row_len, source, stored, &[])
}

fn bits(e: &TensorError) -> [u64; 8] {
    let [a, b, c, d] = [e.squared_error, e.source_square, e.stored_square, e.dot].map(f64::to_bits);
    [a, b, c, d, e.max.error.to_bits(), e.max.row, e.max.column, e.elements]
}

#[test]
fn figures_are_those_of_plain_float64_arithmetic() {
    for (rows, row_len) in [(1, 1), (1, 7), (3, 64), (17, 33), (5, 4096)] {
        let source = values(1, rows * row_len);
        let stored: Vec<f32> = source.iter().zip(values(2, rows * row_len)).map(|(a, e)| a + e * 0.01).collect();
        let found = whole(row_len, &source, &stored);
        let pairs = || source.iter().zip(&stored).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let squared: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
        let (aa, bb): (f64, f64) = pairs().fold((0.0, 0.0), |(aa, bb), (a, b)| (aa + a * a, bb + b * b));
        let dot: f64 = pairs().map(|(a, b)| a * b).sum();
        let (index, max) = pairs()
            .map(|(a, b)| (a - b).abs())
            .enumerate()
            .fold((0, 0.0), |best, (i, e)| if e > best.1 { (i, e) } else { best });
        let n = (rows * row_len) as f64;
        let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} {b}");
        near(found.rmse(), (squared / n).sqrt());
        near(found.source_rms(), (aa / n).sqrt());
        near(found.relative_rmse(), (squared / n).sqrt() / (aa / n).sqrt());
        near(found.cosine(), dot / (aa.sqrt() * bb.sqrt()));
        let place = MaxError { error: max, row: (index / row_len) as u64, column: (index % row_len) as u64 };
        assert_eq!((found.max, found.elements), (place, n as u64));
    }
}

proptest! {
    #[test]
    fn cuts_into_slabs_change_no_bit(
        rows in 1usize..40,
        row_len in 1usize..70,
        seed in any::<u64>(),
        cuts in prop::collection::vec(0usize..40, 0..8),
        nan in prop::option::of(0usize..2800),
    ) {
        let source = values(seed, rows * row_len);
        let mut stored = values(seed ^ 0xabcd, rows * row_len);
        if let Some(i) = nan.filter(|i| *i < stored.len()) {
            stored[i] = f32::NAN;
        }
        let cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows)).collect();
        let (once, cut) = (whole(row_len, &source, &stored), error(row_len, &source, &stored, &cuts));
        prop_assert_eq!(bits(&once), bits(&cut));
    }
}

#[test]
fn the_largest_error_is_the_first_of_equals() {
    let source = [0.0; 12];
    let mut stored = [0.0; 12];
    (stored[5], stored[7], stored[10]) = (-2.0, 2.0, 2.0);
    let expected = MaxError { error: 2.0, row: 1, column: 2 };
    assert_eq!(error(3, &source, &stored, &[1, 2, 3]).max, expected);
    assert_eq!(whole(3, &source, &stored).max, expected);
}

#[test]
fn equal_tensors_have_no_error_and_a_cosine_of_exactly_one() {
    for seed in 0..50 {
        let source = values(seed, 1000);
        let e = whole(100, &source, &source);
        assert_eq!((e.rmse(), e.relative_rmse(), e.cosine(), e.max.error), (0.0, 0.0, 1.0, 0.0), "{seed}");
    }
}

#[test]
fn all_zero_and_empty_tensors_have_figures() {
    let (zero, one) = ([0.0; 4], [1.0; 4]);
    let both = whole(4, &zero, &zero);
    assert_eq!((both.rmse(), both.relative_rmse(), both.cosine()), (0.0, 0.0, 1.0));
    let lost = whole(4, &one, &zero);
    assert_eq!((lost.rmse(), lost.relative_rmse(), lost.cosine()), (1.0, 1.0, 0.0));
    let made = whole(4, &zero, &one);
    assert_eq!((made.rmse(), made.relative_rmse(), made.cosine()), (1.0, f64::INFINITY, 0.0));
    let empty = TensorError::default();
    assert_eq!((empty.rmse(), empty.relative_rmse(), empty.cosine(), empty.source_rms()), (0.0, 0.0, 1.0, 0.0));
}

#[test]
fn what_is_not_a_number_passes_no_gate_and_has_a_place() {
    let strict = Limits { max_rmse: Some(f64::INFINITY), min_cosine: Some(-1.0) };
    let clean = values(3, 40);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (in_source, in_stored) in [(true, false), (false, true), (true, true)] {
            let (mut source, mut stored) = (clean.clone(), clean.clone());
            if in_source {
                source[23] = bad;
            }
            if in_stored {
                stored[23] = bad;
            }
            let e = whole(10, &source, &stored);
            assert!(!e.is_finite());
            assert_eq!((e.max.row, e.max.column), (2, 3), "{bad} {in_source} {in_stored}");
            assert_eq!(strict.exceeded(&e).len(), 2, "{bad} {in_source} {in_stored}: {e:?}");
            let total = TensorError::total([&whole(10, &clean, &clean), &e]);
            assert_eq!(strict.exceeded(&total).len(), 2);
        }
    }
    // A row of zeros beside a NaN in the other tensor.
    let e = whole(2, &[0.0, 0.0], &[f32::NAN, 0.0]);
    assert!(e.cosine().is_nan() && e.rmse().is_nan());
    let e = whole(2, &[0.0, 0.0], &[f32::INFINITY, 0.0]);
    assert_eq!(strict.exceeded(&e).len(), 2);
}

#[test]
fn limits_are_kept_when_they_are_met_exactly() {
    let e = whole(4, &[3.0, 0.0, 0.0, 0.0], &[3.0, 4.0, 0.0, 0.0]);
    assert_eq!((e.rmse(), e.cosine()), (2.0, 0.6));
    let limits = |max_rmse, min_cosine| Limits { max_rmse, min_cosine };
    assert_eq!(limits(Some(2.0), Some(0.6)).exceeded(&e), []);
    assert_eq!(limits(None, None).exceeded(&e), []);
    assert_eq!(limits(Some(1.9), None).exceeded(&e), [Exceeded::Rmse { limit: 1.9, found: 2.0 }]);
    assert_eq!(
        limits(Some(f64::NAN), Some(0.7)).exceeded(&e).iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["RMSE 2 is over NaN", "cosine 0.6 is under 0.7"]
    );
}

#[test]
fn a_total_is_over_elements_not_over_tensors() {
    let (small, large) = (whole(1, &[0.0], &[4.0]), whole(3, &[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0]));
    let total = TensorError::total([&small, &large]);
    assert_eq!((total.elements, total.rmse(), total.source_rms()), (4, 2.0, 0.75f64.sqrt()));
    assert_eq!(total.max.error, 4.0);
}
