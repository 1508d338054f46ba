//! Row-major shapes.

use std::fmt;

/// The dimensions of a tensor, outermost first (the order of PyTorch and safetensors; GGUF stores them reversed).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<u64>);

impl Shape {
    /// A shape from its dimensions, outermost first. An empty list is a scalar.
    pub fn new(dims: Vec<u64>) -> Shape {
        Shape(dims)
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[u64] {
        &self.0
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The number of elements; `None` when it does not fit in a `u64`. A scalar has one element.
    pub fn element_count(&self) -> Option<u64> {
        self.0.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// The length of one row, that is the innermost dimension; 1 for a scalar.
    pub fn row_len(&self) -> u64 {
        self.0.last().copied().unwrap_or(1)
    }

    /// The number of rows: the product of all dimensions but the innermost; `None` on overflow.
    pub fn row_count(&self) -> Option<u64> {
        let outer = self.0.len().saturating_sub(1);
        self.0[..outer].iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }
}

impl From<&[u64]> for Shape {
    fn from(dims: &[u64]) -> Shape {
        Shape(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_elements() {
        let s = Shape::new(vec![3, 4, 5]);
        assert_eq!((s.element_count(), s.row_count(), s.row_len()), (Some(60), Some(12), 5));
        let scalar = Shape::default();
        assert_eq!((scalar.element_count(), scalar.row_count(), scalar.row_len()), (Some(1), Some(1), 1));
        assert_eq!(s.to_string(), "[3, 4, 5]");
    }

    #[test]
    fn a_zero_dimension_does_not_hide_an_overflow_before_it() {
        assert_eq!(Shape::new(vec![u64::MAX, 2, 0]).element_count(), None);
        assert_eq!(Shape::new(vec![0, 7]).element_count(), Some(0));
    }
}
