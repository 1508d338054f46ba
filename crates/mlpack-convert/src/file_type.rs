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
    /// Who defines the bytes.
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

            /// Every variant, by number.
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
    /// The variant of that name, upper or lower case; aliases included.
    ///
    /// # Errors
    /// [`Error::UnknownFileType`] with the list of names, [`Error::FileTypeNotAvailable`] for a variant that this
    /// version does not make.
    pub fn parse(name: &str) -> Result<FileType, Error> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name)).map(|(_, ty)| *ty);
        let found = alias.or_else(|| FileType::ALL.iter().copied().find(|ty| ty.name.eq_ignore_ascii_case(name)));
        let Some(ty) = found else {
            let names = FileType::available().map(|ty| ty.name);
            return Err(Error::UnknownFileType {
                name: name.to_owned(),
                nearest: nearest(name, names, 1).first().copied(),
            });
        };
        if !ty.is_available() {
            return Err(Error::FileTypeNotAvailable { name: ty.name });
        }
        Ok(ty)
    }

    /// The variants that this version makes.
    pub fn available() -> impl Iterator<Item = FileType> {
        FileType::ALL.iter().copied().filter(|ty| ty.is_available())
    }

    /// Whether every type that the variant's mixture can choose is encoded here, without an importance matrix.
    fn is_available(self) -> bool {
        self.types().iter().all(|ty| mlpack_quant::can_encode(*ty)) && !self.needs_importance()
    }

    /// The types that the mixture can choose, its fallbacks for odd row lengths included.
    fn types(self) -> &'static [GgmlType] {
        use GgmlType::*;
        match self {
            FileType::F32 => &[F32],
            FileType::F16 => &[F32, F16],
            FileType::BF16 => &[F32, BF16],
            FileType::Q8_0 => &[F32, F16, Q8_0],
            FileType::Q4_0 => &[Q4_0, Q6_K, Q8_0, F16],
            FileType::Q4_1 => &[Q4_1, Q6_K, Q8_0, F16],
            FileType::Q5_0 => &[Q5_0, Q6_K, Q8_0, F16],
            FileType::Q5_1 => &[Q5_1, Q6_K, Q8_0, F16],
            FileType::Q4_K_S => &[Q4_K, Q5_K, Q6_K, Q5_0, Q5_1, Q8_0, F16],
            FileType::Q4_K_M => &[Q4_K, Q5_K, Q6_K, Q5_0, Q5_1, Q8_0, F16],
            FileType::Q5_K_S => &[Q5_K, Q6_K, Q5_1, Q8_0, F16],
            FileType::Q5_K_M => &[Q5_K, Q6_K, Q5_1, Q8_0, F16],
            FileType::Q6_K => &[Q6_K, Q8_0, F16],
            FileType::Q2_K | FileType::Q2_K_S => &[Q2_K, Q3_K, Q4_K, Q6_K, Q4_0, Q5_0, Q5_K, Q8_0, F16],
            FileType::Q3_K_S | FileType::Q3_K_M | FileType::Q3_K_L => {
                &[Q3_K, Q4_K, Q5_K, Q6_K, Q4_0, Q5_0, Q5_1, Q8_0, F16]
            }
            FileType::IQ4_NL => &[IQ4_NL, Q5_K, Q6_K, Q5_1, Q8_0, F16],
            FileType::IQ4_XS => &[IQ4_XS, IQ4_NL, Q5_K, Q6_K, Q5_1, Q8_0, F16],
            FileType::IQ3_S | FileType::IQ3_M => &[IQ3_S, IQ4_NL, Q4_K, Q5_K, Q6_K, Q5_0, Q8_0, F16],
            FileType::TQ1_0 => &[TQ1_0, Q4_K, Q6_K, Q4_0, Q5_0, Q8_0, F16],
            FileType::TQ2_0 => &[TQ2_0, Q4_K, Q6_K, Q4_0, Q5_0, Q8_0, F16],
            FileType::Q1_0 => &[Q1_0, Q6_K, Q8_0, F16],
            FileType::Q2_0 => &[Q2_0, Q4_K, Q6_K, Q4_0, Q5_0, Q8_0, F16],
            FileType::MXFP4_MOE => &[MXFP4, Q8_0, F16],
            _ => &[IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ1_S, IQ1_M],
        }
    }

    /// Whether llama-quantize refuses the variant without an importance matrix, whatever the model.
    fn needs_importance(self) -> bool {
        use FileType as T;
        [T::IQ2_XXS, T::IQ2_XS, T::IQ2_S, T::IQ2_M, T::IQ3_XXS, T::IQ3_XS, T::IQ1_S, T::IQ1_M, T::Q2_K_S]
            .contains(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_aliases_lead_to_the_medium_mixture() {
        assert_eq!(FileType::parse("q4_k_m").unwrap(), FileType::Q4_K_M);
        assert_eq!(FileType::parse("Q4_K").unwrap(), FileType::Q4_K_M);
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
    fn the_variants_of_the_contract_are_available() {
        let names: Vec<_> = FileType::available().map(|ty| ty.name).collect();
        for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"] {
            assert!(names.contains(&name), "{name} is missing from {names:?}");
        }
    }
}
