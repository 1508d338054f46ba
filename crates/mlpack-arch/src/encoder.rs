//! What an encoder computes, and the head that its class has: names of tensors and numbers, from the files under
//! `encoders/` and config.json. docs/onnx.md describes the format.

mod description;
mod pooling;

use crate::decoder::{activation, layer_kinds};
use crate::{Activation, Config, Error, Layer, Rope, json};
use description::{ClassEntry, Description, descriptions};
pub use description::{Placement as NormPlacement, Positions, TensorNames, TokenTypes};
pub use pooling::{AfterPooling, Dense, Pooling, PoolingMode, dense_folders, embedder_files};
use serde_json::{Map, Value};
use std::path::Path;

/// A model that reads a whole text at once, as a list of numbers, choices and names.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoder {
    /// The width of the residual stream.
    pub hidden: u64,
    /// The width of the feed-forward network.
    pub feed_forward: u64,
    /// Tokens that the embedding has a row for.
    pub vocabulary: u64,
    /// Rows of the table of positions; 0 where there is none.
    pub positions_count: u64,
    /// Heads.
    pub heads: u64,
    /// The width of a head.
    pub head_dim: u64,
    /// What the norms add to a variance.
    pub epsilon: f32,
    /// The nonlinearity of the feed-forward network.
    pub activation: Activation,
    /// Whether that has a gate: its rows are the first half of one matrix.
    pub gated: bool,
    /// Where the norms are.
    pub placement: NormPlacement,
    /// How positions are told apart.
    pub positions: Positions,
    /// The token that is no text, where positions skip it.
    pub padding: u64,
    /// How token types are told apart, if they are.
    pub token_types: Option<TokenTypes>,
    /// Buckets of relative positions, where there are any.
    pub buckets: u64,
    /// Kinds of rotation; layers refer to them.
    pub ropes: Vec<Rope>,
    /// The layers. A window is the largest distance of two positions.
    pub layers: Vec<Layer>,
    /// The names of the tensors; `{}` is the layer.
    pub names: TensorNames,
    /// What comes after the last layer.
    pub task: Task,
    /// How the vectors of a text become one, where modules.json says it.
    pub pooling: Option<Pooling>,
    prefix: String,
    unused: Vec<String>,
}

/// What comes after the last layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Nothing.
    Features,
    /// A token for each position.
    FillMask(Head),
    /// A label for the text.
    ClassifyText(Head, PoolingMode),
    /// A label for each position.
    ClassifyTokens(Head),
    /// The first and the last position of an answer.
    AnswerQuestion(Head),
}

impl Task {
    /// Its name, as transformers' pipelines have it.
    pub fn name(&self) -> &'static str {
        match self {
            Task::Features => "feature-extraction",
            Task::FillMask(_) => "fill-mask",
            Task::ClassifyText(..) => "text-classification",
            Task::ClassifyTokens(_) => "token-classification",
            Task::AnswerQuestion(_) => "question-answering",
        }
    }
}

/// `out(norm(activation(dense(x))))`, of which only `out` must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// A square matrix.
    pub dense: Option<String>,
    /// The nonlinearity after it.
    pub activation: HeadActivation,
    /// A norm.
    pub norm: Option<String>,
    /// The last matrix. That of a masked language model may be the embedding.
    pub out: String,
    /// The name of its bias, where that is not beside it.
    pub bias: Option<String>,
}

/// A nonlinearity of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadActivation {
    /// The hyperbolic tangent.
    Tanh,
    /// One that layers have too.
    Of(Activation),
}

impl Encoder {
    /// The encoder that a directory's config describes, for its class's task or another; `None` when its `model_type` is no
    /// encoder's that is known. The class's own head is left out where another task is asked for.
    ///
    /// # Errors
    /// When a field is missing or wrong, or the class has a head that is not described.
    pub fn open(dir: &Path, task: Option<&str>) -> Result<Option<Encoder>, Error> {
        let config = Config::open(dir)?;
        let Some(model_type) = config.model_type()? else { return Ok(None) };
        let Some(description) = descriptions().iter().find(|d| d.model_type == model_type) else { return Ok(None) };
        let config = config.with_defaults(&description.defaults);
        let class = config.class()?;
        let Some(own) = description.classes.get(class) else {
            let known = description.classes.keys().map(String::as_str);
            return Err(Error::UnknownArchitecture {
                path: config.path().to_owned(),
                class: class.to_owned(),
                nearest: mlpack_tensor::nearest(class, known, 3).into_iter().map(str::to_owned).collect(),
            });
        };
        let pooling = Pooling::open(dir)?;
        let entry = match task {
            None => own,
            Some(task) if own.task.name() == task => own,
            Some(task) => description.classes.values().find(|entry| entry.task.name() == task).ok_or_else(|| {
                let known = description.classes.values().map(|entry| entry.task.name()).collect();
                Error::UnknownTask { path: config.path().to_owned(), task: task.to_owned(), known }
            })?,
        };
        let mut encoder = Reader { config: &config, description }.encoder(entry, pooling)?;
        if entry.task != own.task {
            let head = [&own.dense, &own.norm, &own.out].into_iter().flatten().map(|name| format!("{name}.*"));
            encoder.unused.extend(head.chain(own.bias.clone()));
        }
        if encoder.task != Task::Features {
            let dense: Vec<String> =
                encoder.pooling.iter().flat_map(Pooling::dense).map(|dense| format!("{}.*", dense.name)).collect();
            encoder.unused.extend(dense);
        }
        Ok(Some(encoder))
    }

    /// What a tensor of the checkpoint is called here: without the prefix that a class with a head adds, and with the names
    /// of newer checkpoints; `None` where the model does without it.
    pub fn tensor_name(&self, name: &str) -> Option<String> {
        let name = name.strip_prefix(&self.prefix).unwrap_or(name);
        let name = match name.rsplit_once('.') {
            Some((stem, "gamma")) => format!("{stem}.weight"),
            Some((stem, "beta")) => format!("{stem}.bias"),
            _ => name.to_owned(),
        };
        let head = match &self.task {
            Task::Features => None,
            Task::FillMask(head) | Task::ClassifyText(head, _) | Task::ClassifyTokens(head) => Some(head),
            Task::AnswerQuestion(head) => Some(head),
        };
        let wanted = head.and_then(|head| head.dense.as_ref()).is_some_and(|dense| name.starts_with(dense.as_str()));
        let unused = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *pattern,
        };
        (wanted || !self.unused.iter().any(unused)).then_some(name)
    }
}

struct Reader<'a> {
    config: &'a Config,
    description: &'a Description,
}

impl Reader<'_> {
    fn encoder(&self, entry: &ClassEntry, pooling: Option<Pooling>) -> Result<Encoder, Error> {
        let Reader { config, description } = self;
        let fields = &description.fields;
        for field in &description.refused {
            if let Some(value) = config.field(field).filter(|value| json::is_truthy(value)) {
                return Err(config.wrong(field, "false, as the other is not described", value));
            }
        }
        if let Some(value) = config.field("position_embedding_type").filter(|v| v.as_str() != Some("absolute")) {
            return Err(config.wrong("position_embedding_type", "`absolute`", value));
        }
        let (hidden, heads) = (self.size(&fields.hidden)?, self.size(&fields.heads)?);
        if !hidden.is_multiple_of(heads) {
            let found = config.field(&fields.hidden).unwrap_or(&Value::Null);
            return Err(config.wrong(&fields.hidden, "a multiple of the number of heads", found));
        }
        let head_dim = hidden / heads;
        let (ropes, layers) = self.layers(self.size(&fields.layers)?, head_dim)?;
        let positions = description.positions;
        Ok(Encoder {
            hidden,
            feed_forward: self.size(&fields.feed_forward)?,
            vocabulary: self.size("vocab_size")?,
            positions_count: if positions == Positions::Rotary { 0 } else { self.size("max_position_embeddings")? },
            heads,
            head_dim,
            epsilon: self.number(&fields.epsilon)? as f32,
            activation: activation(config, &fields.activation)?,
            gated: description.gated,
            placement: description.placement,
            positions,
            padding: if positions == Positions::Unpadded { self.integer("pad_token_id")? } else { 0 },
            token_types: description.token_types,
            buckets: match description.tensors.relative_bias {
                Some(_) => self.size("relative_attention_num_buckets")?,
                None => 0,
            },
            ropes,
            layers,
            names: description.tensors.clone(),
            task: self.task(entry)?,
            pooling,
            prefix: description.prefix.clone(),
            unused: description.unused.clone(),
        })
    }

    fn layers(&self, count: u64, head_dim: u64) -> Result<(Vec<Rope>, Vec<Layer>), Error> {
        if self.description.positions != Positions::Rotary {
            return Ok((Vec::new(), vec![Layer { window: None, rope: None }; count as usize]));
        }
        let config = self.config;
        let rope = |kind: &str, field: &str| {
            let nested = config.field("rope_parameters").and_then(|all| all.get(kind));
            let mut parameters = match nested {
                Some(Value::Object(parameters)) => parameters.clone(),
                None | Some(Value::Null) => Map::new(),
                Some(other) => return Err(config.wrong("rope_parameters", "an object per layer type", other)),
            };
            if !parameters.contains_key("rope_theta")
                && let Some(theta) = config.field(field)
            {
                parameters.insert("rope_theta".to_owned(), theta.clone());
            }
            Rope::new(config, &parameters, head_dim)
        };
        let ropes = vec![rope("full_attention", "global_rope_theta")?, rope("sliding_attention", "local_rope_theta")?];
        let every = self.size("global_attn_every_n_layers")?;
        let window = self.size("local_attention")? / 2;
        let sliding = match layer_kinds(config, count)? {
            Some(kinds) => kinds,
            None => (0..count).map(|layer| !layer.is_multiple_of(every)).collect(),
        };
        let layer = |sliding: bool| Layer { window: sliding.then_some(window), rope: Some(usize::from(sliding)) };
        Ok((ropes, sliding.into_iter().map(layer).collect()))
    }

    fn task(&self, entry: &ClassEntry) -> Result<Task, Error> {
        let fields = &self.description.fields;
        let head = || {
            let activation = match entry.activation.as_deref() {
                Some("tanh") => HeadActivation::Tanh,
                Some("relu") => HeadActivation::Of(Activation::Relu),
                Some(_) => HeadActivation::Of(Activation::Gelu),
                None => {
                    let field = fields.head_activation.as_ref().unwrap_or(&fields.activation);
                    HeadActivation::Of(activation(self.config, field)?)
                }
            };
            let ClassEntry { dense, norm, bias, .. } = entry.clone();
            Ok::<_, Error>(Head { dense, activation, norm, out: entry.out.clone().unwrap_or_default(), bias })
        };
        Ok(match entry.task {
            description::TaskKind::FeatureExtraction => Task::Features,
            description::TaskKind::FillMask => Task::FillMask(head()?),
            description::TaskKind::TokenClassification => Task::ClassifyTokens(head()?),
            description::TaskKind::QuestionAnswering => Task::AnswerQuestion(head()?),
            description::TaskKind::TextClassification => {
                let field = fields.classifier_pooling.as_deref();
                let mode = match field.and_then(|field| self.config.field(field)) {
                    None => PoolingMode::First,
                    Some(Value::String(mode)) if mode == "cls" => PoolingMode::First,
                    Some(Value::String(mode)) if mode == "mean" => PoolingMode::Mean,
                    Some(other) => {
                        return Err(self.config.wrong(field.unwrap_or_default(), "`mean` or `cls`", other));
                    }
                };
                Task::ClassifyText(head()?, mode)
            }
        })
    }

    fn number(&self, field: &str) -> Result<f64, Error> {
        let value = self.config.field(field).ok_or_else(|| self.config.missing(&[field]))?;
        self.config.f64(field, value)
    }

    fn integer(&self, field: &str) -> Result<u64, Error> {
        let value = self.config.field(field).ok_or_else(|| self.config.missing(&[field]))?;
        Ok(self.config.u32(field, value)?.into())
    }

    fn size(&self, field: &str) -> Result<u64, Error> {
        match self.integer(field)? {
            0 => Err(self.config.wrong(field, "a number above zero", &Value::from(0))),
            size => Ok(size),
        }
    }
}
