//! Planning a GGUF adapter: the two factors of every module of a PEFT LoRA adapter, under the names of the base's GGUF
//! tensors (llama.cpp b11434, `convert_lora_to_gguf.py`).
//!
//! ```text
//!   A   rank x in     as it is                                            blk.0.attn_q.weight.lora_a
//!   B   out x rank    its rows in the order of the base's GGUF tensor     blk.0.attn_q.weight.lora_b
//! ```
//! llama.cpp multiplies B A by `adapter.lora.alpha` over the rank. The converter writes `lora_alpha` there whatever the
//! adapter's config says besides. Here it is the number that makes the scale right for every module (`lora_alpha` times the
//! root of the rank with rsLoRA); where no number does (`alpha_pattern`), B is multiplied by what is missing.

use crate::mixture::fit;
use crate::quantize_plan::{Split, Typed, add_files};
use crate::{Error, FileType, Gather, Input, Plan, Source, Step};
use mlpack_arch::{MappedTensor, Model, Packing, ValueChange, View, parameter_count};
use mlpack_lora::AdapterConfig;
use mlpack_tensor::{Dtype, Shape};
use std::collections::HashMap;
use std::path::Path;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct LoraRequest<'a> {
    /// The adapter's directory.
    pub dir: &'a Path,
    /// The start of every file name, and what llama.cpp's metadata heuristics take for the directory's name.
    pub name: &'a str,
    /// The variants, each once: F32, F16, BF16 or Q8_0.
    pub variants: &'a [FileType],
}

/// The prefix that PEFT puts before the module names of the base model.
const PEFT_PREFIX: &str = "base_model.model.";

/// The factors of one module, by position.
struct Pair {
    module: String,
    a: usize,
    b: usize,
}

/// A tensor of the output.
struct Factor {
    name: String,
    shape: Shape,
    step: Step,
    source: String,
}

/// Plans one GGUF file for each variant. `source` is the adapter's ([`Source::open_adapter`]), `model` the base's.
///
/// # Errors
/// Every tensor of the adapter that is no factor of a known module, together.
pub fn plan_lora(source: &Source, model: &Model, request: &LoraRequest<'_>) -> Result<Plan, Error> {
    for variant in request.variants {
        if !matches!(*variant, FileType::F32 | FileType::F16 | FileType::BF16 | FileType::Q8_0) {
            return Err(Error::AdapterVariant { name: variant.name });
        }
    }
    let config = AdapterConfig::open(&request.dir.join("adapter_config.json"))?;
    let pairs = pairs(source)?;
    let names: Vec<String> = pairs.iter().map(|pair| format!("{}.weight", pair.module)).collect();
    let shapes: Vec<Shape> = pairs.iter().map(|pair| product_shape(source, pair)).collect::<Result<_, _>>()?;
    let tensors: Vec<(&str, &Shape)> = names.iter().map(String::as_str).zip(&shapes).collect();
    let mapping = model.map_tensors(&tensors);
    let mut problems: Vec<Error> = mapping.problems.into_iter().map(Error::from).collect();
    problems.extend(mapping.dropped.iter().map(|(at, _)| not_carried(&names[*at])));
    Error::from_list(problems)?;

    let times_rank =
        |pair: &Pair| (config.scale_of(&pair.module, rank(source, pair)) * rank(source, pair) as f64) as f32;
    let mut alphas = pairs.iter().map(times_rank);
    let first = alphas.next().unwrap_or(config.alpha as f32);
    let alpha = if alphas.all(|alpha| alpha == first) { first } else { config.alpha as f32 };
    let factor = |pair: &Pair| match times_rank(pair) {
        own if own == alpha => 1.0,
        own => f64::from(own) / f64::from(alpha),
    };

    let products = mapping.tensors.iter().map(|mapped| (mapped.gguf_name.as_str(), &mapped.shape));
    let parameters = parameter_count(products).total;
    let (metadata, described_by) = model.adapter_metadata(request.dir, request.name, parameters, alpha)?;
    let mut plan = Plan { described_by, warnings: source.warnings.clone(), ..Plan::default() };
    let mut factors = Vec::new();
    let mut used = HashMap::new();
    for mapped in &mapping.tensors {
        factors.extend(factors_of(source, mapped, &pairs, &factor, &mut used)?);
    }
    for &variant in request.variants {
        let typed = |(step, f): (usize, &Factor)| {
            let ty = fit(variant.default, f.shape.row_len());
            let instead_of = (ty != variant.default).then_some(variant.default);
            let (name, shape, source) = (f.name.clone(), f.shape.clone(), Some(f.source.clone()));
            Typed { step, name, shape, ty, instead_of, importance: None, source }
        };
        if plan.steps.is_empty() {
            plan.steps = factors.iter().map(|f| f.step.clone()).collect();
        }
        let tensors = factors.iter().enumerate().map(typed).collect();
        let stem = format!("{}-{}", request.name, variant.name);
        add_files(&mut plan, &stem, variant, &metadata, Split::default().cut(tensors))?;
    }
    Ok(plan)
}

/// The pairs, in the order of their first factors.
fn pairs(source: &Source) -> Result<Vec<Pair>, Error> {
    let mut halves: Vec<(String, Option<usize>, Option<usize>)> = Vec::new();
    let mut places = HashMap::new();
    let mut problems = Vec::new();
    for (position, tensor) in source.tensors().iter().enumerate() {
        let stem = tensor.name.strip_prefix(PEFT_PREFIX).unwrap_or(&tensor.name);
        let stem = stem.strip_suffix(".weight").map(|stem| stem.strip_suffix(".default").unwrap_or(stem));
        let half = stem.and_then(|stem| {
            let module = |suffix| stem.strip_suffix(suffix).map(str::to_owned);
            module(".lora_A").map(|m| (m, true)).or_else(|| module(".lora_B").map(|m| (m, false)))
        });
        let is_float = tensor.stored.dtype().is_some_and(Dtype::is_float) && tensor.shape.rank() == 2;
        let Some((module, is_a)) = half.filter(|_| is_float) else {
            problems.push(not_carried(&tensor.name));
            continue;
        };
        let place = *places.entry(module.clone()).or_insert_with(|| {
            halves.push((module, None, None));
            halves.len() - 1
        });
        let half = if is_a { &mut halves[place].1 } else { &mut halves[place].2 };
        if half.replace(position).is_some() {
            problems.push(not_carried(&tensor.name));
        }
    }
    let mut pairs = Vec::with_capacity(halves.len());
    for (module, a, b) in halves {
        match (a, b) {
            (Some(a), Some(b)) => pairs.push(Pair { module, a, b }),
            _ => problems.push(not_carried(&module)),
        }
    }
    Error::from_list(problems)?;
    Ok(pairs)
}

fn not_carried(tensor: &str) -> Error {
    Error::AdapterTensor { tensor: tensor.to_owned() }
}

fn rank(source: &Source, pair: &Pair) -> u64 {
    source.tensors()[pair.a].shape.dims()[0]
}

/// The shape of B A.
fn product_shape(source: &Source, pair: &Pair) -> Result<Shape, Error> {
    match (source.tensors()[pair.a].shape.dims(), source.tensors()[pair.b].shape.dims()) {
        ([rank, columns], [rows, of_b]) if rank == of_b && *rank > 0 => Ok(Shape::new(vec![*rows, *columns])),
        _ => Err(not_carried(&pair.module)),
    }
}

/// The two factors of a tensor of the base's GGUF file.
fn factors_of(
    source: &Source,
    mapped: &MappedTensor,
    pairs: &[Pair],
    factor: &dyn Fn(&Pair) -> f64,
    used: &mut HashMap<usize, u64>,
) -> Result<[Factor; 2], Error> {
    let of: Vec<&Pair> = mapped.sources.iter().map(|position| &pairs[*position]).collect();
    let first = of[0];
    let columns = source.tensors()[first.a].shape.row_len();
    let (rank, factor) = (rank(source, first), factor(first));
    let alike = |pair: &&Pair| {
        let same = |a: usize, b: usize| {
            let (a, b) = (&source.tensors()[a], &source.tensors()[b]);
            a.shape == b.shape && a.stored == b.stored
        };
        same(pair.a, first.a) && same(pair.b, first.b)
    };
    let whole_rows = mapped.view.piece_len() == columns && mapped.shape.row_len() == columns;
    let is_matrix = mapped.shape.rank() == if of.len() > 1 { 3 } else { 2 };
    if !whole_rows || !is_matrix || mapped.values != ValueChange::None || !of.iter().all(alike) {
        return Err(not_carried(&format!("{}.weight", first.module)));
    }
    let make = |suffix: &str, positions: Vec<usize>, view: View, factor: f64, rows: u64, offset: u64| {
        let tensor = &source.tensors()[positions[0]];
        let row_len = view.piece_len();
        let mut dims = mapped.shape.dims().to_vec();
        let at = dims.len() - 2;
        (dims[at], dims[at + 1]) = (rows, row_len);
        let shape = Shape::new(dims);
        let rows = shape.row_count().unwrap_or(0);
        let name = tensor.name.clone();
        let (packing, values) = (Packing::None, ValueChange::None);
        let gather = Gather { positions, view, packing, values, factor, offset };
        let step = Step { input: Input::Tensors(gather), rows, row_len, targets: Vec::new() };
        Factor { name: format!("{}.{suffix}", mapped.gguf_name), shape, step, source: name }
    };
    let a: Vec<usize> = of.iter().map(|pair| pair.a).collect();
    let b: Vec<usize> = of.iter().map(|pair| pair.b).collect();
    let count = of.len() as u64;
    // The factor A of a divided tensor is written for each part, and read for the first.
    let seen = used.entry(first.a).or_insert(0);
    let offset_a = *seen * rank * columns * count;
    *seen += 1;
    let offset_b = mapped.offset / columns * rank;
    let rows = mapped.shape.dims()[mapped.shape.rank() - 2];
    Ok([
        make("lora_a", a, View::copy(rank * count, columns), 1.0, rank, offset_a),
        make("lora_b", b, mapped.view.clone().with_piece_len(rank), factor, rows, offset_b),
    ])
}

#[cfg(test)]
mod tests;
