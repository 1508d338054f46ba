//! The parameters that Ollama knows, with their types (ollama fb30760, `api/types.go`, `Options` and `Runner`).

use crate::Error;
use std::fmt;

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// A 64-bit integer.
    Int,
    /// A 32-bit float.
    Float,
    /// `true` or `false`.
    Bool,
    /// A text; the parameter may be given several times.
    TextList,
    /// Ollama warns about it and ignores it.
    Ignored,
}

impl fmt::Display for ParameterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParameterKind::Int => "a whole number",
            ParameterKind::Float => "a finite decimal number",
            ParameterKind::Bool => "`true` or `false`",
            ParameterKind::TextList => "a text",
            ParameterKind::Ignored => "anything (Ollama ignores it)",
        })
    }
}

const PARAMETERS: [(&str, ParameterKind); 29] = {
    use ParameterKind::{Bool, Float, Ignored, Int, TextList};
    [
        ("num_keep", Int),
        ("seed", Int),
        ("num_predict", Int),
        ("top_k", Int),
        ("top_p", Float),
        ("min_p", Float),
        ("typical_p", Float),
        ("repeat_last_n", Int),
        ("temperature", Float),
        ("repeat_penalty", Float),
        ("presence_penalty", Float),
        ("frequency_penalty", Float),
        ("stop", TextList),
        ("num_ctx", Int),
        ("num_batch", Int),
        ("num_gpu", Int),
        ("main_gpu", Int),
        ("use_mmap", Bool),
        ("num_thread", Int),
        ("draft_num_predict", Int),
        // `parser/parser.go`, `deprecatedParameters`.
        ("penalize_newline", Ignored),
        ("low_vram", Ignored),
        ("f16_kv", Ignored),
        ("logits_all", Ignored),
        ("vocab_only", Ignored),
        ("use_mlock", Ignored),
        ("mirostat", Ignored),
        ("mirostat_tau", Ignored),
        ("mirostat_eta", Ignored),
    ]
};

/// The parameters that do something, in the order of Ollama's source.
pub fn parameter_names() -> impl Iterator<Item = &'static str> {
    PARAMETERS.iter().filter(|(_, kind)| *kind != ParameterKind::Ignored).map(|(name, _)| *name)
}

/// A parameter with a value of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    name: &'static str,
    kind: ParameterKind,
    // As it is written: numbers in their shortest form.
    value: String,
}

impl Parameter {
    /// Checks the name and the value's type.
    ///
    /// ```
    /// use mlpack_oci::Parameter;
    /// assert_eq!(Parameter::new("temperature", "0.70").unwrap().value(), "0.7");
    /// let error = Parameter::new("temprature", "0.7").unwrap_err();
    /// assert_eq!(error.hint().unwrap(), "did you mean `temperature`?");
    /// ```
    pub fn new(name: &str, text: &str) -> Result<Parameter, Error> {
        let known = PARAMETERS.iter().find(|(known, _)| *known == name);
        let &(name, kind) = known.ok_or_else(|| Error::UnknownParameter { name: name.to_owned() })?;
        let wrong = || Error::ParameterValue { name, kind, found: text.to_owned() };
        let value = match kind {
            ParameterKind::Int => text.parse::<i64>().map_err(|_| wrong())?.to_string(),
            ParameterKind::Float => {
                let value: f32 = text.parse().map_err(|_| wrong())?;
                if !value.is_finite() {
                    return Err(wrong());
                }
                value.to_string()
            }
            ParameterKind::Bool => match text {
                // Go's strconv.ParseBool.
                "1" | "t" | "T" | "TRUE" | "true" | "True" => "true".to_owned(),
                "0" | "f" | "F" | "FALSE" | "false" | "False" => "false".to_owned(),
                _ => return Err(wrong()),
            },
            ParameterKind::TextList | ParameterKind::Ignored => text.to_owned(),
        };
        Ok(Parameter { name, kind, value })
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The type.
    pub fn kind(&self) -> ParameterKind {
        self.kind
    }

    /// The value as it is written.
    pub fn value(&self) -> &str {
        &self.value
    }
}
