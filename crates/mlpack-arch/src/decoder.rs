//! What a decoder computes: its blocks, with every number taken from the config. The `[decoder]` table of a description
//! says which field means what (docs/onnx.md).

mod rope;

use crate::parameters::rope_parameters;
use crate::{Config, Error, Model, json};
pub use rope::{LongRope, Rope};
use serde::Deserialize;
use serde_json::Value;

/// A decoder-only language model, as a list of numbers and choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// The width of the residual stream.
    pub hidden: u64,
    /// The width of the feed-forward network.
    pub feed_forward: u64,
    /// Tokens that the embedding has a row for.
    pub vocabulary: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// The width of a head.
    pub head_dim: u64,
    /// The norm of the residual stream.
    pub norm: Norm,
    /// What the norms add to a variance.
    pub epsilon: f32,
    /// Where the norms are.
    pub placement: Placement,
    /// The feed-forward network.
    pub mlp: Mlp,
    /// Its nonlinearity.
    pub activation: Activation,
    /// Whether queries, keys and values come from one matrix.
    pub fused_attention: bool,
    /// The norm of queries and keys.
    pub qk_norm: QkNorm,
    /// What dot products of queries and keys are multiplied by.
    pub attention_scale: f64,
    /// `c * tanh(x / c)` of attention scores.
    pub attention_softcap: Option<f64>,
    /// The same of logits.
    pub logit_softcap: Option<f64>,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// What the output of a block is multiplied by before it is added.
    pub residual_scale: Option<f64>,
    /// What logits are divided by.
    pub logit_divisor: Option<f64>,
    /// Whether the output matrix is the embedding, unless the checkpoint has one of its own.
    pub tied: bool,
    /// Kinds of rotation; layers refer to them.
    pub ropes: Vec<Rope>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// The longest text that the model was made for.
    pub context: u64,
}

/// What is special about a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Only so many of the last positions are attended to, the own one included.
    pub window: Option<u64>,
    /// The rotation of its queries and keys, as an index into [`Decoder::ropes`].
    pub rope: Option<usize>,
}

/// The norm of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// `x / sqrt(mean(x^2) + e) * w`
    Rms,
    /// `(x - mean) / sqrt(variance + e) * w + b`
    Layer,
}

/// Where the norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Of what goes into attention and feed-forward network.
    Before,
    /// Of what comes out of them.
    After,
    /// Of both.
    Around,
}

/// The feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// `down(activation(gate(x)) * up(x))`
    Gated,
    /// The same; the rows of gate and up are one matrix, in this order.
    GatedFused,
    /// `down(activation(up(x)))`
    Plain,
}

/// A nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `x * (1 + erf(x / sqrt(2))) / 2`
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

/// The norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// Of every head by itself.
    Head,
    /// Of all heads together.
    Whole,
}

/// The `[decoder]` table of a description.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DecoderEntry {
    norm: Norm,
    epsilon: String,
    #[serde(default = "before")]
    placement: Placement,
    #[serde(default = "gated")]
    mlp: Mlp,
    activation: String,
    #[serde(default)]
    fused_attention: bool,
    #[serde(default)]
    qk_norm: QkNorm,
    attention_scale: Option<Scale>,
    attention_softcap: Option<String>,
    logit_softcap: Option<String>,
    embedding_scale: Option<Scale>,
    residual_scale: Option<String>,
    logit_divisor: Option<String>,
    /// Model types that have sliding windows: layers of type `sliding_attention` in `layer_types` see `sliding_window`
    /// positions; where there is no `layer_types`, all layers do.
    #[serde(default)]
    sliding: Vec<String>,
    /// Which layers have rotation; all where it is not said.
    rope_layers: Option<RopeLayers>,
    /// Fields that change the computation in a way that is not described: refused when they are true.
    #[serde(default)]
    refused: Vec<String>,
}

/// Layers with rotation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RopeLayers {
    /// Field with a 1 for each layer with rotation and a 0 for each without.
    field: String,
    /// Where that is null: the field that says that every so many layers one has none.
    all_but_every: String,
}

/// Where a factor comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Scale {
    /// A field.
    Field(String),
    /// The square root of a field.
    Root(String),
    /// One over it.
    InverseRoot(String),
}

fn before() -> Placement {
    Placement::Before
}

fn gated() -> Mlp {
    Mlp::Gated
}

/// Layers of the largest model that is described.
const MAX_LAYERS: u64 = 4096;

impl Model {
    /// What the model computes.
    ///
    /// # Errors
    /// [`Error::NoDecoder`] when the description does not say; otherwise when a field is missing or has a value that is
    /// not known.
    pub fn decoder(&self) -> Result<Decoder, Error> {
        let entry = self
            .family()
            .decoder
            .as_ref()
            .ok_or_else(|| Error::NoDecoder { path: self.config().path().to_owned(), arch: self.arch().to_owned() })?;
        Reader { config: self.config(), entry }.decoder()
    }
}

struct Reader<'a> {
    config: &'a Config,
    entry: &'a DecoderEntry,
}

impl Reader<'_> {
    fn decoder(&self) -> Result<Decoder, Error> {
        let entry = self.entry;
        for field in &entry.refused {
            if self.config.field(field).is_some_and(json::is_truthy) {
                return Err(self.wrong(field, "false, as the other is not described"));
            }
        }
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let kv_heads = self.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.wrong("num_key_value_heads", "a number that divides `num_attention_heads`"));
        }
        let head_dim = match self.optional_size("head_dim")? {
            Some(size) => size,
            None => Some(hidden / heads)
                .filter(|size| *size > 0)
                .ok_or_else(|| self.wrong("hidden_size", "a multiple of `num_attention_heads`"))?,
        };
        let attention_scale = match &entry.attention_scale {
            None => 1.0 / (head_dim as f64).sqrt(),
            Some(scale) => self.scale(scale)?,
        };
        let layer_count = self.config.layer_count()?;
        if layer_count > MAX_LAYERS {
            return Err(self.wrong("num_hidden_layers", "at most 4096 layers"));
        }
        let (ropes, layers) = self.layers(layer_count, head_dim)?;
        Ok(Decoder {
            hidden,
            feed_forward: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            heads,
            kv_heads,
            head_dim,
            norm: entry.norm,
            epsilon: self.number(&entry.epsilon)? as f32,
            placement: entry.placement,
            mlp: entry.mlp,
            activation: activation(self.config, &entry.activation)?,
            fused_attention: entry.fused_attention,
            qk_norm: entry.qk_norm,
            attention_scale,
            attention_softcap: self.optional(&entry.attention_softcap)?,
            logit_softcap: self.optional(&entry.logit_softcap)?,
            embedding_scale: entry.embedding_scale.as_ref().map(|scale| self.scale(scale)).transpose()?,
            residual_scale: self.optional(&entry.residual_scale)?,
            logit_divisor: self.optional(&entry.logit_divisor)?,
            tied: self.config.field("tie_word_embeddings").is_some_and(json::is_truthy),
            ropes,
            layers,
            context: self.size("max_position_embeddings")?,
        })
    }

    fn layers(&self, count: u64, head_dim: u64) -> Result<(Vec<Rope>, Vec<Layer>), Error> {
        let types = self.list("layer_types", count)?;
        let model_type = self.config.model_type()?.unwrap_or_default();
        let window = if self.entry.sliding.iter().any(|t| t == model_type) {
            self.optional_size("sliding_window")?
        } else {
            None
        };
        let rotated = self.rotated(count)?;
        let parameters = rope_parameters(self.config)?;
        let by_type = parameters.contains_key("full_attention") || parameters.contains_key("sliding_attention");
        let mut ropes = Vec::new();
        let mut layers = Vec::with_capacity(count as usize);
        for i in 0..count as usize {
            let kind = match types.map(|types| &types[i]) {
                None => {
                    if window.is_some() {
                        "sliding_attention"
                    } else {
                        "full_attention"
                    }
                }
                Some(Value::String(kind)) if matches!(kind.as_str(), "full_attention" | "sliding_attention") => kind,
                Some(other) => {
                    let expected = "layers of type `full_attention` or `sliding_attention`";
                    return Err(self.config.wrong("layer_types", expected, other));
                }
            };
            let window = window.filter(|_| kind == "sliding_attention");
            if kind == "sliding_attention" && window.is_none() && types.is_some() {
                return Err(self.wrong("sliding_window", "a number of positions, as there are sliding layers"));
            }
            let rope = if rotated[i] {
                let inner = if by_type { parameters.get(kind).unwrap_or(&Value::Null) } else { &Value::Null };
                let own = match inner {
                    Value::Object(inner) => inner,
                    Value::Null => &parameters,
                    other => return Err(self.config.wrong("rope_parameters", "an object per layer type", other)),
                };
                let rope = Rope::new(self.config, own, head_dim)?;
                let place = ropes.iter().position(|known| *known == rope);
                Some(place.unwrap_or_else(|| {
                    ropes.push(rope);
                    ropes.len() - 1
                }))
            } else {
                None
            };
            layers.push(Layer { window, rope });
        }
        Ok((ropes, layers))
    }

    /// Whether each layer has rotation.
    fn rotated(&self, count: u64) -> Result<Vec<bool>, Error> {
        let Some(RopeLayers { field, all_but_every }) = &self.entry.rope_layers else {
            return Ok(vec![true; count as usize]);
        };
        Ok(match self.list(field, count)? {
            Some(list) => list.iter().map(json::is_truthy).collect(),
            None => {
                let every = self.size(all_but_every)?;
                (1..=count).map(|number| !number.is_multiple_of(every)).collect()
            }
        })
    }

    /// A list with an element for each layer; `None` when there is none or it is null.
    fn list(&self, field: &str, count: u64) -> Result<Option<&[Value]>, Error> {
        match self.config.field(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) if list.len() as u64 == count => Ok(Some(list)),
            Some(other) => Err(self.config.wrong(field, "a list with one element for each layer", other)),
        }
    }

    fn scale(&self, scale: &Scale) -> Result<f64, Error> {
        Ok(match scale {
            Scale::Field(field) => self.number(field)?,
            Scale::Root(field) => self.number(field)?.sqrt(),
            Scale::InverseRoot(field) => 1.0 / self.number(field)?.sqrt(),
        })
    }

    fn optional(&self, field: &Option<String>) -> Result<Option<f64>, Error> {
        let Some(field) = field else { return Ok(None) };
        match self.config.field(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Ok(Some(self.config.f64(field, value)?)),
        }
    }

    fn number(&self, field: &str) -> Result<f64, Error> {
        let value = self.config.field(field).ok_or_else(|| self.config.missing(&[field]))?;
        self.config.f64(field, value)
    }

    fn size(&self, field: &str) -> Result<u64, Error> {
        self.optional_size(field)?.ok_or_else(|| self.config.missing(&[field]))
    }

    fn optional_size(&self, field: &str) -> Result<Option<u64>, Error> {
        match self.config.field(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match self.config.u32(field, value)? {
                0 => Err(self.wrong(field, "a number above zero")),
                size => Ok(Some(size.into())),
            },
        }
    }

    fn wrong(&self, field: &str, expected: &'static str) -> Error {
        self.config.wrong(field, expected, self.config.field(field).unwrap_or(&Value::Null))
    }
}

/// The nonlinearity that a field names.
pub(crate) fn activation(config: &Config, field: &str) -> Result<Activation, Error> {
    match config.field(field) {
        None => Err(config.missing(&[field])),
        Some(value) => match value.as_str() {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            _ => Err(config.wrong(field, "`silu`, `gelu`, `gelu_pytorch_tanh` or `relu`", value)),
        },
    }
}

/// Whether each layer has a window, where `layer_types` says it.
pub(crate) fn layer_kinds(config: &Config, count: u64) -> Result<Option<Vec<bool>>, Error> {
    let wrong =
        |value: &Value| config.wrong("layer_types", "`full_attention` or `sliding_attention` for each layer", value);
    match config.field("layer_types") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let list = value.as_array().filter(|list| list.len() as u64 == count).ok_or_else(|| wrong(value))?;
            let sliding = |kind: &Value| match kind.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(wrong(kind)),
            };
            list.iter().map(sliding).collect::<Result<_, _>>().map(Some)
        }
    }
}
