//! How far a graph's outputs are from the reference.

use crate::forward::Overflow;
use crate::reference::Expected;
use mlpack_convert::Precision;

/// A graph beside the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Each output.
    pub outputs: Vec<OutputComparison>,
    /// How far they may be.
    pub tolerance: Tolerance,
    /// For a graph of float16: where the reference first has a value that it cannot hold.
    pub overflow: Option<Overflow>,
}

/// An output beside the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputComparison {
    /// Its name.
    pub name: String,
    /// The largest difference of two values; infinite where a value is no number.
    pub max_error: f32,
    /// How many values of the graph are infinite or no number.
    pub not_finite: usize,
    /// The largest magnitude of the reference.
    pub largest: f32,
    /// The cosine of all values together.
    pub cosine: f64,
    /// The least cosine of two vectors of a position or of a text; not for logits, whose rows may be of a few labels.
    pub min_cosine: Option<f64>,
    /// Of how many rows the same element is the largest, and how many there are; for logits.
    pub agreement: Option<(usize, usize)>,
}

/// How far outputs may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// The largest difference as a share of the largest magnitude.
    Share(f32),
    /// The least cosine of all values of an output.
    Cosine(f64),
}

impl Tolerance {
    /// That of a precision.
    pub const fn of(precision: Precision) -> Tolerance {
        match precision {
            Precision::Fp32 => Tolerance::Share(1e-4),
            Precision::Fp16 | Precision::Bf16 => Tolerance::Share(0.02),
            Precision::Int8 => Tolerance::Cosine(0.95),
            Precision::Int4 => Tolerance::Cosine(0.7),
        }
    }
}

impl Comparison {
    /// Whether every output is within the tolerance.
    pub fn is_near(&self) -> bool {
        self.outputs.iter().all(|output| match self.tolerance {
            Tolerance::Share(share) => output.max_error <= share * output.largest,
            Tolerance::Cosine(least) => output.cosine >= least,
        })
    }
}

impl OutputComparison {
    /// Compares values in the order of the reference.
    pub(crate) fn new(expected: &Expected, found: &[f32]) -> OutputComparison {
        let pairs = || expected.values.iter().zip(found);
        // What is no number stays.
        let larger = |max: f32, error: f32| if max.is_nan() || error <= max { max } else { error };
        let max_error = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, larger);
        let width = expected.width.max(1);
        let rows = || expected.values.chunks(width).zip(found.chunks(width));
        let is_logits = expected.name.ends_with("logits");
        let agreement = || {
            let same = rows().filter(|(a, b)| largest(a) == largest(b)).count();
            (same, expected.values.len() / width)
        };
        OutputComparison {
            name: expected.name.to_owned(),
            max_error: if max_error.is_finite() { max_error } else { f32::INFINITY },
            not_finite: found.iter().filter(|v| !v.is_finite()).count(),
            largest: expected.values.iter().fold(0.0, |max, v| v.abs().max(max)),
            cosine: cosine(&expected.values, found),
            min_cosine: (!is_logits).then(|| rows().map(|(a, b)| cosine(a, b)).fold(1.0, f64::min)),
            agreement: (width > 1 && is_logits).then(agreement),
        }
    }
}

/// The place of the largest element.
fn largest(row: &[f32]) -> usize {
    let mut at = 0;
    for (i, v) in row.iter().enumerate() {
        if *v > row[at] {
            at = i;
        }
    }
    at
}

/// Of two vectors; one where both are zero, less than any limit where one is no vector of numbers.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (aa, bb) = (dot(a, a), dot(b, b));
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    let cosine = dot(a, b) / (aa * bb).sqrt();
    if cosine.is_nan() { -1.0 } else { cosine.min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(found: [f32; 4]) -> OutputComparison {
        let expected = Expected { name: "logits", by_position: true, width: 2, values: vec![1.0, 2.0, 4.0, -3.0] };
        OutputComparison::new(&expected, &found)
    }

    #[test]
    fn errors_cosines_and_the_largest_element_are_those_of_rows() {
        let same = compared([1.0, 2.0, 4.0, -3.0]);
        assert_eq!((same.max_error, same.largest, same.agreement), (0.0, 4.0, Some((2, 2))));
        assert_eq!(same.not_finite, 0);
        assert!((same.cosine - 1.0).abs() < 1e-12);
        let other = compared([2.0, 1.0, 4.0, -3.0]);
        assert_eq!((other.max_error, other.agreement), (1.0, Some((1, 2))));
        assert!((other.cosine - 29.0 / 30.0).abs() < 1e-12);
        let expected =
            Expected { name: "last_hidden_state", by_position: true, width: 2, values: vec![1.0, 2.0, 4.0, -3.0] };
        let hidden = OutputComparison::new(&expected, &[2.0, 1.0, 4.0, -3.0]);
        assert!((hidden.min_cosine.unwrap() - 0.8).abs() < 1e-12, "{hidden:?}");
    }

    #[test]
    fn what_is_no_number_is_never_near() {
        for tolerance in [Tolerance::Share(1.0), Tolerance::Cosine(0.0)] {
            let near = |output| Comparison { outputs: vec![output], tolerance, overflow: None }.is_near();
            assert!(near(compared([1.0, 2.0, 4.0, -3.0])));
            let broken = compared([1.0, f32::NAN, 4.0, f32::NEG_INFINITY]);
            assert_eq!(broken.not_finite, 2);
            assert!(!near(broken));
        }
    }
}
