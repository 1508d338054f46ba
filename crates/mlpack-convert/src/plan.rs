//! Plan: what is written where, from headers alone.
//!
//! ```text
//!   Step 0   input  model.embed_tokens.weight   rows x row_len, row order
//!            └─ targets: output 0 tensor 0, output 1 tensor 1, …       one read, many writes
//!   Step 1   …
//!   Output 0 NAME-F16.gguf      preamble | tensor 0 | padding | tensor 1 | …
//!   Output 1 NAME-Q4_K_M.gguf   preamble | tensor 0 | …               its own order and types
//! ```

use crate::{Importance, Limits};
use mlpack_arch::{MappedTensor, Packing, ValueChange, View};
use mlpack_fs::Sha256;
use mlpack_quant::{ColumnBlocks, ColumnPart, Extremes, NBits, NBitsPart};
use mlpack_tensor::{Dtype, GgmlType, Shape};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Every output of one run, with the place of every byte.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The files to write.
    pub outputs: Vec<Output>,
    /// The work, in source order.
    pub steps: Vec<Step>,
    /// Source tensors that are in no output, each with the reason.
    pub dropped: Vec<(String, &'static str)>,
    /// What a person should know before relying on the result.
    pub warnings: Vec<String>,
    /// Config, tokenizer and model card files that decided names and metadata.
    pub described_by: Vec<PathBuf>,
    /// The importance matrix that outputs are encoded with.
    pub importance: Option<Arc<Importance>>,
    /// How far stored values may be from their source. Nothing is written when a tensor is further.
    pub limits: Limits,
    /// Digests of the source's files that need not be hashed again.
    pub known: BTreeMap<PathBuf, Sha256>,
    /// The extremes of each row of source tensors, by position, of which outputs store bytes: measured before the
    /// outputs are written.
    pub extremes: BTreeMap<usize, Arc<[Extremes]>>,
    /// Whether [`crate::Done::changes`] are asked for: measuring them takes time.
    pub measures_changes: bool,
}

/// One file to write.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name within the output directory.
    pub file_name: String,
    /// The variant, for a GGUF file.
    pub variant: Option<&'static str>,
    /// Everything before the first tensor.
    pub preamble: Vec<u8>,
    /// The tensors in file order.
    pub tensors: Vec<OutputTensor>,
    /// The length of the file.
    pub byte_len: u64,
}

/// One tensor of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTensor {
    /// Its name in the output.
    pub name: String,
    /// The source tensor; `None` for a tensor computed from the config.
    pub source: Option<String>,
    /// How its elements are stored.
    pub stored: Stored,
    /// The type that the variant's mixture wanted, where the row length did not allow it.
    pub instead_of: Option<GgmlType>,
    /// The entry of the plan's importance matrix that it is encoded with.
    pub importance: Option<usize>,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// Its bytes, as offsets into the file.
    pub range: Range<u64>,
    /// Where the zeros after it end.
    pub padded_end: u64,
}

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As safetensors stores them, in the source's dtype.
    Safetensors(Dtype),
    /// As ggml stores them.
    Ggml(GgmlType),
    /// A part of what ONNX Runtime's MatMulNBits reads.
    NBits(NBits, NBitsPart),
    /// A part of a matrix in blocks of its columns.
    ColumnBlocks(ColumnBlocks, ColumnPart),
    /// A part of a matrix or a table of bytes, for which [`Plan::extremes`] has to be known.
    Bytes(BytesPart),
}

/// A part of a matrix of signed bytes with a scale for each column, or of a table of bytes with one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BytesPart {
    /// The integers of a matrix, from its rows and columns exchanged.
    ColumnCodes,
    /// The scales of its columns, from its rows.
    ColumnScales,
    /// Their zero points, from its rows.
    ColumnZeroPoints,
    /// The integers of a table.
    TableCodes,
    /// The zero point of a table, a number by itself.
    TableZeroPoint,
}

impl Stored {
    /// The name of the type in its format.
    pub fn name(self) -> &'static str {
        match self {
            Stored::Safetensors(dtype) => dtype.name(),
            Stored::Ggml(ty) => ty.name(),
            Stored::NBits(n, NBitsPart::Codes) if n.bits == 4 => "UINT4",
            Stored::NBits(_, NBitsPart::Codes) => "UINT8",
            Stored::NBits(n, NBitsPart::Scales) => n.scale.name(),
            Stored::NBits(n, NBitsPart::ZeroPoints) if n.bits == 4 => "UINT4",
            Stored::NBits(_, NBitsPart::ZeroPoints) => "UINT8",
            Stored::ColumnBlocks(b, ColumnPart::Scales) => b.scale.name(),
            Stored::ColumnBlocks(b, _) if b.symmetric => "INT4",
            Stored::ColumnBlocks(..) => "UINT4",
            Stored::Bytes(BytesPart::ColumnCodes | BytesPart::ColumnZeroPoints) => "INT8",
            Stored::Bytes(BytesPart::ColumnScales) => "F32",
            Stored::Bytes(BytesPart::TableCodes | BytesPart::TableZeroPoint) => "UINT8",
        }
    }

    /// The dtype with the same bytes, where there is one: blocks have none.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Stored::Safetensors(dtype) => Some(dtype),
            Stored::NBits(..) | Stored::ColumnBlocks(..) | Stored::Bytes(_) => None,
            Stored::Ggml(ty) => match ty {
                GgmlType::F32 => Some(Dtype::F32),
                GgmlType::F16 => Some(Dtype::F16),
                GgmlType::BF16 => Some(Dtype::BF16),
                GgmlType::F64 => Some(Dtype::F64),
                GgmlType::I8 => Some(Dtype::I8),
                GgmlType::I16 => Some(Dtype::I16),
                GgmlType::I32 => Some(Dtype::I32),
                GgmlType::I64 => Some(Dtype::I64),
                _ => None,
            },
        }
    }

    /// Whether both have the same bytes for the same values.
    pub fn same_bytes(self, other: Stored) -> bool {
        self == other || self.dtype().is_some_and(|dtype| other.dtype() == Some(dtype))
    }

    /// Bytes of a row of so many elements, of which a source's header has told that they are whole blocks.
    pub(crate) fn row_byte_len(self, row_len: u64) -> u64 {
        match self {
            Stored::Safetensors(dtype) => row_len * dtype.byte_size(),
            Stored::Ggml(ty) => ty.row_byte_len(row_len).expect("the reader checked that rows are whole blocks"),
            Stored::NBits(n, part) => n.row_byte_len(part, row_len),
            Stored::ColumnBlocks(..) | Stored::Bytes(_) => unreachable!("no source is stored so"),
        }
    }
}

/// One tensor on its way from the source to every output.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where the values come from.
    pub input: Input,
    /// The number of rows.
    pub rows: u64,
    /// Elements of a row.
    pub row_len: u64,
    /// Where the values go.
    pub targets: Vec<Target>,
}

/// Where the values of a step come from.
#[derive(Clone, Debug)]
pub enum Input {
    /// Tensors of the source, with its adapters' deltas.
    Tensors(Gather),
    /// Values computed from the config.
    Computed(Vec<f32>),
}

/// The offset of a step that accounts for nothing: more than any tensor has elements.
const ALL_ELSEWHERE: u64 = u64::MAX >> 1;

/// Values of source tensors that have the same shape and type, in an order of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// The tensors, by position, one after another: more than one for a stack.
    pub positions: Vec<usize>,
    /// Where the values are in them.
    pub view: View,
    /// How they are packed.
    pub packing: Packing,
    /// What is done to each value.
    pub values: ValueChange,
    /// What each value is multiplied with.
    pub factor: f64,
    /// Elements of the tensors that other steps account for: where the share of this one starts.
    pub offset: u64,
}

impl Step {
    /// A tensor of the source as it is.
    pub fn copy(position: usize, shape: &Shape) -> Step {
        let (rows, row_len) = (shape.row_count().unwrap_or(0), shape.row_len());
        let view = View::copy(rows, row_len);
        let (packing, values) = (Packing::None, ValueChange::None);
        let gather = Gather { positions: vec![position], view, packing, values, factor: 1.0, offset: 0 };
        Step { input: Input::Tensors(gather), rows, row_len, targets: Vec::new() }
    }

    /// A tensor of the GGUF file that a checkpoint becomes.
    pub fn mapped(tensor: &MappedTensor) -> Step {
        let MappedTensor { sources, view, packing, values, offset, .. } = tensor.clone();
        let gather = Gather { positions: sources, view, packing, values, factor: 1.0, offset };
        let (rows, row_len) = (tensor.shape.row_count().unwrap_or(0), tensor.shape.row_len());
        Step { input: Input::Tensors(gather), rows, row_len, targets: Vec::new() }
    }

    /// The tensors that it reads, if it does.
    pub(crate) fn gather(&self) -> Option<&Gather> {
        match &self.input {
            Input::Tensors(gather) => Some(gather),
            Input::Computed(_) => None,
        }
    }

    /// Whether another one has the same values of the same tensors in its rows.
    fn reads_as(&self, other: &Step) -> bool {
        self.gather().is_some()
            && (self.gather(), self.rows, self.row_len) == (other.gather(), other.rows, other.row_len)
    }

    /// Values computed from the config.
    pub fn computed(values: Vec<f32>, shape: &Shape) -> Step {
        let (rows, row_len) = (shape.row_count().unwrap_or(0), shape.row_len());
        Step { input: Input::Computed(values), rows, row_len, targets: Vec::new() }
    }
}

/// One place that a step writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The output, as an index into [`Plan::outputs`].
    pub output: usize,
    /// The tensor, as an index into [`Output::tensors`].
    pub tensor: usize,
}

impl Plan {
    /// A digest of everything that decides the bytes' places and types: names, types, shapes, offsets, headers.
    pub fn digest(&self) -> Sha256 {
        let mut text = String::new();
        if let Some(importance) = &self.importance {
            text.push_str(&format!("importance {}\n", importance.sha256()));
        }
        for output in &self.outputs {
            text.push_str(&format!(
                "output {:?} {} {}\n",
                output.file_name,
                output.byte_len,
                Sha256::of(&output.preamble)
            ));
            for t in &output.tensors {
                let source = t.source.as_deref().unwrap_or_default();
                let (stored, importance) = (t.stored.name(), t.importance);
                text.push_str(&format!("{:?} {source:?} {stored} {} {:?} {importance:?}\n", t.name, t.shape, t.range));
            }
        }
        Sha256::of(text.as_bytes())
    }

    /// Importance values of one expert, one for each column, from the entry that [`OutputTensor::importance`] names.
    pub(crate) fn importance(&self, entry: usize, expert: usize, row_len: usize, out: &mut Vec<f32>) {
        let importance = self.importance.as_ref().expect("an output that names an entry comes with the matrix");
        importance.read(entry, expert, row_len, out);
    }

    /// One plan for the outputs of both, of the same source: this one's, a merge's, first. Every tensor that both take as it lies is
    /// read, and changed by adapters, once.
    pub(crate) fn with(&self, other: &Plan) -> Plan {
        let mut both = self.clone();
        both.outputs.extend(other.outputs.iter().cloned());
        both.measures_changes |= other.measures_changes;
        both.known.extend(other.known.iter().map(|(path, sha256)| (path.clone(), *sha256)));
        // A merge has none of these.
        (both.importance, both.limits, both.extremes) =
            (other.importance.clone(), other.limits, other.extremes.clone());
        let by_tensors =
            self.steps.iter().enumerate().filter_map(|(i, step)| Some((step.gather()?.positions.as_slice(), i)));
        let by_tensors: BTreeMap<&[usize], usize> = by_tensors.collect();
        for step in &other.steps {
            let moved = |target: &Target| Target { output: self.outputs.len() + target.output, ..*target };
            let targets = step.targets.iter().map(moved);
            let found = step.gather().and_then(|gather| by_tensors.get(gather.positions.as_slice()));
            match found.filter(|found| self.steps[**found].reads_as(step)) {
                Some(found) => both.steps[*found].targets.extend(targets),
                None => {
                    let mut step = Step { targets: targets.collect(), ..step.clone() };
                    if let Input::Tensors(gather) = &mut step.input {
                        gather.offset = ALL_ELSEWHERE;
                    }
                    both.steps.push(step);
                }
            }
        }
        both
    }

    /// Where outputs are in a directory.
    pub(crate) fn paths(&self, dir: &Path) -> Vec<PathBuf> {
        self.outputs.iter().map(|output| dir.join(&output.file_name)).collect()
    }

    /// Bytes of all outputs together.
    pub fn byte_len(&self) -> u64 {
        self.outputs.iter().map(|o| o.byte_len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(output: usize, tensor: usize) -> Target {
        Target { output, tensor }
    }

    #[test]
    fn what_two_plans_read_alike_is_one_step_and_no_byte_of_the_source_counts_twice() {
        let shape = Shape::from(&[4, 8][..]);
        let copy = |position, output| Step { targets: vec![target(output, position)], ..Step::copy(position, &shape) };
        let file = |name: &str| Output {
            file_name: name.to_owned(),
            variant: None,
            preamble: Vec::new(),
            tensors: Vec::new(),
            byte_len: 0,
        };
        let merged = Plan { outputs: vec![file("m")], steps: vec![copy(0, 0), copy(1, 0)], ..Plan::default() };
        let mut turned = copy(1, 1);
        let Input::Tensors(gather) = &mut turned.input else { unreachable!("a copy reads a tensor") };
        gather.view = View::transposed_rows(1, 4, 8, 0, 4);
        let computed = Step { targets: vec![target(0, 7)], ..Step::computed(vec![1.0], &Shape::from(&[1][..])) };
        let other =
            Plan { outputs: vec![file("a"), file("b")], steps: vec![turned, copy(0, 1), computed], ..Plan::default() };
        let both = merged.with(&other);
        let names: Vec<&str> = both.outputs.iter().map(|output| output.file_name.as_str()).collect();
        assert_eq!(names, ["m", "a", "b"]);
        let targets: Vec<&[Target]> = both.steps.iter().map(|step| step.targets.as_slice()).collect();
        assert_eq!(targets, [&[target(0, 0), target(2, 0)][..], &[target(0, 1)], &[target(2, 1)], &[target(1, 7)]]);
        let counts = both.steps.iter().map(|step| step.gather().is_some_and(|gather| gather.offset == 0));
        assert_eq!(counts.collect::<Vec<_>>(), [true, true, false, false]);
    }
}
