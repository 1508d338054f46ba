//! A library of ONNX Runtime, and a graph that runs in it.

use crate::compare::{Comparison, OutputComparison, Tolerance};
use crate::error::Error;
use crate::forward::token_type;
use crate::reference::{Expected, Kind, Reference};
use half::f16;
use mlpack_convert::Precision;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};
use std::path::Path;

/// A library of ONNX Runtime. A process has one at most.
pub struct Runtime {
    environment: Environment,
}

impl Runtime {
    /// Loads a library: a path, or a name that the system looks for where it looks for libraries.
    ///
    /// # Errors
    /// When it is not there, too old or no ONNX Runtime.
    pub fn load(path: &Path) -> Result<Runtime, Error> {
        let library = |reason: String| Error::Library { path: path.to_owned(), reason };
        let builder = ort::init_from(path).map_err(|error| match error {
            ort::LoadDynamicError::BadVersion { version_str, path } => {
                Error::OldLibrary { path, least: ort::MINOR_VERSION, found: version_str }
            }
            // What the system says is behind what the loader says.
            ort::LoadDynamicError::Dlopen { error, .. } => {
                library(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
            }
            other => library(other.to_string()),
        })?;
        Ok(Runtime { environment: builder.build().map_err(|error| library(error.to_string()))? })
    }

    /// Runs a graph on the CPU, and compares its outputs with the reference.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the graph, or an output is missing or has another shape.
    pub fn compare(&self, reference: &Reference, graph: &Path, precision: Precision) -> Result<Comparison, Error> {
        let file = graph.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let session = self.session(graph).map_err(|error| refused(&file, &error))?;
        let mut run = Run { file, session, reference };
        let found = match &reference.kind {
            Kind::Decoder { .. } => run.decoder()?,
            Kind::Encoder { padding, types } => run.encoder(*padding as i64, *types)?,
        };
        let outputs = reference.outputs.iter().zip(&found);
        let outputs = outputs.map(|(expected, found)| OutputComparison::new(expected, found)).collect();
        let overflow = reference.overflow.clone().filter(|_| precision == Precision::Fp16);
        Ok(Comparison { outputs, tolerance: Tolerance::of(precision), overflow })
    }

    fn session(&self, graph: &Path) -> ort::Result<Session> {
        Session::builder(&self.environment)?.with_log_level(LogLevel::Fatal)?.commit_from_file(graph)
    }
}

struct Run<'a> {
    file: String,
    session: Session,
    reference: &'a Reference,
}

/// Values of an output, `[batch, …]`.
struct Found {
    shape: Vec<i64>,
    values: Vec<f32>,
}

impl Run<'_> {
    /// All outputs of an encoder: texts are padded on the right.
    fn encoder(&mut self, padding: i64, types: Option<u64>) -> Result<Vec<Vec<f32>>, Error> {
        let (texts, n) = (&self.reference.probe.texts, self.reference.probe.sequence as usize);
        let grid = |f: &dyn Fn(&[u32], usize) -> i64| -> Vec<i64> {
            texts.iter().flat_map(|text| (0..n).map(move |at| f(text, at))).collect()
        };
        let mut inputs = vec![
            ("input_ids", grid(&|text, at| text.get(at).map_or(padding, |token| (*token).into()))),
            ("attention_mask", grid(&|text, at| (at < text.len()).into())),
        ];
        if let Some(types) = types {
            let of =
                |text: &[u32], at: usize| if at < text.len() { token_type(at, text.len(), types) as i64 } else { 0 };
            inputs.push(("token_type_ids", grid(&of)));
        }
        let shape = [texts.len(), n];
        let inputs = inputs.into_iter().map(|(name, values)| Ok((name.to_owned(), integers(&shape, values)?)));
        let inputs = inputs.collect::<ort::Result<Vec<_>>>().map_err(|error| refused(&self.file, &error))?;
        let expected: Vec<&Expected> = self.reference.outputs.iter().collect();
        let (found, _) = self.run(inputs, &expected, &[])?;
        let mut outputs = Vec::with_capacity(found.len());
        for (expected, found) in expected.into_iter().zip(found) {
            let rows = if expected.by_position { n } else { 1 };
            self.check(expected, &found, texts.len() * rows)?;
            let mut values = Vec::with_capacity(expected.values.len());
            for (i, text) in texts.iter().enumerate() {
                let count = if expected.by_position { text.len() } else { 1 };
                let start = i * rows * expected.width;
                values.extend_from_slice(&found.values[start..start + count * expected.width]);
            }
            outputs.push(values);
        }
        Ok(outputs)
    }

    /// The logits of a decoder: texts are padded on the left, and their last tokens come one by one, each with the cache of those
    /// before.
    fn decoder(&mut self) -> Result<Vec<Vec<f32>>, Error> {
        let probe = &self.reference.probe;
        let (first, steps) = (probe.sequence as i64, probe.steps as i64);
        let expected = &self.reference.outputs[0];
        let mut rows: Vec<Vec<f32>> = vec![Vec::new(); probe.texts.len()];
        let mut cache = self.empty_cache().map_err(|error| refused(&self.file, &error))?;
        let mut past = probe.past as i64;
        for run in 0..=steps {
            let n = if run == 0 { first } else { 1 };
            let (texts, total) = (&self.reference.probe.texts, past + n);
            // The place in its text of what lies in a column of the mask; less than 0 for padding.
            let end = self.reference.probe.past as i64 + first + steps;
            let place = |text: &[u32], column: i64| column - (end - text.len() as i64);
            let grid = |columns: std::ops::Range<i64>, f: &dyn Fn(&[u32], i64) -> i64| -> Vec<i64> {
                texts.iter().flat_map(|text| columns.clone().map(move |column| f(text, place(text, column)))).collect()
            };
            let token = |text: &[u32], at: i64| usize::try_from(at).map_or(0, |at| text[at].into());
            let ints = [
                ("input_ids", n, grid(past..total, &token)),
                ("position_ids", n, grid(past..total, &|_, at| at.max(0))),
                ("attention_mask", total, grid(0..total, &|_, at| (at >= 0).into())),
            ];
            let ints = ints
                .into_iter()
                .map(|(name, width, values)| Ok((name.to_owned(), integers(&[texts.len(), width as usize], values)?)));
            let mut inputs = ints.collect::<ort::Result<Vec<_>>>().map_err(|error| refused(&self.file, &error))?;
            let names: Vec<String> = cache.iter().map(|(name, _)| name.clone()).collect();
            inputs.extend(cache);
            let kept: Vec<String> = names.iter().map(|name| name.replace("past_key_values", "present")).collect();
            let (found, values) = self.run(inputs, &[expected], if run < steps { &kept } else { &[] })?;
            cache = names.into_iter().zip(values).collect();
            let found = &found[0];
            self.check(expected, found, self.reference.probe.texts.len() * n as usize)?;
            for (i, (text, row)) in self.reference.probe.texts.iter().zip(&mut rows).enumerate() {
                for column in (0..n).filter(|column| past + column - (end - text.len() as i64) >= 0) {
                    let start = (i as i64 * n + column) as usize * expected.width;
                    row.extend_from_slice(&found.values[start..start + expected.width]);
                }
            }
            past = total;
        }
        Ok(vec![rows.concat()])
    }

    /// The cache before the first token: nothing, or positions that the mask hides.
    fn empty_cache(&self) -> ort::Result<Vec<(String, DynValue)>> {
        let Kind::Decoder { layers, kv_heads, head_dim } = self.reference.kind else { return Ok(Vec::new()) };
        let probe = &self.reference.probe;
        let shape = [probe.texts.len(), kv_heads as usize, probe.past as usize, head_dim as usize];
        let is_half = |name: &str| {
            let input = self.session.inputs().iter().find(|input| input.name() == name);
            matches!(input.map(|input| input.dtype()), Some(ValueType::Tensor { ty: TensorElementType::Float16, .. }))
        };
        let mut cache = Vec::with_capacity(2 * layers);
        for name in (0..layers).flat_map(|i| ["key", "value"].map(|part| format!("past_key_values.{i}.{part}"))) {
            let value = if is_half(&name) { zeros::<f16>(&shape)? } else { zeros::<f32>(&shape)? };
            cache.push((name, value));
        }
        Ok(cache)
    }

    /// The values of outputs, and other outputs as they are.
    fn run(
        &mut self,
        inputs: Vec<(String, DynValue)>,
        wanted: &[&Expected],
        kept: &[String],
    ) -> Result<(Vec<Found>, Vec<DynValue>), Error> {
        let inputs: Vec<(String, SessionInputValue<'_>)> =
            inputs.into_iter().map(|(name, value)| (name, value.into())).collect();
        let refused = |error: ort::Error| refused(&self.file, &error);
        let mut outputs = self.session.run(inputs).map_err(refused)?;
        let missing = |name: &str| Error::Output {
            file: self.file.clone(),
            output: name.to_owned(),
            expected: Vec::new(),
            found: Vec::new(),
        };
        let mut found = Vec::with_capacity(wanted.len());
        for expected in wanted {
            let value = outputs.get(expected.name).ok_or_else(|| missing(expected.name))?;
            let (shape, values) = match value.dtype() {
                ValueType::Tensor { ty: TensorElementType::Float16, .. } => {
                    let (shape, values) = value.try_extract_tensor::<f16>().map_err(refused)?;
                    (shape, values.iter().map(|v| v.to_f32()).collect())
                }
                _ => {
                    let (shape, values) = value.try_extract_tensor::<f32>().map_err(refused)?;
                    (shape, values.to_vec())
                }
            };
            found.push(Found { shape: shape.to_vec(), values });
        }
        let kept = kept.iter().map(|name| outputs.remove(name).ok_or_else(|| missing(name)));
        Ok((found, kept.collect::<Result<_, _>>()?))
    }

    fn check(&self, expected: &Expected, found: &Found, rows: usize) -> Result<(), Error> {
        if found.values.len() == rows * expected.width {
            return Ok(());
        }
        Err(Error::Output {
            file: self.file.clone(),
            output: expected.name.to_owned(),
            expected: vec![rows, expected.width],
            found: found.shape.clone(),
        })
    }
}

fn integers(shape: &[usize], values: Vec<i64>) -> ort::Result<DynValue> {
    Ok(Tensor::from_array((shape.to_vec(), values))?.into_dyn())
}

/// An array of zeros, which may have no element.
fn zeros<T>(shape: &[usize]) -> ort::Result<DynValue>
where
    T: ort::value::PrimitiveTensorElementType + Clone + Default + std::fmt::Debug + 'static,
{
    if shape.contains(&0) {
        let shape = ort::value::Shape::new(shape.iter().map(|n| *n as i64));
        return Ok(Tensor::<T>::new(&ort::memory::Allocator::default(), shape)?.into_dyn());
    }
    Ok(Tensor::from_array((shape.to_vec(), vec![T::default(); shape.iter().product()]))?.into_dyn())
}

fn refused(file: &str, error: &ort::Error) -> Error {
    Error::Graph { file: file.to_owned(), reason: error.to_string() }
}
