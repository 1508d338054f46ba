//! What all recipes share: norms, matrices and nonlinearities, in the operators of the profile.

use crate::element::Element;
use crate::error::Error;
use crate::graph::{Attribute, Blocks, FixedDims, Form, Graph, Profile, Value};
use crate::weights::Weights;
use mlpack_arch::{Activation, Norm};
use std::collections::BTreeMap;

/// How a graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphRequest {
    /// The operators.
    pub profile: Profile,
    /// The type of activations, caches and logits, and of weights that are not quantized.
    pub element: Element,
    /// How matrices are quantized.
    pub quantization: Option<Quantization>,
    /// Sizes of inputs that are known.
    pub fixed: FixedDims,
}

/// How matrices are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// What shares a scale, and which operators read it.
    pub scheme: Scheme,
    /// The blocks of a row or a column.
    pub blocks: Blocks,
    /// The `accuracy_level` of MatMulNBits: 0 is the runtime's choice, 4 allows it to quantize activations too.
    pub accuracy_level: i64,
}

/// What shares a scale, and which operators read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Blocks of rows, for ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized`.
    Blocks,
    /// Standard operators: `DequantizeLinear` before the product, of columns (8 bits) or blocks of columns (4 bits).
    Qdq,
    /// Standard operators, in integers: columns of 8 bits, and activations quantized while the graph runs.
    Dynamic,
}

impl Scheme {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Blocks => "blocks",
            Scheme::Qdq => "qdq",
            Scheme::Dynamic => "dynamic",
        }
    }
}

/// A graph on its way, with what it is made from.
pub(crate) struct Recipe<M> {
    pub model: M,
    pub element: Element,
    pub quantization: Option<Quantization>,
    pub graph: Graph,
    pub weights: Weights,
    /// What was made of activations, by name.
    pub dynamic: BTreeMap<String, [Value; 3]>,
}

impl<M> Recipe<M> {
    /// An empty graph.
    pub fn new(model: M, weights: Weights, request: &GraphRequest) -> Result<Recipe<M>, Error> {
        let GraphRequest { profile, element, quantization, fixed } = *request;
        if let Some(Quantization { scheme, blocks, .. }) = quantization {
            if scheme == Scheme::Blocks && profile == Profile::Portable {
                return Err(Error::Opset { profile, what: "blocks of 4 or 8 bits", needed: 21 });
            }
            if scheme == Scheme::Qdq && blocks.bits == 4 && profile.max_opset() < 21 {
                return Err(Error::Opset { profile, what: "matrices of 4 bits", needed: 21 });
            }
            if scheme == Scheme::Dynamic && blocks.bits == 4 {
                return Err(Error::NotInIntegers);
            }
        }
        let mut graph = Graph::new(profile);
        graph.fix(fixed);
        Ok(Recipe { model, element, quantization, graph, weights, dynamic: BTreeMap::new() })
    }

    /// The graph, when every weight has its place.
    pub fn finish(mut self) -> Result<Graph, Error> {
        self.graph.joined(&self.weights.finish()?);
        Ok(self.graph)
    }

    /// A norm over the last dimension, of a size, with the weights of `role`.
    pub fn normed(&mut self, path: &str, role: &str, x: &Value, (norm, size, epsilon): (Norm, u64, f32)) -> Value {
        let element = self.element_of(&[&format!("{role}.weight"), &format!("{role}.bias")]);
        let x = &self.cast(&format!("{path}/IslandIn"), x, element);
        let weight = self.vector(path, role, "weight", size, element);
        let normed = match norm {
            Norm::Rms => self.rms_norm(path, x, &weight, epsilon),
            Norm::Layer => {
                let has_bias = self.weights.has(&format!("{role}.bias"));
                let bias = if has_bias { self.vector(path, role, "bias", size, element) } else { Value::none() };
                let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
                let name = format!("{path}/LayerNorm");
                self.graph.node("LayerNormalization", &name, &[x, &weight, &bias], element, &attributes)
            }
        };
        self.cast(&format!("{path}/IslandOut"), &normed, self.element)
    }

    /// The type of tensors that belong together: that of the graph, or float32 where one of them is kept in it.
    pub fn element_of(&self, roles: &[&str]) -> Element {
        if roles.iter().any(|role| self.weights.is_wide(role)) { Element::F32 } else { self.element }
    }

    fn rms_norm(&mut self, path: &str, x: &Value, weight: &Value, epsilon: f32) -> Value {
        let element = x.element();
        if self.graph.profile() == Profile::Std {
            let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
            return self.graph.node("RMSNormalization", &format!("{path}/RMSNorm"), &[x, weight], element, &attributes);
        }
        // Squares of float16 overflow, so the mean is taken in float32.
        let wide = self.cast(&format!("{path}/Wide"), x, Element::F32);
        // In this form, which ONNX Runtime knows as a norm.
        let two = self.graph.float(Element::F32, 2.0);
        let square = self.graph.node("Pow", &format!("{path}/Square"), &[&wide, &two], Element::F32, &[]);
        let mean = self.mean(&format!("{path}/Mean"), &square);
        let epsilon = self.graph.float(Element::F32, epsilon);
        let sum = self.graph.node("Add", &format!("{path}/Add"), &[&mean, &epsilon], Element::F32, &[]);
        let root = self.graph.node("Sqrt", &format!("{path}/Sqrt"), &[&sum], Element::F32, &[]);
        let normed = self.graph.node("Div", &format!("{path}/Div"), &[&wide, &root], Element::F32, &[]);
        let normed = self.cast(&format!("{path}/Narrow"), &normed, element);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&normed, weight], element, &[])
    }

    /// The mean over the last dimension, which stays. The axes became an input in opset 18.
    fn mean(&mut self, name: &str, x: &Value) -> Value {
        if self.graph.profile() == Profile::Portable {
            let attributes = [("axes", Attribute::Ints(vec![-1])), ("keepdims", Attribute::Int(1))];
            self.graph.node("ReduceMean", name, &[x], x.element(), &attributes)
        } else {
            let axes = self.graph.ints(&[-1]);
            self.graph.node("ReduceMean", name, &[x, &axes], x.element(), &[("keepdims", Attribute::Int(1))])
        }
    }

    /// A vector of `role`.
    fn vector(&mut self, path: &str, role: &str, suffix: &str, size: u64, element: Element) -> Value {
        let role = format!("{role}.{suffix}");
        self.weights.take(&role, &[size]);
        self.graph.weight(&format!("{}.{suffix}", dotted(path)), &role, Form::AsIs, element, &[size])
    }

    /// `x @ W^T + b` with the matrix `[outputs, inputs]` of `role`, and the vector where the checkpoint has one.
    pub fn linear(&mut self, path: &str, role: &str, x: &Value, inputs: u64, outputs: u64) -> Value {
        let matrix = format!("{role}.weight");
        self.weights.take(&matrix, &[outputs, inputs]);
        let name = format!("{}.MatMul.weight", dotted(path));
        let product = self.product(path, &name, &matrix, x, [inputs, outputs]);
        self.biased(path, role, product, outputs)
    }

    /// Several linear maps of the same values, each with its path, role and number of outputs. They are one where the checkpoint has
    /// them as one, `whole`, or where joining them leaves their rows as they are: one product is faster than several.
    pub fn linears<const N: usize>(
        &mut self,
        (path, whole): (&str, &str),
        is_stored_as_one: bool,
        parts: [(String, String, u64); N],
        x: &Value,
        inputs: u64,
    ) -> [Value; N] {
        let sizes = parts.each_ref().map(|(.., outputs)| *outputs);
        let has_own_rows = self.quantization.is_some_and(|q| q.scheme == Scheme::Blocks);
        let roles = parts.each_ref().map(|(_, role, outputs)| (role.as_str(), *outputs));
        let is_one = is_stored_as_one || (has_own_rows && self.weights.join(whole, &roles, inputs));
        if !is_one {
            return parts.map(|(path, role, outputs)| self.linear(&path, &role, x, inputs, outputs));
        }
        let all = self.linear(path, whole, x, inputs, sizes.iter().sum());
        let sizes = self.graph.ints(&sizes.map(|size| size as i64));
        let axis = [("axis", Attribute::Int(-1))];
        self.graph.node_with("Split", &format!("{path}/Split"), &[&all, &sizes], [all.element(); N], &axis)
    }

    /// `x @ W^T` with the matrix `[outputs, inputs]` of `role`, which the caller took, in the form that is asked for.
    pub fn product(&mut self, path: &str, name: &str, role: &str, x: &Value, shape: [u64; 2]) -> Value {
        let [inputs, outputs] = shape;
        match self.quantization {
            Some(Quantization { scheme: Scheme::Blocks, blocks, .. }) => {
                let parts = self.blocks(name, role, [outputs, inputs], blocks);
                self.product_of_blocks(path, x, &parts, shape, blocks)
            }
            Some(Quantization { scheme: Scheme::Dynamic, .. }) => self.product_of_integers(path, name, role, x, shape),
            // Four bits of two rows would share a byte where rows are of odd length.
            Some(Quantization { blocks, .. }) if blocks.bits == 8 || outputs.is_multiple_of(2) => {
                let weight = self.dequantized(name, role, shape, blocks);
                self.graph.node("MatMul", &format!("{path}/MatMul"), &[x, &weight], self.element, &[])
            }
            _ => self.product_of_numbers(path, name, role, x, shape),
        }
    }

    /// The same with the matrix as numbers.
    pub fn product_of_numbers(&mut self, path: &str, name: &str, role: &str, x: &Value, shape: [u64; 2]) -> Value {
        let element = self.element_of(&[role]);
        let x = &self.cast(&format!("{path}/IslandIn"), x, element);
        let weight = self.graph.weight(name, role, Form::Transposed, element, &shape);
        let y = self.graph.node("MatMul", &format!("{path}/MatMul"), &[x, &weight], element, &[]);
        self.cast(&format!("{path}/IslandOut"), &y, self.element)
    }

    /// `x @ T^T` with a matrix as it lies there, `[outputs, inputs]`.
    pub fn by_rows(&mut self, path: &str, x: &Value, table: &Value, [inputs, outputs]: [u64; 2]) -> Value {
        let element = table.element();
        let x = &self.cast(&format!("{path}/IslandIn"), x, element);
        let flat = self.reshape(&format!("{path}/Rows"), x, &[-1, inputs as i64]);
        let attributes = [("transB", Attribute::Int(1))];
        let flat = self.graph.node("Gemm", &format!("{path}/Gemm"), &[&flat, table], element, &attributes);
        let shape = self.graph.node("Shape", &format!("{path}/Shape"), &[x], Element::I64, &[]);
        let outer = self.slice(&format!("{path}/Outer"), &shape, 0, 2, 0);
        let width = self.graph.ints(&[outputs as i64]);
        let axis = [("axis", Attribute::Int(0))];
        let shape = self.graph.node("Concat", &format!("{path}/Concat"), &[&outer, &width], Element::I64, &axis);
        let y = self.graph.node("Reshape", &format!("{path}/Reshape"), &[&flat, &shape], element, &[]);
        self.cast(&format!("{path}/IslandOut"), &y, self.element)
    }

    /// Adds the vector of `role`, where the checkpoint has one.
    pub fn biased(&mut self, path: &str, role: &str, x: Value, size: u64) -> Value {
        if !self.weights.has(&format!("{role}.bias")) {
            return x;
        }
        let element = self.element_of(&[&format!("{role}.bias")]);
        let x = self.cast(&format!("{path}/BiasIn"), &x, element);
        let bias = self.vector(path, role, "bias", size, element);
        let sum = self.graph.node("Add", &format!("{path}/Add"), &[&x, &bias], element, &[]);
        self.cast(&format!("{path}/BiasOut"), &sum, self.element)
    }

    /// A nonlinearity.
    pub fn activation(&mut self, path: &str, x: &Value, activation: Activation) -> Value {
        let e = self.element;
        let newer = self.graph.profile() != Profile::Portable;
        match activation {
            Activation::Silu => {
                let sigmoid = self.graph.node("Sigmoid", &format!("{path}/Sigmoid"), &[x], e, &[]);
                self.graph.node("Mul", &format!("{path}/Mul"), &[x, &sigmoid], e, &[])
            }
            Activation::Relu => self.graph.node("Relu", &format!("{path}/Relu"), &[x], e, &[]),
            Activation::Gelu if newer => self.graph.node("Gelu", &format!("{path}/Gelu"), &[x], e, &[]),
            Activation::GeluTanh if newer => {
                let attributes = [("approximate", Attribute::Text("tanh"))];
                self.graph.node("Gelu", &format!("{path}/Gelu"), &[x], e, &attributes)
            }
            Activation::Gelu => {
                let scaled = self.scaled(&format!("{path}/Scale"), x, std::f64::consts::FRAC_1_SQRT_2);
                let erf = self.graph.node("Erf", &format!("{path}/Erf"), &[&scaled], e, &[]);
                self.half_of_one_plus(path, x, &erf)
            }
            Activation::GeluTanh => {
                let square = self.graph.node("Mul", &format!("{path}/Square"), &[x, x], e, &[]);
                let cubic = self.scaled(&format!("{path}/Cubic"), &square, 0.044715);
                let one = self.graph.float(e, 1.0);
                let sum = self.graph.node("Add", &format!("{path}/Inner"), &[&cubic, &one], e, &[]);
                let inner = self.graph.node("Mul", &format!("{path}/Product"), &[x, &sum], e, &[]);
                let inner = self.scaled(&format!("{path}/Scale"), &inner, (2.0 / std::f64::consts::PI).sqrt());
                let tanh = self.graph.node("Tanh", &format!("{path}/Tanh"), &[&inner], e, &[]);
                self.half_of_one_plus(path, x, &tanh)
            }
        }
    }

    /// `x / 2 * (1 + y)`
    fn half_of_one_plus(&mut self, path: &str, x: &Value, y: &Value) -> Value {
        let one = self.graph.float(self.element, 1.0);
        let sum = self.graph.node("Add", &format!("{path}/Add"), &[y, &one], self.element, &[]);
        let half = self.scaled(&format!("{path}/Half"), x, 0.5);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&half, &sum], self.element, &[])
    }

    /// `c * tanh(x / c)`
    pub fn softcap(&mut self, path: &str, x: &Value, cap: f64) -> Value {
        let constant = self.graph.float(x.element(), cap as f32);
        let scaled = self.graph.node("Div", &format!("{path}/Div"), &[x, &constant], x.element(), &[]);
        let tanh = self.graph.node("Tanh", &format!("{path}/Tanh"), &[&scaled], x.element(), &[]);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&tanh, &constant], x.element(), &[])
    }

    /// `x * factor`
    pub fn scaled(&mut self, name: &str, x: &Value, factor: f64) -> Value {
        let factor = self.graph.float(x.element(), factor as f32);
        self.graph.node("Mul", name, &[x, &factor], x.element(), &[])
    }

    /// `x` in another type.
    pub fn cast(&mut self, name: &str, x: &Value, element: Element) -> Value {
        if x.element() == element {
            return x.clone();
        }
        self.graph.node("Cast", name, &[x], element, &[("to", Attribute::Int(element.id().into()))])
    }

    /// `start..end` of one dimension.
    pub fn slice(&mut self, name: &str, x: &Value, start: i64, end: i64, axis: i64) -> Value {
        let [start, end, axis] = [start, end, axis].map(|n| self.graph.ints(&[n]));
        self.graph.node("Slice", name, &[x, &start, &end, &axis], x.element(), &[])
    }

    pub fn reshape(&mut self, name: &str, x: &Value, shape: &[i64]) -> Value {
        let shape = self.graph.ints(shape);
        self.graph.node("Reshape", name, &[x, &shape], x.element(), &[])
    }

    pub fn transpose(&mut self, name: &str, x: &Value, order: [i64; 4]) -> Value {
        self.graph.node("Transpose", name, &[x], x.element(), &[("perm", Attribute::Ints(order.to_vec()))])
    }

    pub fn unsqueeze(&mut self, name: &str, x: &Value, axes: &[i64]) -> Value {
        let axes = self.graph.ints(axes);
        self.graph.node("Unsqueeze", name, &[x, &axes], x.element(), &[])
    }
}

/// The name of a weight from that of its node: `/model/layers.0/mlp` is `model.layers.0.mlp`.
pub(crate) fn dotted(path: &str) -> String {
    path.trim_start_matches('/').replace('/', ".")
}
