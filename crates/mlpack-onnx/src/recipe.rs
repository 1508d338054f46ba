//! What all recipes share: norms, matrices and nonlinearities, in the operators of the profile.

use crate::element::Element;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::{Attribute, Blocks, Form, Profile, Value};
use crate::weights::Weights;
use mlpack_arch::{Activation, Norm};

/// How a graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphRequest {
    /// The operators.
    pub profile: Profile,
    /// The type of activations, caches and logits, and of weights that are not quantized.
    pub element: Element,
    /// How matrices are quantized.
    pub quantization: Option<Quantization>,
}

/// How matrices are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// The blocks of a row.
    pub blocks: Blocks,
    /// The `accuracy_level` of MatMulNBits: 0 is the runtime's choice, 4 allows it to quantize activations too.
    pub accuracy_level: i64,
}

/// A graph on its way, with what it is made from.
pub(crate) struct Recipe<M> {
    pub model: M,
    pub element: Element,
    pub quantization: Option<Quantization>,
    pub graph: Graph,
    pub weights: Weights,
}

impl<M> Recipe<M> {
    /// An empty graph.
    pub fn new(model: M, weights: Weights, request: &GraphRequest) -> Result<Recipe<M>, Error> {
        let GraphRequest { profile, element, quantization } = *request;
        if quantization.is_some() && profile == Profile::Portable {
            return Err(Error::Opset { profile, what: "matrices of 4 or 8 bits", needed: 21 });
        }
        Ok(Recipe { model, element, quantization, graph: Graph::new(profile), weights })
    }

    /// The graph, when every weight has its place.
    pub fn finish(self) -> Result<Graph, Error> {
        self.weights.finish()?;
        Ok(self.graph)
    }

    /// A norm over the last dimension, of a size, with the weights of `role`.
    pub fn normed(&mut self, path: &str, role: &str, x: &Value, (norm, size, epsilon): (Norm, u64, f32)) -> Value {
        let weight = self.vector(path, role, "weight", size);
        match norm {
            Norm::Rms => self.rms_norm(path, x, &weight, epsilon),
            Norm::Layer => {
                let has_bias = self.weights.has(&format!("{role}.bias"));
                let bias = if has_bias { self.vector(path, role, "bias", size) } else { Value::none() };
                let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
                let name = format!("{path}/LayerNorm");
                self.graph.node("LayerNormalization", &name, &[x, &weight, &bias], self.element, &attributes)
            }
        }
    }

    fn rms_norm(&mut self, path: &str, x: &Value, weight: &Value, epsilon: f32) -> Value {
        if self.graph.profile() == Profile::Std {
            let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
            return self.graph.node(
                "RMSNormalization",
                &format!("{path}/RMSNorm"),
                &[x, weight],
                self.element,
                &attributes,
            );
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
        let normed = self.cast(&format!("{path}/Narrow"), &normed, self.element);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&normed, weight], self.element, &[])
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
    pub fn vector(&mut self, path: &str, role: &str, suffix: &str, size: u64) -> Value {
        let role = format!("{role}.{suffix}");
        self.weights.take(&role, &[size]);
        self.graph.weight(&format!("{}.{suffix}", dotted(path)), &role, Form::AsIs, self.element, &[size])
    }

    /// `x @ W^T + b` with the matrix `[outputs, inputs]` of `role`, and the vector where the checkpoint has one.
    pub fn linear(&mut self, path: &str, role: &str, x: &Value, inputs: u64, outputs: u64) -> Value {
        let matrix = format!("{role}.weight");
        self.weights.take(&matrix, &[outputs, inputs]);
        let name = format!("{}.MatMul.weight", dotted(path));
        if let Some(quantization) = self.quantization {
            let parts = self.blocks(&name, &matrix, [outputs, inputs], quantization.blocks);
            let product = self.product_of_blocks(path, x, &parts, [inputs, outputs], quantization.blocks);
            return self.biased(path, role, product, outputs);
        }
        let weight = self.graph.weight(&name, &matrix, Form::Transposed, self.element, &[inputs, outputs]);
        let product = self.graph.node("MatMul", &format!("{path}/MatMul"), &[x, &weight], self.element, &[]);
        self.biased(path, role, product, outputs)
    }

    /// The matrix `[rows, columns]` of `role` in blocks: codes, scales, zero points.
    pub fn blocks(&mut self, name: &str, role: &str, [rows, columns]: [u64; 2], blocks: Blocks) -> [Value; 3] {
        let (bits, count) = (u64::from(blocks.bits), columns.div_ceil(blocks.size.into()));
        let shape = [rows, count, u64::from(blocks.size) * bits / 8];
        let codes = format!("{name}_Q{bits}");
        let codes = self.graph.weight(&codes, role, Form::Codes(blocks), Element::U8, &shape);
        let scales = format!("{name}_scales");
        let scales = self.graph.weight(&scales, role, Form::Scales(blocks), self.element, &[rows, count]);
        if blocks.symmetric {
            return [codes, scales, Value::none()];
        }
        let shape = [rows, (count * bits).div_ceil(8)];
        let zero_points = format!("{name}_zero_points");
        let zero_points = self.graph.weight(&zero_points, role, Form::ZeroPoints(blocks), Element::U8, &shape);
        [codes, scales, zero_points]
    }

    /// `x @ W^T` with a matrix of blocks.
    pub fn product_of_blocks(
        &mut self,
        path: &str,
        x: &Value,
        [codes, scales, zero_points]: &[Value; 3],
        [inputs, outputs]: [u64; 2],
        blocks: Blocks,
    ) -> Value {
        let mut attributes = vec![
            ("K", Attribute::Int(inputs as i64)),
            ("N", Attribute::Int(outputs as i64)),
            ("bits", Attribute::Int(blocks.bits.into())),
            ("block_size", Attribute::Int(blocks.size.into())),
        ];
        if let Some(quantization) = self.quantization.filter(|q| q.accuracy_level != 0) {
            attributes.push(("accuracy_level", Attribute::Int(quantization.accuracy_level)));
        }
        let name = format!("{path}/MatMul_Q{}", blocks.bits);
        self.graph.node("MatMulNBits", &name, &[x, codes, scales, zero_points], self.element, &attributes)
    }

    /// How rows that are looked up are quantized: not, where they are not whole blocks, which the operator needs.
    pub fn blocks_of_rows(&self, width: u64) -> Option<Blocks> {
        let blocks = self.quantization?.blocks;
        width.is_multiple_of(blocks.size.into()).then_some(blocks)
    }

    /// The rows of `role` that `ids` name, which the caller took.
    pub fn gathered(&mut self, path: &str, name: &str, role: &str, shape: [u64; 2], ids: &Value) -> Value {
        let Some(blocks) = self.blocks_of_rows(shape[1]) else {
            let table = self.graph.weight(name, role, Form::AsIs, self.element, &shape);
            return self.graph.node("Gather", &format!("{path}/Gather"), &[&table, ids], self.element, &[]);
        };
        let [codes, scales, zero_points] = self.blocks(name, role, shape, blocks);
        let codes = self.reshape(&format!("{path}/Reshape"), &codes, &[shape[0] as i64, -1]);
        let attributes = [
            ("bits", Attribute::Int(blocks.bits.into())),
            ("block_size", Attribute::Int(blocks.size.into())),
            ("gather_axis", Attribute::Int(0)),
            ("quantize_axis", Attribute::Int(1)),
        ];
        let (name, inputs) = (format!("{path}/Gather_Q{}", blocks.bits), [&codes, ids, &scales, &zero_points]);
        self.graph.node("GatherBlockQuantized", &name, &inputs, self.element, &attributes)
    }

    /// `x @ T^T` with a matrix as it lies there, `[outputs, inputs]`.
    pub fn by_rows(&mut self, path: &str, x: &Value, table: &Value, [inputs, outputs]: [u64; 2]) -> Value {
        let flat = self.reshape(&format!("{path}/Rows"), x, &[-1, inputs as i64]);
        let attributes = [("transB", Attribute::Int(1))];
        let flat = self.graph.node("Gemm", &format!("{path}/Gemm"), &[&flat, table], self.element, &attributes);
        let shape = self.graph.node("Shape", &format!("{path}/Shape"), &[x], Element::I64, &[]);
        let outer = self.slice(&format!("{path}/Outer"), &shape, 0, 2, 0);
        let width = self.graph.ints(&[outputs as i64]);
        let axis = [("axis", Attribute::Int(0))];
        let shape = self.graph.node("Concat", &format!("{path}/Concat"), &[&outer, &width], Element::I64, &axis);
        self.graph.node("Reshape", &format!("{path}/Reshape"), &[&flat, &shape], self.element, &[])
    }

    /// Adds the vector of `role`, where the checkpoint has one.
    pub fn biased(&mut self, path: &str, role: &str, x: Value, size: u64) -> Value {
        if !self.weights.has(&format!("{role}.bias")) {
            return x;
        }
        let bias = self.vector(path, role, "bias", size);
        self.graph.node("Add", &format!("{path}/Add"), &[&x, &bias], self.element, &[])
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
fn dotted(path: &str) -> String {
    path.trim_start_matches('/').replace('/', ".")
}
