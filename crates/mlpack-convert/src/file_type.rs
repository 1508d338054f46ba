//! The variants that can be asked for: llama-quantize's file types (llama.cpp b11434, `tools/quantize/quantize.cpp`,
//! `QUANT_OPTIONS`; numbers from `include/llama.h`, `enum llama_ftype`; default types from `src/llama-quant.cpp`,
//! `llama_ftype_get_default_type`).

use crate::Error;
use mlpack_tensor::{GgmlType, nearest};

/// Who defines the bytes of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `convert_hf_to_gguf.py --outtype`: tensors in checkpoint order.
    Converter,
    /// `llama-quantize` on the converted file: tensors by layer and name, a mixture of types.
    Quantizer,
}

/// A variant by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    /// llama-quantize's name, which is also part of the output's file name.
    pub name: &'static str,
    /// The number that `general.file_type` holds.
    pub id: u32,
    /// The type of tensors for which the mixture has no other rule.
    pub default: GgmlType,
    /// Who defines the bytes, of a converted checkpoint without options of llama-quantize.
    pub origin: Origin,
}

macro_rules! file_types {
    ($($name:ident = $id:literal, $default:ident, $origin:ident;)*) => {
        impl FileType {
            $(#[doc = concat!("`", stringify!($name), "`")]
            pub const $name: FileType = FileType {
                name: stringify!($name),
                id: $id,
                default: GgmlType::$default,
                origin: Origin::$origin,
            };)*

            /// Every variant that has a number, by number; [`FileType::COPY`] has none of its own.
            pub const ALL: &'static [FileType] = &[$(FileType::$name,)*];
        }
    };
}

file_types! {
    F32 = 0, F32, Converter;
    F16 = 1, F16, Converter;
    Q4_0 = 2, Q4_0, Quantizer;
    Q4_1 = 3, Q4_1, Quantizer;
    Q8_0 = 7, Q8_0, Converter;
    Q5_0 = 8, Q5_0, Quantizer;
    Q5_1 = 9, Q5_1, Quantizer;
    Q2_K = 10, Q2_K, Quantizer;
    Q3_K_S = 11, Q3_K, Quantizer;
    Q3_K_M = 12, Q3_K, Quantizer;
    Q3_K_L = 13, Q3_K, Quantizer;
    Q4_K_S = 14, Q4_K, Quantizer;
    Q4_K_M = 15, Q4_K, Quantizer;
    Q5_K_S = 16, Q5_K, Quantizer;
    Q5_K_M = 17, Q5_K, Quantizer;
    Q6_K = 18, Q6_K, Quantizer;
    IQ2_XXS = 19, IQ2_XXS, Quantizer;
    IQ2_XS = 20, IQ2_XS, Quantizer;
    Q2_K_S = 21, Q2_K, Quantizer;
    IQ3_XS = 22, IQ3_S, Quantizer;
    IQ3_XXS = 23, IQ3_XXS, Quantizer;
    IQ1_S = 24, IQ1_S, Quantizer;
    IQ4_NL = 25, IQ4_NL, Quantizer;
    IQ3_S = 26, IQ3_S, Quantizer;
    IQ3_M = 27, IQ3_S, Quantizer;
    IQ2_S = 28, IQ2_XS, Quantizer;
    IQ2_M = 29, IQ2_S, Quantizer;
    IQ4_XS = 30, IQ4_XS, Quantizer;
    IQ1_M = 31, IQ1_M, Quantizer;
    BF16 = 32, BF16, Converter;
    TQ1_0 = 36, TQ1_0, Quantizer;
    TQ2_0 = 37, TQ2_0, Quantizer;
    MXFP4_MOE = 38, MXFP4, Quantizer;
    Q1_0 = 40, Q1_0, Quantizer;
    Q2_0 = 41, Q2_0, Quantizer;
}

/// Names that llama-quantize takes for another name.
const ALIASES: &[(&str, FileType)] =
    &[("Q3_K", FileType::Q3_K_M), ("Q4_K", FileType::Q4_K_M), ("Q5_K", FileType::Q5_K_M)];

impl FileType {
    /// `COPY`: every tensor keeps its type, and the file its number; only order and metadata are llama-quantize's.
    pub const COPY: FileType = FileType { name: "COPY", id: 0, default: GgmlType::F32, origin: Origin::Quantizer };

    /// The variant of that name, upper or lower case; aliases included.
    ///
    /// # Errors
    /// [`Error::UnknownFileType`] with the list of names.
    pub fn parse(name: &str) -> Result<FileType, Error> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name)).map(|(_, ty)| *ty);
        let mut named = FileType::ALL.iter().copied().chain([FileType::COPY]);
        alias.or_else(|| named.find(|ty| ty.name.eq_ignore_ascii_case(name))).ok_or_else(|| Error::UnknownFileType {
            name: name.to_owned(),
            nearest: nearest(name, FileType::names(), 1).first().copied(),
        })
    }

    /// Every name, by number.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FileType::ALL.iter().chain(&[FileType::COPY]).map(|ty| ty.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_aliases_lead_to_the_medium_mixture() {
        assert_eq!(FileType::parse("q4_k_m").unwrap(), FileType::Q4_K_M);
        assert_eq!(FileType::parse("Q4_K").unwrap(), FileType::Q4_K_M);
        assert_eq!(FileType::parse("copy").unwrap(), FileType::COPY);
        match FileType::parse("Q4KM") {
            Err(Error::UnknownFileType { nearest, .. }) => assert_eq!(nearest, Some("Q4_K_M")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_are_unique_and_ordered() {
        assert!(FileType::ALL.windows(2).all(|w| w[0].id < w[1].id));
    }

    #[test]
    fn every_type_that_a_variant_is_named_after_can_be_encoded() {
        assert!(FileType::ALL.iter().all(|ty| mlpack_quant::can_encode(ty.default)));
    }
}
