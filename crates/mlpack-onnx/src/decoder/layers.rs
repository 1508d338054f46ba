//! Norms, matrices and nonlinearities, in the operators of the profile.

use super::Recipe;
use crate::element::Element;
use crate::graph::{Attribute, Blocks, Form, Profile, Value};
use mlpack_arch::{Activation, Mlp, Norm};

impl Recipe<'_> {
    /// A norm over the last dimension, with the weights of `role`.
    pub(super) fn norm(&mut self, path: &str, role: &str, x: &Value) -> Value {
        self.norm_of(path, role, x, self.decoder.hidden)
    }

    /// A norm over the last dimension of a given size.
    pub(super) fn norm_of(&mut self, path: &str, role: &str, x: &Value, size: u64) -> Value {
        let epsilon = self.decoder.epsilon;
        match self.decoder.norm {
            Norm::Rms => {
                let weight = self.vector(path, role, "weight", size);
                self.rms_norm(path, x, &weight, epsilon)
            }
            Norm::Layer => {
                let weight = self.vector(path, role, "weight", size);
                let bias = if self.weights.has(&format!("{role}.bias")) {
                    self.vector(path, role, "bias", size)
                } else {
                    Value::none()
                };
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

    fn vector(&mut self, path: &str, role: &str, suffix: &str, size: u64) -> Value {
        let role = format!("{role}.{suffix}");
        self.weights.take(&role, &[size]);
        self.graph.weight(&format!("{}.{suffix}", dotted(path)), &role, Form::AsIs, self.element, &[size])
    }

    /// `x @ W^T + b` with the matrix `[outputs, inputs]` of `role`, and the vector where the checkpoint has one.
    pub(super) fn linear(&mut self, path: &str, role: &str, x: &Value, inputs: u64, outputs: u64) -> Value {
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
    pub(super) fn blocks(&mut self, name: &str, role: &str, [rows, columns]: [u64; 2], blocks: Blocks) -> [Value; 3] {
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
    pub(super) fn product_of_blocks(
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

    /// Adds the vector of `role`, where the checkpoint has one.
    pub(super) fn biased(&mut self, path: &str, role: &str, x: Value, size: u64) -> Value {
        if !self.weights.has(&format!("{role}.bias")) {
            return x;
        }
        let bias = self.vector(path, role, "bias", size);
        self.graph.node("Add", &format!("{path}/Add"), &[&x, &bias], self.element, &[])
    }

    /// The feed-forward network.
    pub(super) fn mlp(&mut self, path: &str, role: &str, x: &Value) -> Value {
        let (hidden, width) = (self.decoder.hidden, self.decoder.feed_forward);
        let inner = match self.decoder.mlp {
            Mlp::Plain => {
                let up = self.linear(&format!("{path}/up_proj"), &format!("{role}.ffn_up"), x, hidden, width);
                self.activation(&format!("{path}/act"), &up)
            }
            Mlp::Gated => {
                let gate = self.linear(&format!("{path}/gate_proj"), &format!("{role}.ffn_gate"), x, hidden, width);
                let up = self.linear(&format!("{path}/up_proj"), &format!("{role}.ffn_up"), x, hidden, width);
                self.gated(path, &gate, &up)
            }
            Mlp::GatedFused => {
                let both =
                    self.linear(&format!("{path}/gate_up_proj"), &format!("{role}.ffn_up"), x, hidden, 2 * width);
                let gate = self.slice(&format!("{path}/Gate"), &both, 0, width as i64, 2);
                let up = self.slice(&format!("{path}/Up"), &both, width as i64, 2 * width as i64, 2);
                self.gated(path, &gate, &up)
            }
        };
        self.linear(&format!("{path}/down_proj"), &format!("{role}.ffn_down"), &inner, width, hidden)
    }

    fn gated(&mut self, path: &str, gate: &Value, up: &Value) -> Value {
        let gate = self.activation(&format!("{path}/act"), gate);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&gate, up], self.element, &[])
    }

    fn activation(&mut self, path: &str, x: &Value) -> Value {
        let e = self.element;
        let newer = self.graph.profile() != Profile::Portable;
        match self.decoder.activation {
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
    pub(super) fn softcap(&mut self, path: &str, x: &Value, cap: f64) -> Value {
        let constant = self.graph.float(x.element(), cap as f32);
        let scaled = self.graph.node("Div", &format!("{path}/Div"), &[x, &constant], x.element(), &[]);
        let tanh = self.graph.node("Tanh", &format!("{path}/Tanh"), &[&scaled], x.element(), &[]);
        self.graph.node("Mul", &format!("{path}/Mul"), &[&tanh, &constant], x.element(), &[])
    }

    /// `x * factor`
    pub(super) fn scaled(&mut self, name: &str, x: &Value, factor: f64) -> Value {
        let factor = self.graph.float(x.element(), factor as f32);
        self.graph.node("Mul", name, &[x, &factor], x.element(), &[])
    }

    /// `x` in another type.
    pub(super) fn cast(&mut self, name: &str, x: &Value, element: Element) -> Value {
        if x.element() == element {
            return x.clone();
        }
        self.graph.node("Cast", name, &[x], element, &[("to", Attribute::Int(element.id().into()))])
    }

    /// `start..end` of one dimension.
    pub(super) fn slice(&mut self, name: &str, x: &Value, start: i64, end: i64, axis: i64) -> Value {
        let [start, end, axis] = [start, end, axis].map(|n| self.graph.ints(&[n]));
        self.graph.node("Slice", name, &[x, &start, &end, &axis], x.element(), &[])
    }

    pub(super) fn reshape(&mut self, name: &str, x: &Value, shape: &[i64]) -> Value {
        let shape = self.graph.ints(shape);
        self.graph.node("Reshape", name, &[x, &shape], x.element(), &[])
    }

    pub(super) fn transpose(&mut self, name: &str, x: &Value, order: [i64; 4]) -> Value {
        self.graph.node("Transpose", name, &[x], x.element(), &[("perm", Attribute::Ints(order.to_vec()))])
    }

    pub(super) fn unsqueeze(&mut self, name: &str, x: &Value, axes: &[i64]) -> Value {
        let axes = self.graph.ints(axes);
        self.graph.node("Unsqueeze", name, &[x, &axes], x.element(), &[])
    }
}

/// The name of a weight from that of its node: `/model/layers.0/mlp` is `model.layers.0.mlp`.
fn dotted(path: &str) -> String {
    path.trim_start_matches('/').replace('/', ".")
}
