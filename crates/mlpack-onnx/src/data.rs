//! The file beside a graph that holds its weights (onnx, "External Data").
//!
//! ```text
//! | weight | 0… | weight | 0… | WEIGHT of more than 1 MiB, at a multiple of 64 KiB | 0… |
//! ```
//! Runtimes map a file at multiples of a page: 4 KiB on Linux, 64 KiB on Windows. Small weights are packed to multiples
//! of 64 bytes, so that no file is mostly padding; no gap reaches 64 KiB, which onnx's own writer refuses.

use crate::graph::Weight;
use std::ops::Range;

/// Weights above this length start at a multiple of [`LARGE_ALIGNMENT`].
const LARGE: u64 = 1 << 20;
const LARGE_ALIGNMENT: u64 = 1 << 16;
const SMALL_ALIGNMENT: u64 = 64;

/// Where every weight of a graph lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    places: Vec<Place>,
    byte_len: u64,
}

/// Where a weight lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its bytes, as offsets into the file.
    pub range: Range<u64>,
    /// Where the zeros after it end.
    pub padded_end: u64,
}

impl DataFile {
    /// Lays out weights in their order.
    ///
    /// # Panics
    /// When sizes overflow: shapes were compared with those of tensors that exist.
    pub fn new(weights: &[Weight]) -> DataFile {
        let mut places: Vec<Place> = Vec::with_capacity(weights.len());
        let mut end = 0u64;
        for weight in weights {
            let byte_len = weight.byte_len().expect("a tensor that exists has a size");
            let alignment = if byte_len > LARGE { LARGE_ALIGNMENT } else { SMALL_ALIGNMENT };
            let start = end.next_multiple_of(alignment);
            if let Some(before) = places.last_mut() {
                before.padded_end = start;
            }
            end = start + byte_len;
            places.push(Place { range: start..end, padded_end: end });
        }
        DataFile { places, byte_len: end }
    }

    /// The place of each weight.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The length of the file.
    pub fn byte_len(&self) -> u64 {
        self.byte_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Element, Form};

    #[test]
    fn large_weights_lie_on_pages_and_small_ones_together() {
        let weight = |elements: u64| Weight {
            name: String::new(),
            role: String::new(),
            form: Form::AsIs,
            element: Element::F32,
            shape: vec![elements],
        };
        let data = DataFile::new(&[weight(3), weight(1 << 19), weight(1), weight(5)]);
        let starts: Vec<u64> = data.places().iter().map(|place| place.range.start).collect();
        assert_eq!(starts, [0, 65_536, 65_536 + (1 << 21), 65_536 + (1 << 21) + 64]);
        assert_eq!(data.places()[0].padded_end, 65_536);
        assert_eq!(data.byte_len(), starts[3] + 20);
        assert_eq!(data.places()[3].padded_end, data.byte_len());
    }
}
