//! Element and block types of ggml, with their numbers and geometry (llama.cpp b11434, `ggml/include/ggml.h`,
//! `enum ggml_type`; block sizes from `gguf-py/gguf/constants.py`, `GGML_QUANT_SIZES`).

use crate::Shape;
use std::fmt;

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $elements:literal elements in $bytes:literal bytes;)*) => {
        /// The type of a tensor in a GGUF file. Spelling is ggml's.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum GgmlType {
            $($(#[$doc])* $name,)*
        }

        impl GgmlType {
            /// Every type, in the order of ggml's numbers.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$name,)*];

            /// The number in a GGUF tensor table.
            pub const fn id(self) -> u32 {
                match self { $(GgmlType::$name => $id,)* }
            }

            /// ggml's spelling, as llama-quantize prints it.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$name => stringify!($name),)* }
            }

            /// Elements of one block; 1 for the types that are not blocked.
            pub const fn block_len(self) -> u64 {
                match self { $(GgmlType::$name => $elements,)* }
            }

            /// Bytes of one block.
            pub const fn block_byte_len(self) -> u64 {
                match self { $(GgmlType::$name => $bytes,)* }
            }
        }
    };
}

ggml_types! {
    F32 = 0, 1 elements in 4 bytes;
    F16 = 1, 1 elements in 2 bytes;
    Q4_0 = 2, 32 elements in 18 bytes;
    Q4_1 = 3, 32 elements in 20 bytes;
    Q5_0 = 6, 32 elements in 22 bytes;
    Q5_1 = 7, 32 elements in 24 bytes;
    Q8_0 = 8, 32 elements in 34 bytes;
    Q8_1 = 9, 32 elements in 36 bytes;
    Q2_K = 10, 256 elements in 84 bytes;
    Q3_K = 11, 256 elements in 110 bytes;
    Q4_K = 12, 256 elements in 144 bytes;
    Q5_K = 13, 256 elements in 176 bytes;
    Q6_K = 14, 256 elements in 210 bytes;
    Q8_K = 15, 256 elements in 292 bytes;
    IQ2_XXS = 16, 256 elements in 66 bytes;
    IQ2_XS = 17, 256 elements in 74 bytes;
    IQ3_XXS = 18, 256 elements in 98 bytes;
    IQ1_S = 19, 256 elements in 50 bytes;
    IQ4_NL = 20, 32 elements in 18 bytes;
    IQ3_S = 21, 256 elements in 110 bytes;
    IQ2_S = 22, 256 elements in 82 bytes;
    IQ4_XS = 23, 256 elements in 136 bytes;
    I8 = 24, 1 elements in 1 bytes;
    I16 = 25, 1 elements in 2 bytes;
    I32 = 26, 1 elements in 4 bytes;
    I64 = 27, 1 elements in 8 bytes;
    F64 = 28, 1 elements in 8 bytes;
    IQ1_M = 29, 256 elements in 56 bytes;
    BF16 = 30, 1 elements in 2 bytes;
    TQ1_0 = 34, 256 elements in 54 bytes;
    TQ2_0 = 35, 256 elements in 66 bytes;
    MXFP4 = 39, 32 elements in 17 bytes;
    NVFP4 = 40, 64 elements in 36 bytes;
    Q1_0 = 41, 128 elements in 18 bytes;
    Q2_0 = 42, 64 elements in 18 bytes;
}

impl GgmlType {
    /// The type with that number, if b11434 knows it. Numbers of removed types (4, 5, 31-33, 36-38) are unknown.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|t| t.id() == id)
    }

    /// The type of that name; upper or lower case, as llama-quantize accepts both.
    pub fn from_name(name: &str) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of `elements` consecutive elements of one row; `None` when they are not whole blocks or on overflow.
    pub fn row_byte_len(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_byte_len())
    }

    /// Bytes of a tensor; `None` when its rows are not whole blocks or on overflow.
    pub fn byte_len(self, shape: &Shape) -> Option<u64> {
        self.row_byte_len(shape.row_len())?.checked_mul(shape.row_count()?)
    }

    /// Whether values are stored as blocks with shared scales, so that encoding loses precision by choice.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_round_trip_and_are_unique() {
        for &t in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(t.id()), Some(t));
            assert_eq!(GgmlType::from_name(&t.name().to_lowercase()), Some(t));
        }
        assert!(GgmlType::ALL.windows(2).all(|w| w[0].id() < w[1].id()));
        assert_eq!(GgmlType::from_id(4), None);
    }

    #[test]
    fn sizes_are_whole_blocks_or_nothing() {
        assert_eq!(GgmlType::Q4_K.row_byte_len(512), Some(288));
        assert_eq!(GgmlType::Q4_K.row_byte_len(576), None, "576 is not a multiple of 256");
        assert_eq!(GgmlType::Q8_0.byte_len(&Shape::new(vec![2, 64])), Some(136));
        assert_eq!(GgmlType::F16.byte_len(&Shape::new(vec![u64::MAX])), None);
    }
}
