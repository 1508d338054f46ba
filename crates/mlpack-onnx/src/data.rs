//! The files beside a graph that hold its weights (onnx, "External Data").
//!
//! ```text
//! model.onnx_data     | weight | 0… | weight | 0… | WEIGHT of more than 1 MiB, at a multiple of 64 KiB | 0… |
//! model.onnx_data_1   | weight | …        where the first would be longer than the limit
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
pub struct DataFiles {
    places: Vec<Place>,
    byte_lens: Vec<u64>,
}

/// Where a weight lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, by number.
    pub file: usize,
    /// Its bytes, as offsets into the file.
    pub range: Range<u64>,
    /// Where the zeros after it end.
    pub padded_end: u64,
}

impl DataFiles {
    /// Lays out weights in their order, in files of at most `limit` bytes; a weight that is longer has a longer one.
    ///
    /// # Panics
    /// When sizes overflow: shapes were compared with those of tensors that exist.
    pub fn new(weights: &[Weight], limit: u64) -> DataFiles {
        let mut places: Vec<Place> = Vec::with_capacity(weights.len());
        let mut byte_lens = vec![0u64];
        for weight in weights {
            let byte_len = weight.byte_len().expect("a tensor that exists has a size");
            let alignment = if byte_len > LARGE { LARGE_ALIGNMENT } else { SMALL_ALIGNMENT };
            let end = byte_lens[byte_lens.len() - 1];
            let mut start = end.next_multiple_of(alignment);
            if end > 0 && start.saturating_add(byte_len) > limit {
                byte_lens.push(0);
                start = 0;
            } else if let Some(before) = places.last_mut() {
                before.padded_end = start;
            }
            let file = byte_lens.len() - 1;
            byte_lens[file] = start + byte_len;
            places.push(Place { file, range: start..start + byte_len, padded_end: start + byte_len });
        }
        DataFiles { places, byte_lens }
    }

    /// The place of each weight.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The lengths of the files.
    pub fn byte_lens(&self) -> &[u64] {
        &self.byte_lens
    }

    /// What a file is called beside the graph `model`, as transformers.js has it.
    pub fn file_name(model: &str, file: usize) -> String {
        if file == 0 { format!("{model}_data") } else { format!("{model}_data_{file}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Element, Form};

    fn weight(elements: u64) -> Weight {
        Weight {
            name: String::new(),
            roles: Vec::new(),
            form: Form::AsIs,
            element: Element::F32,
            shape: vec![elements],
        }
    }

    #[test]
    fn large_weights_lie_on_pages_and_small_ones_together() {
        let data = DataFiles::new(&[weight(3), weight(1 << 19), weight(1), weight(5)], u64::MAX);
        let starts: Vec<u64> = data.places().iter().map(|place| place.range.start).collect();
        assert_eq!(starts, [0, 65_536, 65_536 + (1 << 21), 65_536 + (1 << 21) + 64]);
        assert_eq!(data.places()[0].padded_end, 65_536);
        assert_eq!(data.byte_lens(), [starts[3] + 20]);
        assert_eq!(data.places()[3].padded_end, data.byte_lens()[0]);
    }

    #[test]
    fn a_file_that_would_be_too_long_is_followed_by_another() {
        let data = DataFiles::new(&[weight(40), weight(5), weight(8), weight(50), weight(1)], 200);
        let places: Vec<_> = data.places().iter().map(|place| (place.file, place.range.start)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (1, 64), (2, 0), (3, 0)]);
        assert_eq!(data.places()[0].padded_end, 160, "no padding at the end of a file");
        assert_eq!(data.byte_lens(), [160, 96, 200, 4]);
        assert_eq!([0, 2].map(|file| DataFiles::file_name("m.onnx", file)), ["m.onnx_data", "m.onnx_data_2"]);
    }
}
