//! Products and look-ups with integers: blocks in ONNX Runtime's operators, columns and tables in standard ones.
//!
//! ```text
//!   blocks    x ── MatMulNBits(codes, scales) ── y                       ids ── GatherBlockQuantized ── rows
//!   qdq       x ── MatMul(DequantizeLinear(codes, scales)) ── y          ids ── Gather ── DequantizeLinear ── rows
//!   dynamic   x ── DynamicQuantizeLinear ── MatMulInteger ── Cast ── Mul ── y       the same
//! ```

use crate::element::Element;
use crate::graph::{Attribute, Blocks, Form, Value};
use crate::recipe::{Recipe, Scheme};

impl<M> Recipe<M> {
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

    /// The blocks of rows that are looked up: none, where they are not whole blocks, which the operator needs.
    pub fn blocks_of_rows(&self, width: u64) -> Option<Blocks> {
        let blocks = self.quantization.filter(|q| q.scheme == Scheme::Blocks)?.blocks;
        width.is_multiple_of(blocks.size.into()).then_some(blocks)
    }

    /// The rows of `role` that `ids` name, which the caller took.
    pub fn gathered(&mut self, path: &str, name: &str, role: &str, shape: [u64; 2], ids: &Value) -> Value {
        if self.is_in_standard_operators() {
            return self.gathered_bytes(path, name, role, shape, ids);
        }
        let Some(blocks) = self.blocks_of_rows(shape[1]) else {
            return self.rows_of(path, name, role, shape, ids);
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

    /// Whether matrices are quantized for standard operators.
    pub fn is_in_standard_operators(&self) -> bool {
        self.quantization.is_some_and(|q| q.scheme != Scheme::Blocks)
    }

    /// The rows of a small table that `ids` name: blocks leave it as it is.
    pub fn looked_up(&mut self, path: &str, name: &str, role: &str, shape: [u64; 2], ids: &Value) -> Value {
        if self.is_in_standard_operators() {
            return self.gathered_bytes(path, name, role, shape, ids);
        }
        self.rows_of(path, name, role, shape, ids)
    }

    /// The rows of a table of numbers.
    pub fn rows_of(&mut self, path: &str, name: &str, role: &str, shape: [u64; 2], ids: &Value) -> Value {
        let table = self.table_of(name, role, shape);
        let rows = self.graph.node("Gather", &format!("{path}/Gather"), &[&table, ids], table.element(), &[]);
        self.cast(&format!("{path}/IslandOut"), &rows, self.element)
    }

    /// A tensor as numbers, which the caller took.
    pub fn table_of(&mut self, name: &str, role: &str, shape: [u64; 2]) -> Value {
        let element = self.element_of(&[role]);
        self.graph.weight(name, role, Form::AsIs, element, &shape)
    }

    /// The matrix `[inputs, outputs]`, dequantized when the graph runs.
    pub fn dequantized(&mut self, name: &str, role: &str, [inputs, outputs]: [u64; 2], blocks: Blocks) -> Value {
        let node = format!("/{}/DequantizeLinear", name.replace('.', "/"));
        if blocks.bits == 8 {
            let [codes, scales, zero_points] = self.columns(name, role, [inputs, outputs]);
            let axis = [("axis", Attribute::Int(1))];
            return self.graph.node("DequantizeLinear", &node, &[&codes, &scales, &zero_points], self.element, &axis);
        }
        let element = if blocks.symmetric { Element::I4 } else { Element::U4 };
        let count = [inputs.div_ceil(blocks.size.into()), outputs];
        let (codes, scales) = (format!("{name}_Q4"), format!("{name}_scales"));
        let codes = self.graph.weight(&codes, role, Form::ColumnBlockCodes(blocks), element, &[inputs, outputs]);
        let scales = self.graph.weight(&scales, role, Form::ColumnBlockScales(blocks), self.element, &count);
        let zero_points = if blocks.symmetric {
            Value::none()
        } else {
            let name = format!("{name}_zero_points");
            self.graph.weight(&name, role, Form::ColumnBlockZeroPoints(blocks), element, &count)
        };
        let attributes = [("axis", Attribute::Int(0)), ("block_size", Attribute::Int(blocks.size.into()))];
        self.graph.node("DequantizeLinear", &node, &[&codes, &scales, &zero_points], self.element, &attributes)
    }

    /// The matrix `[inputs, outputs]` as signed bytes: codes, scales, zero points, called as `quantize_dynamic` calls them.
    fn columns(&mut self, name: &str, role: &str, [inputs, outputs]: [u64; 2]) -> [Value; 3] {
        let codes = format!("{name}_quantized");
        let codes = self.graph.weight(&codes, role, Form::ColumnCodes, Element::I8, &[inputs, outputs]);
        let scales = self.graph.weight(&format!("{name}_scale"), role, Form::ColumnScales, self.element, &[outputs]);
        let zeros = format!("{name}_zero_point");
        let zeros = self.graph.weight(&zeros, role, Form::ColumnZeroPoints, Element::I8, &[outputs]);
        [codes, scales, zeros]
    }

    /// `x @ W^T` in integers.
    pub fn product_of_integers(&mut self, path: &str, name: &str, role: &str, x: &Value, shape: [u64; 2]) -> Value {
        let e = self.element;
        let weight = self.columns(name, role, shape);
        let key = x.name().to_owned();
        let parts = match self.dynamic.get(&key) {
            Some(parts) => parts.clone(),
            None => {
                let elements = [Element::U8, e, Element::U8];
                let name = format!("{path}/DynamicQuantizeLinear");
                let parts = self.graph.node_with("DynamicQuantizeLinear", &name, &[x], elements, &[]);
                self.dynamic.insert(key, parts.clone());
                parts
            }
        };
        let inputs = [&parts[0], &weight[0], &parts[2], &weight[2]];
        let product = self.graph.node("MatMulInteger", &format!("{path}/MatMulInteger"), &inputs, Element::I32, &[]);
        let product = self.cast(&format!("{path}/Cast"), &product, e);
        let scales = self.graph.node("Mul", &format!("{path}/Scales"), &[&parts[1], &weight[1]], e, &[]);
        self.graph.node("Mul", &format!("{path}/Scaled"), &[&product, &scales], e, &[])
    }

    /// The rows of `role` that `ids` name, from a table of bytes.
    fn gathered_bytes(&mut self, path: &str, name: &str, role: &str, shape: [u64; 2], ids: &Value) -> Value {
        let codes = self.graph.weight(&format!("{name}_quantized"), role, Form::TableCodes, Element::U8, &shape);
        let scale = self.graph.weight(&format!("{name}_scale"), role, Form::TableScale, self.element, &[]);
        let zero = self.graph.weight(&format!("{name}_zero_point"), role, Form::TableZeroPoint, Element::U8, &[]);
        let rows = self.graph.node("Gather", &format!("{path}/Gather"), &[&codes, ids], Element::U8, &[]);
        let inputs = [&rows, &scale, &zero];
        self.graph.node("DequantizeLinear", &format!("{path}/DequantizeLinear"), &inputs, self.element, &[])
    }
}
