//! Planning ONNX outputs of a checkpoint: several precisions of one graph, each with its weights in a file beside it.

use crate::carry::Carried;
use crate::{
    BytesPart, Done, Error, Gather, Input, Output, OutputTensor, Plan, Resources, SealedFile, Source, Step, Stored,
    Target, execute, onnx_layout::Layout, open_model, slab::F16_OVERFLOW, slab::table, survey::survey,
};
use mlpack_arch::{Decoder, Encoder, Families, Model, Packing, TensorRole, ValueChange, View, embedder_files};
use mlpack_fs::AtomicDir;
use mlpack_onnx::{
    Blocks, DataFiles, Element, FixedDims, Form, Graph, GraphRequest, Profile, Quantization, Scheme, WeightProblem,
    Weights, build_decoder, build_encoder,
};
use mlpack_quant::{ColumnBlocks, ColumnPart, NBits, NBitsPart};
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
    const fn suffix(self, scheme: Scheme) -> &'static str {
        match self {
            Precision::Fp32 => "",
            Precision::Fp16 => "_fp16",
            Precision::Bf16 => "_bf16",
            Precision::Int8 if matches!(scheme, Scheme::Dynamic) => "_quantized",
            Precision::Int8 => "_int8",
            Precision::Int4 => "_q4",
        }
    }

    /// What transformers.js calls a graph of it, if it has it.
    pub(crate) fn dtype(self, file: &str) -> Option<&'static str> {
        match self {
            Precision::Fp32 => Some("fp32"),
            Precision::Fp16 => Some("fp16"),
            Precision::Bf16 => None,
            Precision::Int8 if file.ends_with("_quantized.onnx") => Some("q8"),
            Precision::Int8 => Some("int8"),
            Precision::Int4 => Some("q4"),
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
    /// The `accuracy_level` of MatMulNBits. 4 lets ONNX Runtime multiply in integers, as it does where onnxruntime-genai's builder
    /// made the graph: with 8 bits it is thirty times slower without.
    pub accuracy_level: u32,
    /// What shares a scale, and which operators read it; the profile's own where it is not said.
    pub scheme: Option<Scheme>,
}

impl Default for BlockOptions {
    fn default() -> BlockOptions {
        BlockOptions { size: 32, asymmetric: false, accuracy_level: 4, scheme: None }
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
    /// Sizes of inputs that are known.
    pub fixed: FixedDims,
    /// The runtime that the directory is for.
    pub layout: Layout,
    /// Tensors that stay float32 in float16 and bfloat16 graphs, by a part of their name.
    pub keep_fp32: Vec<String>,
}

/// A directory of graphs before it is written.
#[derive(Clone, Debug)]
pub struct OnnxPlan {
    /// The graphs and their weights.
    pub plan: Plan,
    /// The files beside them.
    pub carried: Vec<Carried>,
    /// What is done to the values of each source tensor that is used.
    values: BTreeMap<usize, ValueChange>,
    /// What has to be measured before the weights are written: source tensors, each with what is done to its values.
    measured: BTreeMap<usize, ValueChange>,
    /// Steps that wait for that: a scale (true) or zero point of a table.
    waiting: Vec<(usize, usize, bool)>,
}

/// The task of a decoder.
const GENERATION: &str = "text-generation";

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
    /// not its own; `task` is asked for where it is not the class's own.
    ///
    /// # Errors
    /// When the config is wrong, or describes a computation that is not known, or has no such task.
    pub fn open(
        source: &Source,
        described: Option<&Path>,
        families: &Families,
        task: Option<&str>,
    ) -> Result<Computation, Error> {
        let dir = described.or(source.checkpoint().map(Checkpoint::dir)).unwrap_or(Path::new(""));
        if let Some(encoder) = Encoder::open(dir, task)? {
            return Ok(Computation::Encoder(Box::new(encoder)));
        }
        let model = open_model(source, described, families)?;
        let decoder = model.decoder()?;
        if let Some(task) = task.filter(|task| *task != GENERATION) {
            let (path, known) = (model.config().path().to_owned(), vec![GENERATION]);
            return Err(mlpack_arch::Error::UnknownTask { path, task: task.to_owned(), known }.into());
        }
        Ok(Computation::Decoder(Box::new(model), Box::new(decoder)))
    }

    /// What it is for, as transformers' pipelines call it.
    pub fn task(&self) -> &'static str {
        match self {
            Computation::Decoder(..) => GENERATION,
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
    let layout = request.layout;
    layout.check(computation, &request.precisions)?;
    let mut graphs = Vec::with_capacity(request.precisions.len());
    let mut plan = Plan { warnings: source.warnings.clone(), ..Plan::default() };
    if let Computation::Decoder(model, _) = computation {
        plan.warnings.extend(model.config().warnings().iter().cloned());
    }
    let roles = roles(source, computation, &mut plan)?;
    for text in &request.keep_fp32 {
        if !roles.values().any(|role| source.tensors()[role.position].name.contains(text)) {
            return Err(Error::Option {
                option: "--keep-fp32",
                value: text.clone(),
                expected: "a part of the name of a tensor",
                reason: "no tensor has it in its name".to_owned(),
            });
        }
    }
    let dir = source.checkpoint().map_or(Path::new(""), Checkpoint::dir);
    let mut steps =
        Steps { source, roles: &roles, places: BTreeMap::new(), measured: BTreeMap::new(), waiting: Vec::new() };
    for &precision in &request.precisions {
        let graph = graph(computation, &roles, source, precision, request)
            .map_err(|error| Error::Onnx { dir: dir.to_owned(), source: named(error, source, &roles) })?;
        let data = DataFiles::new(graph.weights(), layout.data_limit());
        let suffix =
            if layout == Layout::Genai { "" } else { precision.suffix(scheme(computation, precision, request)) };
        let model = format!("model{suffix}.onnx");
        let preamble = graph.encode(&model, &data).map_err(|source| Error::Onnx { dir: dir.to_owned(), source })?;
        let byte_len = preamble.len() as u64;
        let variant = Some(precision.name());
        let path = format!("{}{model}", layout.folder());
        plan.outputs.push(Output { file_name: path.clone(), variant, preamble, tensors: Vec::new(), byte_len });
        steps.add_data(&mut plan, &path, precision, &graph, &data);
        graphs.push((path, precision, data.byte_lens().len()));
    }
    let used = |name: &str| plan.outputs.iter().flat_map(|o| &o.tensors).any(|t| t.source.as_deref() == Some(name));
    let left: Vec<String> =
        roles.values().map(|role| source.tensors()[role.position].name.clone()).filter(|name| !used(name)).collect();
    plan.dropped.extend(left.into_iter().map(|name| (name, "the output matrix is the embedding")));
    let mut carried = match source.checkpoint() {
        Some(checkpoint) => Carried::beside(source, checkpoint, Some(None))?,
        None => Vec::new(),
    };
    plan.described_by = carried.iter().filter_map(|file| file.from().map(ToOwned::to_owned)).collect();
    if let Computation::Encoder(_) = computation {
        plan.described_by.extend(embedder_files(dir)?);
    }
    layout.complete(computation, &graphs, &mut carried)?;
    let Steps { measured, waiting, .. } = steps;
    let values = roles.values().map(|role| (role.position, role.values)).collect();
    Ok(OnnxPlan { plan, carried, values, measured, waiting })
}

/// The tensors that float16 cannot hold, each with its largest magnitude. Everything is read for that.
///
/// # Errors
/// When a tensor has no place in a graph, or a value is not finite.
pub fn f16_overflows(
    source: &Source,
    computation: &Computation,
    resources: &Resources,
) -> Result<Vec<(String, f32)>, Error> {
    let roles = roles(source, computation, &mut Plan::default())?;
    overflows(source, &roles.values().map(|role| (role.position, role.values)).collect(), resources)
}

fn overflows(
    source: &Source,
    values: &BTreeMap<usize, ValueChange>,
    resources: &Resources,
) -> Result<Vec<(String, f32)>, Error> {
    let found = survey(source, values, resources)?;
    let found = found.into_iter().map(|(position, rows)| (position, table(&rows).magnitude()));
    let found = found.filter(|(_, magnitude)| *magnitude >= F16_OVERFLOW);
    Ok(found.map(|(position, magnitude)| (source.tensors()[position].name.clone(), magnitude)).collect())
}

/// The source's tensors by what they are in the graph.
pub(crate) fn roles(
    source: &Source,
    computation: &Computation,
    plan: &mut Plan,
) -> Result<BTreeMap<String, Role>, Error> {
    match computation {
        Computation::Decoder(model, _) => decoder_roles(source, model, plan),
        Computation::Encoder(encoder) => encoder_roles(source, encoder, plan),
    }
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
pub(crate) struct Role {
    pub position: usize,
    pub values: ValueChange,
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
    let own = source.tensors().iter().filter(|tensor| !source.is_of_module(tensor));
    let named: Vec<(&str, &Shape)> = own.map(|t| (t.name.as_str(), &t.shape)).collect();
    for mapped in model.map_tensors(&named).tensors.iter().filter(|mapped| mapped.packing != Packing::None) {
        problems.push(refused(named[mapped.sources[0]].0, "values packed with scales"));
    }
    Error::from_list(std::mem::take(&mut problems))?;
    for (position, tensor) in source.tensors().iter().enumerate() {
        if source.is_of_module(tensor) {
            plan.dropped.push((tensor.name.clone(), "a module of sentence-transformers, after pooling"));
            continue;
        }
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
        scheme: scheme(computation, precision, request),
        blocks: Blocks { bits, size: options.size, symmetric: !options.asymmetric },
        accuracy_level: options.accuracy_level.into(),
    });
    let element = precision.element();
    let mut weights = Weights::new(weights);
    for (name, role) in roles {
        if request.keep_fp32.iter().any(|text| source.tensors()[role.position].name.contains(text)) {
            weights.widen(name);
        }
    }
    let request = GraphRequest { profile: request.profile, element, quantization, fixed: request.fixed };
    match computation {
        Computation::Decoder(_, decoder) => build_decoder(decoder, weights, &request),
        Computation::Encoder(encoder) => build_encoder(encoder, weights, &request),
    }
}

/// What shares a scale: blocks, or in the portable profile, which has none of them, columns. An encoder multiplies them in integers;
/// activations of a decoder have single values that are hundreds of times as large as others, and leave nothing to those others where
/// they share a scale.
fn scheme(computation: &Computation, precision: Precision, request: &OnnxRequest) -> Scheme {
    let own = match (request.profile, precision, computation) {
        (Profile::Portable, Precision::Int8, Computation::Encoder(_)) => Scheme::Dynamic,
        (Profile::Portable, Precision::Int8, Computation::Decoder(..)) => Scheme::Qdq,
        _ => Scheme::Blocks,
    };
    request.blocks.scheme.unwrap_or(own)
}

/// How a weight is stored.
fn stored(form: Form, element: Element, precision: Precision) -> Stored {
    let element = if matches!(form, Form::AsIs | Form::Transposed) { element } else { precision.element() };
    let (ty, scale) = match element {
        Element::F16 => (GgmlType::F16, Dtype::F16),
        Element::Bf16 => (GgmlType::BF16, Dtype::BF16),
        _ => (GgmlType::F32, Dtype::F32),
    };
    let blocks = |Blocks { bits, size, symmetric }: Blocks| NBits { bits, block: size, symmetric, scale };
    let columns = |Blocks { size, symmetric, .. }: Blocks| ColumnBlocks { block: size, symmetric, scale };
    match form {
        Form::AsIs | Form::Transposed => Stored::Ggml(ty),
        Form::Codes(b) => Stored::NBits(blocks(b), NBitsPart::Codes),
        Form::Scales(b) => Stored::NBits(blocks(b), NBitsPart::Scales),
        Form::ZeroPoints(b) => Stored::NBits(blocks(b), NBitsPart::ZeroPoints),
        Form::TableScale => Stored::Ggml(GgmlType::F32),
        Form::TableCodes => Stored::Bytes(BytesPart::TableCodes),
        Form::TableZeroPoint => Stored::Bytes(BytesPart::TableZeroPoint),
        Form::ColumnCodes => Stored::Bytes(BytesPart::ColumnCodes),
        Form::ColumnScales => Stored::Bytes(BytesPart::ColumnScales),
        Form::ColumnZeroPoints => Stored::Bytes(BytesPart::ColumnZeroPoints),
        Form::ColumnBlockCodes(b) => Stored::ColumnBlocks(columns(b), ColumnPart::Codes),
        Form::ColumnBlockScales(b) => Stored::ColumnBlocks(columns(b), ColumnPart::Scales),
        Form::ColumnBlockZeroPoints(b) => Stored::ColumnBlocks(columns(b), ColumnPart::ZeroPoints),
    }
}

/// The steps of a plan, by what they read.
struct Steps<'a> {
    source: &'a Source,
    roles: &'a BTreeMap<String, Role>,
    places: BTreeMap<(usize, bool), usize>,
    measured: BTreeMap<usize, ValueChange>,
    waiting: Vec<(usize, usize, bool)>,
}

impl Steps<'_> {
    /// Adds the files of a graph's weights, and tells the steps where their values go.
    fn add_data(&mut self, plan: &mut Plan, model: &str, precision: Precision, graph: &Graph, data: &DataFiles) {
        let first = plan.outputs.len();
        let variant = Some(precision.name());
        for (file, &byte_len) in data.byte_lens().iter().enumerate() {
            let file_name = DataFiles::file_name(model, file);
            plan.outputs.push(Output { file_name, variant, preamble: Vec::new(), tensors: Vec::new(), byte_len });
        }
        for (weight, place) in graph.weights().iter().zip(data.places()) {
            let output = first + place.file;
            let stored = stored(weight.form, weight.element, precision);
            let mut start = place.range.start;
            for role in &weight.roles {
                let role = &self.roles[role];
                let tensor = &self.source.tensors()[role.position];
                // Where there are several, their rows follow one another.
                let (mut shape, mut end, mut padded_end) = (weight.shape.clone(), place.range.end, place.padded_end);
                let mut name = weight.name.clone();
                if weight.roles.len() > 1 {
                    name = format!("{name} ({})", tensor.name);
                    let row_byte_len = (place.range.end - place.range.start) / shape[0];
                    shape[0] = tensor.shape.dims()[0];
                    end = start + shape[0] * row_byte_len;
                    padded_end = if end == place.range.end { padded_end } else { end };
                }
                let step = self.step(plan, role, weight.form);
                let tensors = &mut plan.outputs[output].tensors;
                plan.steps[step].targets.push(Target { output, tensor: tensors.len() });
                tensors.push(OutputTensor {
                    name,
                    source: Some(tensor.name.clone()),
                    stored,
                    instead_of: None,
                    importance: None,
                    shape: Shape::new(shape),
                    range: start..end,
                    padded_end,
                });
                start = end;
            }
        }
    }

    /// The step that reads a tensor in a form: one for all outputs.
    fn step(&mut self, plan: &mut Plan, role: &Role, form: Form) -> usize {
        if matches!(form, Form::ColumnCodes | Form::TableCodes) {
            self.measured.insert(role.position, role.values);
        }
        if matches!(form, Form::TableScale | Form::TableZeroPoint) {
            self.waiting.push((plan.steps.len(), role.position, form == Form::TableScale));
            plan.steps.push(Step::computed(vec![0.0], &Shape::new(vec![1])));
            return plan.steps.len() - 1;
        }
        let transposed = form.is_transposed();
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

/// Executes a plan of ONNX files into a directory that has no name yet, with config and tokenizer files beside them.
///
/// # Errors
/// As [`execute`].
pub fn write_onnx(
    source: &Source,
    plan: &OnnxPlan,
    out: &AtomicDir,
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done, Error> {
    let mut measured = plan.plan.clone();
    measured.extremes = survey(source, &plan.measured, resources)?;
    for &(step, position, is_scale) in &plan.waiting {
        let (scale, zero) = table(&measured.extremes[&position]).table_scale();
        measured.steps[step].input = Input::Computed(vec![if is_scale { scale } else { zero.into() }]);
    }
    let mut done = match execute(source, &measured, out.contents(), resources, progress) {
        // All of them at once.
        Err(Error::F16Overflow { output, .. }) => {
            return Err(Error::F16Overflows { output, tensors: overflows(source, &plan.values, resources)? });
        }
        done => done?,
    };
    for file in &plan.carried {
        done.outputs.push(file.write(out.contents())?);
    }
    Ok(done)
}

/// Gives the directory its name, and what was written there its path.
///
/// # Errors
/// When the system refuses.
pub fn seal_onnx(out: AtomicDir, done: &mut Done) -> Result<(), Error> {
    let (contents, dir) = (out.contents().to_owned(), out.path().to_owned());
    out.seal()?;
    for SealedFile { path, .. } in &mut done.outputs {
        if let Ok(within) = path.strip_prefix(&contents) {
            *path = dir.join(within);
        }
    }
    Ok(())
}
