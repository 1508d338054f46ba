//! Checkpoints that are quantized already, and that llama.cpp's converter reads: float8 with scales for blocks (DeepSeek V3),
//! and the MXFP4 of gpt-oss (llama.cpp b11434, `conversion/base.py`, `dequant_model`; `conversion/gpt_oss.py`).

use super::MappedTensor;
use crate::family::{Family, TransformEntry};
use crate::{Config, Error, Model};
use mlpack_tensor::Shape;
use serde_json::Value;
use std::collections::HashMap;

/// How the sources of a tensor are packed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Packing {
    /// They are plain numbers.
    #[default]
    None,
    /// They are float8, each block of so many rows and columns to be multiplied by a scale.
    Scaled {
        /// The tensors with the scales, by position: one for each source.
        scales: Vec<usize>,
        /// Rows and columns of a block.
        block: [u64; 2],
    },
    /// They are MXFP4: 16 bytes for 32 elements, the first in the low half of the first byte.
    Mxfp4 {
        /// The tensor with the exponents, by position.
        scales: usize,
    },
}

/// How a checkpoint is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantization {
    None,
    /// Float8; the blocks that a scale is for, where the config says.
    Fp8 {
        block: Option<[u64; 2]>,
    },
    Mxfp4,
}

/// The end of the name of a tensor of scales.
const SCALE_INV: &str = "_scale_inv";

impl Quantization {
    /// What the config says.
    ///
    /// # Errors
    /// For a method that is not handled.
    pub(crate) fn of(config: &Config, family: &Family) -> Result<Quantization, Error> {
        let given = match config.raw().get("quantization_config") {
            None | Some(Value::Null) => return Ok(Quantization::None),
            Some(given) => given,
        };
        let packs = |entry: &crate::family::TensorEntry| matches!(entry.transform, TransformEntry::Mxfp4 { .. });
        match given.get("quant_method").and_then(Value::as_str) {
            Some("fp8") => {
                const FIELD: &str = "quantization_config.weight_block_size";
                let block = match given.get("weight_block_size") {
                    None | Some(Value::Null) => None,
                    Some(size) => {
                        let parsed = size.as_array().map(|l| l.iter().map(Value::as_u64).collect::<Vec<_>>());
                        match parsed.as_deref() {
                            Some([Some(rows), Some(columns)]) if *rows > 0 && *columns > 0 => Some([*rows, *columns]),
                            _ => return Err(config.wrong(FIELD, "two numbers above zero", size)),
                        }
                    }
                };
                Ok(Quantization::Fp8 { block })
            }
            Some("mxfp4") if family.tensors.iter().any(packs) => Ok(Quantization::Mxfp4),
            method => {
                let method = method.unwrap_or("not named").to_owned();
                Err(Error::Quantized { path: config.path().to_owned(), method })
            }
        }
    }
}

/// What a tensor is besides one of the model's.
pub(super) enum Companion {
    /// It belongs to another one.
    Used,
    /// llama.cpp has no use for it.
    Dropped,
    /// It is one of the model's.
    No,
}

impl Model {
    /// Whether a tensor belongs to another, as scales do.
    pub(super) fn companion(&self, name: &str, positions: &HashMap<&str, usize>) -> Companion {
        match self.quantization() {
            Quantization::None => Companion::No,
            Quantization::Fp8 { .. } => match name.strip_suffix(SCALE_INV) {
                Some(weight) if positions.contains_key(weight) => Companion::Used,
                None if name.ends_with(".activation_scale") || name.ends_with("_activation_scale") => {
                    Companion::Dropped
                }
                _ => Companion::No,
            },
            Quantization::Mxfp4 => match name.strip_suffix("_scales") {
                Some(stem) if positions.contains_key(format!("{stem}_blocks").as_str()) => Companion::Used,
                _ => Companion::No,
            },
        }
    }

    /// How the sources of a tensor are packed.
    pub(super) fn packing(
        &self,
        mapped: &MappedTensor,
        tensors: &[(&str, &Shape)],
        positions: &HashMap<&str, usize>,
    ) -> Result<Packing, Error> {
        let first = tensors[mapped.sources[0]];
        match self.quantization() {
            Quantization::None => Ok(Packing::None),
            Quantization::Mxfp4 => {
                let Some(stem) = first.0.strip_suffix("_blocks") else { return Ok(Packing::None) };
                let name = format!("{stem}_scales");
                let expected = Shape::new(first.1.dims()[..first.1.rank() - 1].to_vec());
                let scales = positions.get(name.as_str()).copied().filter(|p| *tensors[*p].1 == expected);
                let scales = scales.ok_or_else(|| self.scales_missing(first.0, &name, expected))?;
                Ok(Packing::Mxfp4 { scales })
            }
            Quantization::Fp8 { block } => {
                let scales_of =
                    |position: &usize| positions.get(format!("{}{SCALE_INV}", tensors[*position].0).as_str());
                let scales: Vec<usize> = mapped.sources.iter().filter_map(|p| scales_of(p).copied()).collect();
                if scales.is_empty() {
                    return Ok(Packing::None);
                }
                let [.., rows, columns] = *first.1.dims() else {
                    return Err(self.scales_missing(first.0, "no scales", Shape::new(Vec::new())));
                };
                let found = tensors[scales[0]].1;
                let block = match (block, found.element_count()) {
                    (Some(block), _) => block,
                    (None, Some(1)) => [rows, columns],
                    (None, _) => [1, columns],
                };
                let mut expected = first.1.dims().to_vec();
                let at = expected.len() - 2;
                (expected[at], expected[at + 1]) = (rows.div_ceil(block[0]), columns.div_ceil(block[1]));
                let expected = Shape::new(expected);
                let fits = |p: &usize| tensors[*p].1.element_count() == expected.element_count();
                if scales.len() != mapped.sources.len() || !scales.iter().all(fits) {
                    return Err(self.scales_missing(first.0, &format!("{}{SCALE_INV}", first.0), expected));
                }
                Ok(Packing::Scaled { scales, block })
            }
        }
    }

    fn scales_missing(&self, tensor: &str, scales: &str, shape: Shape) -> Error {
        Error::Stack {
            dir: self.dir().to_owned(),
            tensor: tensor.to_owned(),
            expected: format!("scales `{}` of shape {shape}", mlpack_tensor::Escaped(scales)),
            found: "none, or of another shape".to_owned(),
        }
    }
}
