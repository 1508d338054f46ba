//! A graph under construction: typed values, nodes in order, constants once, weights by what they are made of.

use crate::data::DataFiles;
use crate::element::Element;
use crate::error::Error;
use crate::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// Which operators a graph may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// Standard operators up to opset 23: attention, rotation and norms are one operator each.
    Std,
    /// Primitives of opset 17, for old and small runtimes.
    Portable,
    /// ONNX Runtime's own operators too.
    Ort,
}

impl Profile {
    /// The newest opset of its operators.
    pub const fn max_opset(self) -> i64 {
        match self {
            Profile::Std => 23,
            Profile::Portable => 17,
            Profile::Ort => 21,
        }
    }

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Std => "std",
            Profile::Portable => "portable",
            Profile::Ort => "ort",
        }
    }
}

/// The oldest opset that is stamped: what every runtime of the last years reads.
const MIN_OPSET: i64 = 17;

/// The domain of ONNX Runtime's own operators.
const CONTRIB: &str = "com.microsoft";

/// The opset in which an operator has the form that is used here, in which domain. A name with a domain of its own starts
/// with that.
fn since(op: &str, inputs: usize) -> (&'static str, i64) {
    match op {
        // The axes as an input.
        "ReduceMean" | "ReduceMax" if inputs > 1 => ("", 18),
        "Attention" | "RMSNormalization" | "RotaryEmbedding" => ("", 23),
        "Gelu" => ("", 20),
        "LayerNormalization" => ("", 17),
        "GroupQueryAttention" | "MatMulNBits" | "GatherBlockQuantized" | "com.microsoft.RotaryEmbedding" => {
            (CONTRIB, 1)
        }
        _ => ("", 13),
    }
}

/// A tensor of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    name: String,
    element: Element,
}

impl Value {
    /// An optional input that is left out.
    pub fn none() -> Value {
        Value { name: String::new(), element: Element::F32 }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn element(&self) -> Element {
        self.element
    }
}

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A size.
    Size(u64),
    /// Known when the graph runs; equal names are equal sizes.
    Name(&'static str),
}

impl From<u64> for Dim {
    fn from(size: u64) -> Dim {
        Dim::Size(size)
    }
}

impl From<&'static str> for Dim {
    fn from(name: &'static str) -> Dim {
        Dim::Name(name)
    }
}

/// Sizes that are known before the graph runs, for runtimes that want all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedDims {
    /// Texts in a batch.
    pub batch: Option<u64>,
    /// Tokens of a text that are new.
    pub sequence: Option<u64>,
    /// Positions in a decoder's cache; 0 for a graph that begins texts.
    pub past: Option<u64>,
}

impl FixedDims {
    /// The size of a dimension with that name.
    fn size(&self, name: &str) -> Option<u64> {
        match name {
            "batch_size" => self.batch,
            "sequence_length" => self.sequence,
            "past_sequence_length" => self.past,
            "total_sequence_length" => self.past?.checked_add(self.sequence?),
            _ => None,
        }
    }
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A string.
    Text(&'static str),
    /// A list of integers.
    Ints(Vec<i64>),
}

/// What a weight is of the tensor it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The tensor.
    AsIs,
    /// The matrix with rows and columns exchanged.
    Transposed,
    /// Integers of its blocks, one row for each row of the tensor.
    Codes(Blocks),
    /// The scales of those blocks.
    Scales(Blocks),
    /// Their zero points.
    ZeroPoints(Blocks),
    /// The matrix with rows and columns exchanged, as signed bytes with a scale for each column.
    ColumnCodes,
    /// The scales of those columns.
    ColumnScales,
    /// Their zero points, which are zero.
    ColumnZeroPoints,
    /// The tensor as bytes with one scale and one zero point.
    TableCodes,
    /// That scale.
    TableScale,
    /// That zero point.
    TableZeroPoint,
    /// The matrix with rows and columns exchanged, as integers of blocks of its columns.
    ColumnBlockCodes(Blocks),
    /// The scales of those blocks, a row for each block of a column.
    ColumnBlockScales(Blocks),
    /// Their zero points.
    ColumnBlockZeroPoints(Blocks),
}

impl Form {
    /// Whether it is made from columns of the tensor.
    pub const fn is_transposed(self) -> bool {
        matches!(
            self,
            Form::Transposed
                | Form::ColumnCodes
                | Form::ColumnBlockCodes(_)
                | Form::ColumnBlockScales(_)
                | Form::ColumnBlockZeroPoints(_)
        )
    }
}

/// How the rows of a matrix are cut into blocks of integers with a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// 4 or 8.
    pub bits: u32,
    /// Values of a block: a power of two from 16 to 256.
    pub size: u32,
    /// Without zero points.
    pub symmetric: bool,
}

/// A tensor of the graph that comes from a checkpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its name in the graph.
    pub name: String,
    /// The checkpoint's tensor, by its name in [`crate::Weights`], or several whose rows follow one another.
    pub roles: Vec<String>,
    /// What it is of that tensor.
    pub form: Form,
    /// How elements are stored.
    pub element: Element,
    /// Its shape in the graph, outermost dimension first.
    pub shape: Vec<u64>,
}

impl Weight {
    /// Its bytes; `None` on overflow.
    pub fn byte_len(&self) -> Option<u64> {
        self.element.byte_len(self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?)
    }
}

/// An initializer: small and known, or a weight, by position.
#[derive(Clone, Debug)]
enum Initializer {
    Constant(TensorProto),
    Weight(usize),
}

/// A graph under construction.
#[derive(Clone, Debug)]
pub struct Graph {
    profile: Profile,
    nodes: Vec<NodeProto>,
    initializers: Vec<Initializer>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    weights: Vec<Weight>,
    names: BTreeSet<String>,
    known: BTreeMap<String, Value>,
    opset: i64,
    contrib: bool,
    fixed: FixedDims,
}

impl Graph {
    /// An empty graph.
    pub fn new(profile: Profile) -> Graph {
        Graph {
            profile,
            nodes: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            weights: Vec::new(),
            names: BTreeSet::new(),
            known: BTreeMap::new(),
            opset: MIN_OPSET,
            contrib: false,
            fixed: FixedDims::default(),
        }
    }

    /// Gives dimensions of inputs and outputs that follow their sizes.
    pub fn fix(&mut self, dims: FixedDims) {
        self.fixed = dims;
    }

    /// Which operators it may use.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The opset that its operators need.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// The weights, in the order of first use.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, element: Element, dims: &[Dim]) -> Value {
        self.claim(name);
        self.inputs.push(value_info(name, element, dims, &self.fixed));
        Value { name: name.to_owned(), element }
    }

    /// Makes a value an output. Its node is given the output's name.
    pub fn output(&mut self, name: &str, value: &Value, dims: &[Dim]) {
        self.claim(name);
        self.outputs.push(value_info(name, value.element, dims, &self.fixed));
        if self.weights.iter().any(|w| w.name == value.name) || !self.rename(&value.name, name) {
            let node = NodeProto {
                input: vec![value.name.clone()],
                output: vec![name.to_owned()],
                name: format!("/{name}/Identity"),
                op_type: "Identity".to_owned(),
                ..NodeProto::default()
            };
            self.nodes.push(node);
        }
    }

    /// Adds a node with one output, which has the node's name with `/output_0` behind it.
    ///
    /// # Panics
    /// When the profile has no such operator, or the name is taken: recipes are tested.
    pub fn node(
        &mut self,
        op: &'static str,
        name: &str,
        inputs: &[&Value],
        element: Element,
        attributes: &[(&'static str, Attribute)],
    ) -> Value {
        let [value] = self.node_with(op, name, inputs, [element], attributes);
        value
    }

    /// Adds a node with several outputs.
    ///
    /// # Panics
    /// As [`Graph::node`].
    pub fn node_with<const N: usize>(
        &mut self,
        op: &'static str,
        name: &str,
        inputs: &[&Value],
        elements: [Element; N],
        attributes: &[(&'static str, Attribute)],
    ) -> [Value; N] {
        let (domain, version) = since(op, inputs.len());
        if domain.is_empty() {
            assert!(version <= self.profile.max_opset(), "{op} in profile {}", self.profile.name());
            self.opset = self.opset.max(version);
        } else {
            self.contrib = true;
        }
        self.claim(name);
        let mut number = 0;
        let outputs = elements.map(|element| {
            number += 1;
            Value { name: format!("{name}/output_{}", number - 1), element }
        });
        // Optional inputs at the end are left out.
        let used = inputs.iter().rposition(|value| !value.name.is_empty()).map_or(0, |last| last + 1);
        self.nodes.push(NodeProto {
            input: inputs[..used].iter().map(|value| value.name.clone()).collect(),
            output: outputs.iter().map(|value| value.name.clone()).collect(),
            name: name.to_owned(),
            op_type: op.rsplit('.').next().unwrap_or(op).to_owned(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: domain.to_owned(),
        });
        outputs
    }

    /// A weight of the checkpoint; the same name again is the same weight.
    pub fn weight(&mut self, name: &str, role: &str, form: Form, element: Element, shape: &[u64]) -> Value {
        let value = Value { name: name.to_owned(), element };
        if self.known.contains_key(name) {
            return value;
        }
        self.claim(name);
        self.known.insert(name.to_owned(), value.clone());
        self.opset = self.opset.max(element.since());
        self.initializers.push(Initializer::Weight(self.weights.len()));
        let (name, roles, shape) = (name.to_owned(), vec![role.to_owned()], shape.to_vec());
        self.weights.push(Weight { name, roles, form, element, shape });
        value
    }

    /// Says which tensors of the checkpoint were joined to one.
    ///
    /// # Panics
    /// When columns of such a tensor are asked for, which do not lie one after another: recipes are tested.
    pub(crate) fn joined(&mut self, joined: &BTreeMap<String, Vec<String>>) {
        for weight in &mut self.weights {
            if let Some(parts) = joined.get(&weight.roles[0]) {
                assert!(!weight.form.is_transposed(), "`{}` is made of rows", weight.name);
                weight.roles.clone_from(parts);
            }
        }
    }

    /// A constant list of 64-bit integers; the same list again is the same value.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let name = format!("/model/constants/INT64/[{}]", list(values));
        self.constant(name, Element::I64, &[values.len() as u64], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A constant 64-bit integer.
    pub fn int(&mut self, value: i64) -> Value {
        self.constant(format!("/model/constants/INT64/{value}"), Element::I64, &[], value.to_le_bytes().to_vec())
    }

    /// A constant number of a float type.
    ///
    /// # Panics
    /// When the type is not a float.
    pub fn float(&mut self, element: Element, value: f32) -> Value {
        let (kind, bytes) = match element {
            Element::F32 => ("FLOAT", value.to_le_bytes().to_vec()),
            Element::F16 => ("FLOAT16", f16_bits(value).to_le_bytes().to_vec()),
            Element::Bf16 => ("BFLOAT16", bf16_bits(value).to_le_bytes().to_vec()),
            other => panic!("{other:?} is not a float"),
        };
        self.constant(format!("/model/constants/{kind}/{value:?}"), element, &[], bytes)
    }

    /// Constant float32 numbers with a name and a shape.
    pub fn floats(&mut self, name: &str, values: &[f32], shape: &[u64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name.to_owned(), Element::F32, shape, bytes)
    }

    fn constant(&mut self, name: String, element: Element, shape: &[u64], bytes: Vec<u8>) -> Value {
        if let Some(known) = self.known.get(&name) {
            return known.clone();
        }
        self.claim(&name);
        let value = Value { name: name.clone(), element };
        self.known.insert(name.clone(), value.clone());
        self.initializers.push(Initializer::Constant(TensorProto {
            dims: shape.iter().map(|d| *d as i64).collect(),
            data_type: element.id(),
            name,
            raw_data: Some(bytes),
            ..TensorProto::default()
        }));
        value
    }

    /// The model, called `file_name`, with its weights in files beside it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when what is left is more than protobuf can say.
    ///
    /// # Panics
    /// When `data` is not the layout of this graph's weights.
    pub fn encode(&self, file_name: &str, data: &DataFiles) -> Result<Vec<u8>, Error> {
        assert_eq!(data.places().len(), self.weights.len(), "a layout of another graph");
        let initializer = |initializer: &Initializer| match initializer {
            Initializer::Constant(tensor) => tensor.clone(),
            Initializer::Weight(i) => {
                let (weight, place) = (&self.weights[*i], &data.places()[*i]);
                let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
                TensorProto {
                    dims: weight.shape.iter().map(|d| *d as i64).collect(),
                    data_type: weight.element.id(),
                    name: weight.name.clone(),
                    raw_data: None,
                    external_data: vec![
                        entry("location", DataFiles::file_name(file_name, place.file)),
                        entry("offset", place.range.start.to_string()),
                        entry("length", (place.range.end - place.range.start).to_string()),
                    ],
                    data_location: Some(1),
                }
            }
        };
        let mut opsets = vec![OperatorSetIdProto { domain: String::new(), version: self.opset }];
        if self.contrib {
            opsets.push(OperatorSetIdProto { domain: CONTRIB.to_owned(), version: 1 });
        }
        let model = ModelProto {
            ir_version: ir_version(self.opset),
            producer_name: "mlpack".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(GraphProto {
                node: self.nodes.clone(),
                name: "main_graph".to_owned(),
                initializer: self.initializers.iter().map(initializer).collect(),
                input: self.inputs.clone(),
                output: self.outputs.clone(),
            }),
            opset_import: opsets,
            metadata_props: Vec::new(),
        };
        fits(model.encoded_len() as u64)?;
        Ok(model.encode_to_vec())
    }

    fn claim(&mut self, name: &str) {
        let new = self.names.insert(name.to_owned());
        assert!(new, "two parts of a graph are called {name}");
    }

    /// Renames the output of a node everywhere; false when no node has it.
    fn rename(&mut self, from: &str, to: &str) -> bool {
        if !self.nodes.iter().any(|node| node.output.iter().any(|output| output == from)) {
            return false;
        }
        for name in self.nodes.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
            if name == from {
                to.clone_into(name);
            }
        }
        true
    }
}

/// Refuses what a message of protobuf cannot be as long as: readers count in 32 bits with a sign.
fn fits(byte_len: u64) -> Result<(), Error> {
    let limit = i32::MAX as u64;
    if byte_len > limit { Err(Error::TooLarge { byte_len, limit }) } else { Ok(()) }
}

/// The oldest IR version with this opset (onnx 1.23, `helper.VERSION_TABLE`).
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        _ => 12,
    }
}

fn list(values: &[i64]) -> String {
    values.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let attribute = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    match value {
        Attribute::Float(f) => AttributeProto { f: *f, kind: 1, ..attribute },
        Attribute::Int(i) => AttributeProto { i: *i, kind: 2, ..attribute },
        Attribute::Text(s) => AttributeProto { s: s.as_bytes().to_vec(), kind: 3, ..attribute },
        Attribute::Ints(ints) => AttributeProto { ints: ints.clone(), kind: 7, ..attribute },
    }
}

fn value_info(name: &str, element: Element, dims: &[Dim], fixed: &FixedDims) -> ValueInfoProto {
    let dim = |dim: &Dim| DimensionProto {
        value: Some(match dim {
            Dim::Size(size) => DimensionValue::Size(*size as i64),
            Dim::Name(name) => match fixed.size(name) {
                Some(size) => DimensionValue::Size(size as i64),
                None => DimensionValue::Name((*name).to_owned()),
            },
        }),
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: element.id(), shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn f16_bits(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

fn bf16_bits(value: f32) -> u16 {
    half::bf16::from_f32(value).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataFiles;

    #[test]
    fn a_graph_is_at_most_as_long_as_protobuf_can_say() {
        assert_eq!(fits((1 << 31) - 1), Ok(()));
        assert_eq!(fits(1 << 31), Err(Error::TooLarge { byte_len: 1 << 31, limit: (1 << 31) - 1 }));
    }

    #[test]
    fn weights_are_not_in_the_graph() {
        let mut graph = Graph::new(Profile::Std);
        let x = graph.input("x", Element::F32, &[1.into()]);
        let w = graph.weight("w", "proj.weight", Form::AsIs, Element::F32, &[1 << 20, 1 << 20]);
        let y = graph.node("MatMul", "/MatMul", &[&x, &w], Element::F32, &[]);
        graph.output("y", &y, &[1.into()]);
        let data = DataFiles::new(graph.weights(), u64::MAX);
        assert_eq!(data.byte_lens(), [1 << 42]);
        assert!(graph.encode("m.onnx", &data).unwrap().len() < 400);
    }
}
