//! What a model makes of some texts, computed from its description and its weights.

use crate::error::Error;
use crate::forward::{self, Overflow, Weights};
use crate::probe::Probe;
use candle_core::Tensor;
use mlpack_arch::{Encoder, TokenTypes};
use mlpack_convert::{Computation, Source, WeightRows};
use mlpack_onnx::FixedDims;

/// Texts, and the outputs for them.
#[derive(Debug)]
pub struct Reference {
    pub(crate) probe: Probe,
    pub(crate) kind: Kind,
    pub(crate) outputs: Vec<Expected>,
    pub(crate) overflow: Option<Overflow>,
}

/// What graphs are given besides tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Positions, and the cache of so many layers with so many heads of a size.
    Decoder { layers: usize, kv_heads: u64, head_dim: u64 },
    /// The token that is padding, and how many types of tokens there are, where they are an input.
    Encoder { padding: u64, types: Option<u64> },
}

/// An output.
#[derive(Debug)]
pub(crate) struct Expected {
    pub name: &'static str,
    /// Whether there is a row for each position, not one for each text.
    pub by_position: bool,
    /// Values of a row; one row after the other, text by text.
    pub width: usize,
    pub values: Vec<f32>,
}

impl Reference {
    /// Computes it. Weights are read once, some rows at a time.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn compute(source: &Source, computation: &Computation, fixed: &FixedDims) -> Result<Reference, Error> {
        let weights = Weights::new(WeightRows::new(source, computation)?);
        match computation {
            Computation::Decoder(_, decoder) => {
                let probe = Probe::of_decoder(decoder, fixed);
                let logits = forward::decoder(decoder, &weights, &probe.texts)?;
                let (layers, kv_heads, head_dim) = (decoder.layers.len(), decoder.kv_heads, decoder.head_dim);
                let kind = Kind::Decoder { layers, kv_heads, head_dim };
                let outputs = vec![expected("logits", true, &logits)?];
                Ok(Reference { probe, kind, outputs, overflow: weights.overflow() })
            }
            Computation::Encoder(encoder) => {
                let probe = Probe::of_encoder(encoder, fixed);
                let positions: usize = probe.texts.iter().map(Vec::len).sum();
                let outputs = forward::encoder(encoder, &weights, &probe.texts)?
                    .into_iter()
                    .map(|(name, values)| {
                        let per_text =
                            name == "sentence_embedding" || matches!(encoder.task, mlpack_arch::Task::ClassifyText(..));
                        debug_assert!(per_text || values.dims()[0] == positions);
                        expected(name, !per_text, &values)
                    })
                    .collect::<Result<_, _>>()?;
                let types = (encoder.token_types == Some(TokenTypes::Input)).then(|| types(encoder, &weights));
                let kind = Kind::Encoder { padding: encoder.padding, types };
                Ok(Reference { probe, kind, outputs, overflow: weights.overflow() })
            }
        }
    }
}

fn types(encoder: &Encoder, weights: &Weights<'_>) -> u64 {
    let role = encoder.names.token_type.as_ref().map(|name| format!("{name}.weight"));
    role.map_or(1, |role| weights.row_count(&role))
}

fn expected(name: &'static str, by_position: bool, values: &Tensor) -> Result<Expected, Error> {
    let width = values.dims().get(1).copied().unwrap_or(1);
    Ok(Expected { name, by_position, width, values: values.flatten_all()?.to_vec1()? })
}
