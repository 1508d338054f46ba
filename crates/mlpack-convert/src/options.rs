//! What llama-quantize can be told beyond a file type (llama.cpp b11434, `tools/quantize/quantize.cpp`).

use crate::{Error, Importance};
use fancy_regex::Regex;
use mlpack_tensor::{GgmlType, MetaValue, nearest};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The longest text of an overridden or copied metadata value, in bytes (`llama_model_kv_override`).
pub(crate) const MAX_OVERRIDE_LEN: usize = 127;

/// Options of llama-quantize, with its meaning and its order of precedence.
#[derive(Clone, Debug, Default)]
pub struct QuantizeOptions {
    /// No mixture: every tensor that may be quantized gets the variant's own type.
    pub pure: bool,
    /// Types by pattern; the first that matches a tensor's name decides.
    pub tensor_types: Vec<TensorType>,
    /// The type of `output.weight`, and of the token embedding where it serves as the output too.
    pub output_tensor_type: Option<GgmlType>,
    /// The type of the token embedding.
    pub token_embedding_type: Option<GgmlType>,
    /// `output.weight` keeps its type.
    pub leave_output_tensor: bool,
    /// Layers that are left out; the others are numbered anew.
    pub prune_layers: BTreeSet<u64>,
    /// Metadata that is set last, in this order.
    pub overrides: Vec<(String, MetaValue)>,
    /// A split input gives an output split the same way.
    pub keep_split: bool,
    /// Tensors that are quantized already may be quantized again.
    pub allow_requantize: bool,
    /// The importance matrix.
    pub imatrix: Option<Imatrix>,
}

/// An importance matrix and how it was asked for.
#[derive(Clone, Debug)]
pub struct Imatrix {
    /// Its values.
    pub importance: Arc<Importance>,
    /// Its file as it was named, which the output's metadata repeats.
    pub named: String,
    /// Experts that its calibration never reached count as equally important in every column, instead of being an error.
    pub allow_unvisited_experts: bool,
}

/// A pattern of tensor names with the type for them.
#[derive(Clone, Debug)]
pub struct TensorType {
    pattern: Regex,
    ty: GgmlType,
}

impl TensorType {
    /// `PATTERN=TYPE`. The pattern may match anywhere in a name; capital letters in it count as small ones, which tensor
    /// names are made of.
    ///
    /// # Errors
    /// [`Error::Option`] when there is no `=`, the pattern is no regular expression, or the type is not one that can be
    /// written.
    pub fn parse(text: &str) -> Result<TensorType, Error> {
        let wrong = |reason: String| Error::Option {
            option: "--tensor-type",
            value: text.to_owned(),
            expected: "PATTERN=TYPE, such as attn_v=Q6_K",
            reason,
        };
        let (pattern, ty) = text.split_once('=').ok_or_else(|| wrong("it has no `=`".to_owned()))?;
        if pattern.is_empty() {
            return Err(wrong("the pattern is empty".to_owned()));
        }
        let ty = parse_type("--tensor-type", ty)?;
        let pattern = Regex::new(&pattern.to_ascii_lowercase()).map_err(|e| wrong(e.to_string()))?;
        Ok(TensorType { pattern, ty })
    }

    /// The type, where the name matches. A pattern too costly to decide (it can only be one with backtracking) does not.
    fn matches(&self, name: &str) -> Option<GgmlType> {
        self.pattern.is_match(name).unwrap_or(false).then_some(self.ty)
    }
}

/// A type by ggml's name, in any case, of those that can be written.
///
/// # Errors
/// [`Error::Option`] with the most similar name.
pub fn parse_type(option: &'static str, text: &str) -> Result<GgmlType, Error> {
    let known = || GgmlType::ALL.iter().copied().filter(|ty| mlpack_quant::can_encode(*ty));
    known().find(|ty| ty.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names = known().map(GgmlType::name);
        let reason = match nearest(text, names, 1).first() {
            Some(name) => format!("`{}` is no such type; did you mean `{name}`?", mlpack_tensor::Escaped(text)),
            None => format!("`{}` is no such type", mlpack_tensor::Escaped(text)),
        };
        Error::Option { option, value: text.to_owned(), expected: "a type of ggml, such as Q6_K or F16", reason }
    })
}

/// `KEY=TYPE:VALUE` with the types `int`, `float`, `bool` and `str`. An `int` is stored as the u32 of its magnitude and a
/// `float` as f32, as llama-quantize stores them.
///
/// # Errors
/// [`Error::Option`] for text that llama-quantize refuses, and for numbers that it would cut or take for 0.
pub fn parse_override(text: &str) -> Result<(String, MetaValue), Error> {
    const MAX_KEY: usize = 127;
    let wrong = |reason: &str| Error::Option {
        option: "--override-kv",
        value: text.to_owned(),
        expected: "KEY=TYPE:VALUE with the type int, float, bool or str",
        reason: reason.to_owned(),
    };
    let (key, typed) = text.split_once('=').ok_or_else(|| wrong("it has no `=`"))?;
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(wrong("the key has no byte or more than 127"));
    }
    let (ty, value) = typed.split_once(':').ok_or_else(|| wrong("there is no type"))?;
    let value = match ty {
        "int" => {
            let number: i64 = value.parse().map_err(|_| wrong("the value is no whole number"))?;
            let magnitude = u32::try_from(number.unsigned_abs()).map_err(|_| wrong("the value exceeds 32 bits"))?;
            MetaValue::U32(magnitude)
        }
        "float" => MetaValue::F32(value.parse::<f64>().map_err(|_| wrong("the value is no number"))? as f32),
        "bool" => MetaValue::Bool(value.parse().map_err(|_| wrong("the value is neither true nor false"))?),
        "str" if value.len() > MAX_OVERRIDE_LEN => return Err(wrong("the value has more than 127 bytes")),
        "str" => MetaValue::String(value.to_owned()),
        _ => return Err(wrong("the type is none of these")),
    };
    Ok((key.to_owned(), value))
}

impl QuantizeOptions {
    /// Whether something is asked for that only llama-quantize does to a file. An importance matrix alone is not: it
    /// belongs to the variants that use it.
    pub fn alter_converted(&self) -> bool {
        self.pure
            || !self.tensor_types.is_empty()
            || self.output_tensor_type.is_some()
            || self.token_embedding_type.is_some()
            || self.leave_output_tensor
            || !self.prune_layers.is_empty()
            || !self.overrides.is_empty()
    }

    /// The type of the first pattern that matches.
    pub(crate) fn tensor_type(&self, name: &str) -> Option<GgmlType> {
        self.tensor_types.iter().find_map(|by| by.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(result: Result<impl std::fmt::Debug, Error>) -> String {
        match result {
            Err(Error::Option { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn patterns_match_anywhere_and_in_small_letters() {
        let by = TensorType::parse(r"BLK\.(0|1)\.ffn_(?!up)=q6_k").unwrap();
        assert_eq!(by.matches("blk.1.ffn_down.weight"), Some(GgmlType::Q6_K));
        assert_eq!(by.matches("blk.2.ffn_down.weight"), None);
        assert_eq!(by.matches("blk.1.ffn_up.weight"), None);
    }

    #[test]
    fn what_is_wrong_with_a_pattern_or_a_type_is_said() {
        assert_eq!(reason(TensorType::parse("attn_v")), "it has no `=`");
        assert_eq!(reason(TensorType::parse("=Q6_K")), "the pattern is empty");
        assert!(reason(TensorType::parse("(=Q6_K")).contains("arenthes"), "{}", reason(TensorType::parse("(=Q6_K")));
        assert_eq!(reason(TensorType::parse("a=Q6K")), "`Q6K` is no such type; did you mean `Q6_K`?");
        assert!(reason(parse_type("--output-tensor-type", "Q8_K")).contains("no such type"), "for activations only");
    }

    #[test]
    fn overrides_have_the_types_that_llama_quantize_gives_them() {
        assert_eq!(parse_override("a.b=int:-7").unwrap(), ("a.b".to_owned(), MetaValue::U32(7)));
        assert_eq!(parse_override("a=float:0.1").unwrap().1, MetaValue::F32(0.1));
        assert_eq!(parse_override("a=bool:true").unwrap().1, MetaValue::Bool(true));
        assert_eq!(parse_override("a=str:x=y:z").unwrap().1, MetaValue::String("x=y:z".into()));
        for bad in ["a", "=int:1", "a=1", "a=int:x", "a=int:4294967296", "a=bool:yes", "a=u8:1"] {
            assert!(matches!(parse_override(bad), Err(Error::Option { .. })), "{bad}");
        }
        assert!(parse_override(&format!("a=str:{}", "x".repeat(127))).is_ok());
        assert_eq!(reason(parse_override(&format!("a=str:{}", "x".repeat(128)))), "the value has more than 127 bytes");
    }
}
