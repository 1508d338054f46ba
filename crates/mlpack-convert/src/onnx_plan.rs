//! Planning ONNX outputs of a checkpoint: several precisions of one graph, each with its weights in a file beside it.

use crate::carry::Carried;
use crate::{
    Done, Error, Gather, Input, Output, OutputTensor, Plan, Resources, SealedFile, Source, Step, Stored, Target,
    execute, open_model,
};
use mlpack_arch::{Decoder, Encoder, Families, Model, Packing, TensorRole, ValueChange, View};
use mlpack_fs::AtomicDir;
use mlpack_onnx::{
    Blocks, DataFile, Element, Form, Graph, GraphRequest, Profile, Quantization, WeightProblem, Weights, build_decoder,
    build_encoder,
};
use mlpack_quant::{NBits, NBitsPart};
use mlpack_safetensors::Checkpoint;
use mlpack_tensor::{Dtype, GgmlType, Shape, nearest};
use std::collections::BTreeMap;
use std::path::Path;

/// How the numbers of a graph are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32.
    Fp32,
    /// float16.
    Fp16,
    /// bfloat16.
    Bf16,
    /// 8-bit matrices, and float32 otherwise.
    Int8,
    /// 4-bit matrices, and float32 otherwise.
    Int4,
}

impl Precision {
    const ALL: [Precision; 5] = [Precision::Fp32, Precision::Fp16, Precision::Bf16, Precision::Int8, Precision::Int4];

    /// The precision of that name.
    ///
    /// # Errors
    /// [`Error::UnknownPrecision`] with the nearest name.
    pub fn parse(name: &str) -> Result<Precision, Error> {
        Precision::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let nearest = nearest(name, Precision::names(), 1).first().copied();
            Error::UnknownPrecision { name: name.to_owned(), nearest }
        })
    }

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }

    /// The names that are known.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Precision::ALL.into_iter().map(Precision::name)
    }

    /// What transformers.js puts behind `model` for it.
    const fn suffix(self) -> &'static str {
        match self {
            Precision::Fp32 => "",
            Precision::Fp16 => "_fp16",
            Precision::Bf16 => "_bf16",
            Precision::Int8 => "_int8",
            Precision::Int4 => "_q4",
        }
    }

    const fn element(self) -> Element {
        match self {
            Precision::Fp32 | Precision::Int8 | Precision::Int4 => Element::F32,
            Precision::Fp16 => Element::F16,
            Precision::Bf16 => Element::Bf16,
        }
    }
}

/// How matrices of 4 or 8 bits are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Values of a block.
    pub size: u32,
    /// With zero points.
    pub asymmetric: bool,
    /// The `accuracy_level` of MatMulNBits.
    pub accuracy_level: u32,
}

impl Default for BlockOptions {
    fn default() -> BlockOptions {
        BlockOptions { size: 32, asymmetric: false, accuracy_level: 0 }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct OnnxRequest {
    /// The precisions, each once.
    pub precisions: Vec<Precision>,
    /// The operators.
    pub profile: Profile,
    /// Blocks of quantized matrices.
    pub blocks: BlockOptions,
}

/// A directory of graphs before it is written.
#[derive(Clone, Debug)]
pub struct OnnxPlan {
    /// The graphs and their weights.
    pub plan: Plan,
    /// The files beside them.
    pub carried: Vec<Carried>,
}

/// What a graph computes.
#[derive(Clone, Debug)]
pub enum Computation {
    /// The next token, with a cache.
    Decoder(Box<Model>, Box<Decoder>),
    /// The vectors of a text.
    Encoder(Box<Encoder>),
}

impl Computation {
    /// What the model of a checkpoint computes. `described` is the directory to read its description in, where that is
    /// not its own.
    ///
    /// # Errors
    /// When the config is wrong, or describes a computation that is not known.
    pub fn open(source: &Source, described: Option<&Path>, families: &Families) -> Result<Computation, Error> {
        let dir = described.or(source.checkpoint().map(Checkpoint::dir)).unwrap_or(Path::new(""));
        if let Some(encoder) = Encoder::open(dir)? {
            return Ok(Computation::Encoder(Box::new(encoder)));
        }
        let model = open_model(source, described, families)?;
        let decoder = model.decoder()?;
        Ok(Computation::Decoder(Box::new(model), Box::new(decoder)))
    }

    /// What it is for, as transformers' pipelines call it.
    pub fn task(&self) -> &'static str {
        match self {
            Computation::Decoder(..) => "text-generation",
            Computation::Encoder(encoder) => encoder.task.name(),
        }
    }
}

/// Plans a graph and its weights for each precision.
///
/// # Errors
/// With every tensor that does not fit the graph.
pub fn plan_onnx(source: &Source, computation: &Computation, request: &OnnxRequest) -> Result<OnnxPlan, Error> {
    for (i, precision) in request.precisions.iter().enumerate() {
        if request.precisions[..i].contains(precision) {
            return Err(Error::RepeatedPrecision { name: precision.name() });
        }
    }
    let mut plan = Plan { warnings: source.warnings.clone(), ..Plan::default() };
    let roles = match computation {
        Computation::Decoder(model, _) => {
            plan.warnings.extend(model.config().warnings().iter().cloned());
            decoder_roles(source, model, &mut plan)?
        }
        Computation::Encoder(encoder) => encoder_roles(source, encoder, &mut plan)?,
    };
    let dir = source.checkpoint().map_or(Path::new(""), Checkpoint::dir);
    let mut steps = Steps { source, roles: &roles, places: BTreeMap::new() };
    for &precision in &request.precisions {
        let graph = graph(computation, &roles, source, precision, request)
            .map_err(|error| Error::Onnx { dir: dir.to_owned(), source: named(error, source, &roles) })?;
        let data = DataFile::new(graph.weights());
        let stem = format!("onnx/model{}.onnx", precision.suffix());
        let location = format!("model{}.onnx_data", precision.suffix());
        let preamble = graph.encode(&location, &data);
        let byte_len = preamble.len() as u64;
        let variant = Some(precision.name());
        plan.outputs.push(Output { file_name: stem.clone(), variant, preamble, tensors: Vec::new(), byte_len });
        steps.add_data(&mut plan, format!("{stem}_data"), precision, &graph, &data);
    }
    let used = |name: &str| plan.outputs.iter().flat_map(|o| &o.tensors).any(|t| t.source.as_deref() == Some(name));
    let left: Vec<String> =
        roles.values().map(|role| source.tensors()[role.position].name.clone()).filter(|name| !used(name)).collect();
    plan.dropped.extend(left.into_iter().map(|name| (name, "the output matrix is the embedding")));
    let carried = match source.checkpoint() {
        Some(checkpoint) => Carried::beside(source, checkpoint, Some(None))?,
        None => Vec::new(),
    };
    plan.described_by = carried.iter().filter_map(|file| file.from().map(ToOwned::to_owned)).collect();
    Ok(OnnxPlan { plan, carried })
}

/// An error with the checkpoint's own names of tensors, where they have one.
fn named(error: mlpack_onnx::Error, source: &Source, roles: &BTreeMap<String, Role>) -> mlpack_onnx::Error {
    let mlpack_onnx::Error::Weights { mut problems } = error else { return error };
    for problem in &mut problems {
        let (WeightProblem::Missing { role, .. }
        | WeightProblem::Shape { role, .. }
        | WeightProblem::Unused { role, .. }) = problem;
        if let Some(found) = roles.get(role) {
            role.clone_from(&source.tensors()[found.position].name);
        }
    }
    mlpack_onnx::Error::Weights { problems }
}

/// A tensor of the source by what it is in the graph.
struct Role {
    position: usize,
    values: ValueChange,
}

/// The source's tensors by the names that the encoder's description gives them.
fn encoder_roles(source: &Source, encoder: &Encoder, plan: &mut Plan) -> Result<BTreeMap<String, Role>, Error> {
    let mut roles = BTreeMap::new();
    let mut problems = Vec::new();
    for (position, tensor) in source.tensors().iter().enumerate() {
        let Some(name) = encoder.tensor_name(&tensor.name) else {
            plan.dropped.push((tensor.name.clone(), "the outputs do without it"));
            continue;
        };
        if !tensor.stored.dtype().is_some_and(Dtype::is_float) {
            let (tensor, stored, shape) = (tensor.name.clone(), tensor.stored, tensor.shape.clone());
            problems.push(Error::TensorDtype { tensor, stored, shape });
            continue;
        }
        roles.insert(name, Role { position, values: ValueChange::None });
    }
    Error::from_list(problems)?;
    Ok(roles)
}

/// The source's tensors by role.
fn decoder_roles(source: &Source, model: &Model, plan: &mut Plan) -> Result<BTreeMap<String, Role>, Error> {
    let mut roles = BTreeMap::new();
    let mut problems = Vec::new();
    let refused = |tensor: &str, what| Error::OnnxTensor { tensor: tensor.to_owned(), what };
    let named: Vec<(&str, &Shape)> = source.tensors().iter().map(|t| (t.name.as_str(), &t.shape)).collect();
    for mapped in model.map_tensors(&named).tensors.iter().filter(|mapped| mapped.packing != Packing::None) {
        problems.push(refused(named[mapped.sources[0]].0, "values packed with scales"));
    }
    Error::from_list(std::mem::take(&mut problems))?;
    for (position, tensor) in source.tensors().iter().enumerate() {
        match model.tensor_role(&tensor.name) {
            Err(e) => problems.push(e.into()),
            Ok(TensorRole::Dropped { reason }) => plan.dropped.push((tensor.name.clone(), reason)),
            Ok(TensorRole::Named { stacked: true, .. }) => {
                problems.push(refused(&tensor.name, "one of the matrices of an expert"));
            }
            Ok(TensorRole::Named { names, values, .. }) => match &names[..] {
                [name] if tensor.stored.dtype().is_some_and(Dtype::is_float) => {
                    roles.insert(name.clone(), Role { position, values });
                }
                [_] => {
                    let (tensor, stored, shape) = (tensor.name.clone(), tensor.stored, tensor.shape.clone());
                    problems.push(Error::TensorDtype { tensor, stored, shape });
                }
                _ => problems.push(refused(&tensor.name, "several matrices in one tensor")),
            },
        }
    }
    Error::from_list(problems)?;
    Ok(roles)
}

fn graph(
    computation: &Computation,
    roles: &BTreeMap<String, Role>,
    source: &Source,
    precision: Precision,
    request: &OnnxRequest,
) -> Result<Graph, mlpack_onnx::Error> {
    let shape = |role: &Role| source.tensors()[role.position].shape.clone();
    let weights: BTreeMap<String, Shape> = roles.iter().map(|(name, role)| (name.clone(), shape(role))).collect();
    let bits = match precision {
        Precision::Fp32 | Precision::Fp16 | Precision::Bf16 => None,
        Precision::Int8 => Some(8),
        Precision::Int4 => Some(4),
    };
    let options = request.blocks;
    let quantization = bits.map(|bits| Quantization {
        blocks: Blocks { bits, size: options.size, symmetric: !options.asymmetric },
        accuracy_level: options.accuracy_level.into(),
    });
    let element = precision.element();
    let request = GraphRequest { profile: request.profile, element, quantization };
    match computation {
        Computation::Decoder(_, decoder) => build_decoder(decoder, Weights::new(weights), &request),
        Computation::Encoder(encoder) => build_encoder(encoder, Weights::new(weights), &request),
    }
}

/// How a weight is stored where activations have the type `element`.
fn stored(form: Form, element: Element) -> Stored {
    let (ty, scale) = match element {
        Element::F16 => (GgmlType::F16, Dtype::F16),
        Element::Bf16 => (GgmlType::BF16, Dtype::BF16),
        _ => (GgmlType::F32, Dtype::F32),
    };
    let blocks = |Blocks { bits, size, symmetric }: Blocks| NBits { bits, block: size, symmetric, scale };
    match form {
        Form::AsIs | Form::Transposed => Stored::Ggml(ty),
        Form::Codes(b) => Stored::NBits(blocks(b), NBitsPart::Codes),
        Form::Scales(b) => Stored::NBits(blocks(b), NBitsPart::Scales),
        Form::ZeroPoints(b) => Stored::NBits(blocks(b), NBitsPart::ZeroPoints),
    }
}

/// The steps of a plan, by what they read.
struct Steps<'a> {
    source: &'a Source,
    roles: &'a BTreeMap<String, Role>,
    places: BTreeMap<(usize, bool), usize>,
}

impl Steps<'_> {
    /// Adds the file of a graph's weights, and tells the steps where their values go.
    fn add_data(&mut self, plan: &mut Plan, file_name: String, precision: Precision, graph: &Graph, data: &DataFile) {
        let output = plan.outputs.len();
        let mut tensors = Vec::with_capacity(graph.weights().len());
        for (weight, place) in graph.weights().iter().zip(data.places()) {
            let role = &self.roles[&weight.role];
            let step = self.step(plan, role, weight.form);
            plan.steps[step].targets.push(Target { output, tensor: tensors.len() });
            tensors.push(OutputTensor {
                name: weight.name.clone(),
                source: Some(self.source.tensors()[role.position].name.clone()),
                stored: stored(weight.form, precision.element()),
                instead_of: None,
                importance: None,
                shape: Shape::new(weight.shape.clone()),
                range: place.range.clone(),
                padded_end: place.padded_end,
            });
        }
        let variant = Some(precision.name());
        plan.outputs.push(Output { file_name, variant, preamble: Vec::new(), tensors, byte_len: data.byte_len() });
    }

    /// The step that reads a tensor in a form: one for all outputs.
    fn step(&mut self, plan: &mut Plan, role: &Role, form: Form) -> usize {
        let transposed = form == Form::Transposed;
        if let Some(step) = self.places.get(&(role.position, transposed)) {
            return *step;
        }
        let shape = &self.source.tensors()[role.position].shape;
        let (rows, row_len) = (shape.row_count().unwrap_or(0), shape.row_len());
        // The other form of the tensor, if there is one, accounts for the bytes of the source.
        let counted = self.places.contains_key(&(role.position, !transposed));
        let offset = if counted { rows * row_len } else { 0 };
        let (view, rows, row_len) = if transposed {
            (View::transposed_rows(1, rows, row_len, 0, rows), row_len, rows)
        } else {
            (View::copy(rows, row_len), rows, row_len)
        };
        let (packing, values) = (Packing::None, role.values);
        let gather = Gather { positions: vec![role.position], view, packing, values, factor: 1.0, offset };
        plan.steps.push(Step { input: Input::Tensors(gather), rows, row_len, targets: Vec::new() });
        self.places.insert((role.position, transposed), plan.steps.len() - 1);
        plan.steps.len() - 1
    }
}

/// Executes a plan of ONNX files into a directory that appears when it is complete, with config and tokenizer files
/// beside them.
///
/// # Errors
/// As [`execute`].
pub fn convert_onnx(
    source: &Source,
    plan: &OnnxPlan,
    out: AtomicDir,
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done, Error> {
    let mut done = execute(source, &plan.plan, out.contents(), resources, progress)?;
    for file in &plan.carried {
        done.outputs.push(file.write(out.contents())?);
    }
    let (contents, dir) = (out.contents().to_owned(), out.path().to_owned());
    out.seal()?;
    for SealedFile { path, .. } in &mut done.outputs {
        if let Ok(within) = path.strip_prefix(&contents) {
            *path = dir.join(within);
        }
    }
    Ok(done)
}
