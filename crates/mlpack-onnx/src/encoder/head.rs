//! What comes after the last layer: a head, or the pooling of a sentence embedder.

use super::Inputs;
use crate::element::Element;
use crate::graph::{Dim, Form, Value};
use crate::recipe::Recipe;
use mlpack_arch::{AfterPooling, Encoder, Head, HeadActivation, Pooling, PoolingMode, Task};

impl Recipe<&Encoder> {
    /// The outputs of the task.
    pub(super) fn outputs(&mut self, x: Value, inputs: &Inputs) {
        let e = self.model;
        let batch: Dim = "batch_size".into();
        let sequence: Dim = "sequence_length".into();
        match &e.task {
            Task::Features => {
                if let Some(pooling) = &e.pooling {
                    let (vector, width) = self.embedding(pooling, &x, inputs);
                    self.graph.output("last_hidden_state", &x, &[batch.clone(), sequence, e.hidden.into()]);
                    self.graph.output("sentence_embedding", &vector, &[batch, width.into()]);
                } else {
                    self.graph.output("last_hidden_state", &x, &[batch, sequence, e.hidden.into()]);
                }
            }
            Task::FillMask(head) => {
                let x = self.transformed(head, &x);
                let logits = self.words(head, &x);
                self.graph.output("logits", &logits, &[batch, sequence, e.vocabulary.into()]);
            }
            Task::ClassifyTokens(head) => {
                let (logits, labels) = self.labels(head, &x);
                self.graph.output("logits", &logits, &[batch, sequence, labels.into()]);
            }
            Task::ClassifyText(head, mode) => {
                let vector = self.pooled("/head/pooling", &x, inputs, *mode);
                let (logits, labels) = self.labels(head, &vector);
                self.graph.output("logits", &logits, &[batch, labels.into()]);
            }
            Task::AnswerQuestion(head) => {
                let (logits, _) = self.labels(head, &x);
                for (i, name) in ["start_logits", "end_logits"].into_iter().enumerate() {
                    let place = self.graph.int(i as i64);
                    let axis = [("axis", crate::Attribute::Int(2))];
                    let inputs = [&logits, &place];
                    let part = self.graph.node("Gather", &format!("/head/{name}/Gather"), &inputs, self.element, &axis);
                    self.graph.output(name, &part, &[batch.clone(), sequence.clone()]);
                }
            }
        }
    }

    /// One vector for each text, `[batch, width]`, and its width.
    fn embedding(&mut self, pooling: &Pooling, x: &Value, inputs: &Inputs) -> (Value, u64) {
        let mut vector = self.pooled("/model/pooling", x, inputs, pooling.mode);
        let mut width = self.model.hidden;
        for (i, step) in pooling.after.iter().enumerate() {
            vector = match step {
                // The first has had this name since there was one.
                AfterPooling::Normalize if !pooling.after[..i].contains(&AfterPooling::Normalize) => {
                    self.normalized("/model/normalize", &vector)
                }
                AfterPooling::Normalize => self.normalized(&format!("/model/normalize_{i}"), &vector),
                AfterPooling::Dense(dense) => {
                    let path = format!("/model/dense_{i}");
                    let y = self.linear(&path, &dense.name, &vector, width, dense.outputs);
                    width = dense.outputs;
                    match dense.activation {
                        Some(activation) => self.head_activation(&format!("{path}/act"), &y, activation),
                        None => y,
                    }
                }
            };
        }
        (vector, width)
    }

    fn head_activation(&mut self, path: &str, x: &Value, activation: HeadActivation) -> Value {
        match activation {
            HeadActivation::Tanh => self.graph.node("Tanh", &format!("{path}/Tanh"), &[x], self.element, &[]),
            HeadActivation::Of(activation) => self.activation(path, x, activation),
        }
    }

    /// One vector for each text, `[batch, hidden]`.
    fn pooled(&mut self, path: &str, x: &Value, inputs: &Inputs, mode: PoolingMode) -> Value {
        let e = self.element;
        if mode == PoolingMode::First {
            let first = self.graph.int(0);
            let axis = [("axis", crate::Attribute::Int(1))];
            return self.graph.node("Gather", &format!("{path}/First"), &[x, &first], e, &axis);
        }
        // In float32: a sum of float16 numbers may overflow.
        let wide = self.cast(&format!("{path}/Wide"), x, Element::F32);
        let mask = self.unsqueeze(&format!("{path}/mask/Unsqueeze"), &inputs.attended, &[2]);
        let pooled = if mode == PoolingMode::Mean {
            let mask = self.cast(&format!("{path}/mask/Cast"), &mask, Element::F32);
            let masked = self.graph.node("Mul", &format!("{path}/Mul"), &[&wide, &mask], Element::F32, &[]);
            let sum = self.reduced("ReduceSum", &format!("{path}/Sum"), &masked, 1);
            let count = self.reduced("ReduceSum", &format!("{path}/Count"), &mask, 1);
            let least = self.graph.float(Element::F32, 1e-9);
            let count = self.graph.node("Max", &format!("{path}/Max"), &[&count, &least], Element::F32, &[]);
            self.graph.node("Div", &format!("{path}/Div"), &[&sum, &count], Element::F32, &[])
        } else {
            let mask = self.cast(&format!("{path}/mask/Cast"), &mask, Element::Bool);
            let lowest = self.graph.float(Element::F32, -1e9);
            let text = self.graph.node("Where", &format!("{path}/Where"), &[&mask, &wide, &lowest], Element::F32, &[]);
            self.reduced("ReduceMax", &format!("{path}/Max"), &text, 1)
        };
        let pooled = self.reshape(&format!("{path}/Reshape"), &pooled, &[0, -1]);
        self.cast(&format!("{path}/Narrow"), &pooled, e)
    }

    /// A vector divided by its length.
    fn normalized(&mut self, path: &str, x: &Value) -> Value {
        let wide = self.cast(&format!("{path}/Wide"), x, Element::F32);
        let square = self.graph.node("Mul", &format!("{path}/Square"), &[&wide, &wide], Element::F32, &[]);
        let sum = self.reduced("ReduceSum", &format!("{path}/Sum"), &square, 1);
        let length = self.graph.node("Sqrt", &format!("{path}/Sqrt"), &[&sum], Element::F32, &[]);
        let least = self.graph.float(Element::F32, 1e-12);
        let length = self.graph.node("Max", &format!("{path}/Max"), &[&length, &least], Element::F32, &[]);
        let normed = self.graph.node("Div", &format!("{path}/Div"), &[&wide, &length], Element::F32, &[]);
        self.cast(&format!("{path}/Narrow"), &normed, self.element)
    }

    /// What comes before the last matrix.
    fn transformed(&mut self, head: &Head, x: &Value) -> Value {
        let Some(dense) = &head.dense else { return x.clone() };
        let e = self.model;
        let x = self.linear("/head/dense", dense, x, e.hidden, e.hidden);
        let x = self.head_activation("/head/act", &x, head.activation);
        match &head.norm {
            Some(norm) => self.layer_norm("/head/norm", norm, &x),
            None => x,
        }
    }

    /// Logits of labels, and how many there are: what the checkpoint has rows for.
    fn labels(&mut self, head: &Head, x: &Value) -> (Value, u64) {
        let x = self.transformed(head, x);
        let labels = self.weights.rows(&format!("{}.weight", head.out)).unwrap_or(2);
        (self.linear("/head/out", &head.out, &x, self.model.hidden, labels), labels)
    }

    /// Logits of words: by a matrix of their own, or by the embedding as it lies there.
    fn words(&mut self, head: &Head, x: &Value) -> Value {
        let e = self.model;
        let own = format!("{}.weight", head.out);
        let biases = [Some(format!("{}.bias", head.out)), head.bias.clone()];
        let mut biases: Vec<String> = biases.into_iter().flatten().filter(|bias| self.weights.has(bias)).collect();
        let has_own = self.weights.has(&own);
        let product = if self.is_in_standard_operators() {
            let role = if has_own { own } else { format!("{}.weight", e.names.word) };
            self.weights.take(&role, &[e.vocabulary, e.hidden]);
            self.product("/head/words", "head.words.weight", &role, x, [e.hidden, e.vocabulary])
        } else if has_own {
            self.weights.take(&own, &[e.vocabulary, e.hidden]);
            // Blocks leave the words as they are.
            self.product_of_numbers("/head/words", "head.words.weight", &own, x, [e.hidden, e.vocabulary])
        } else {
            let table = self.word_table();
            self.by_rows("/head/words", x, &table, [e.hidden, e.vocabulary])
        };
        // Both are the same tensor in transformers; a checkpoint may have it twice.
        let Some(bias) = biases.pop() else { return product };
        biases.iter().for_each(|same| self.weights.leave(same));
        self.weights.take(&bias, &[e.vocabulary]);
        let element = self.element_of(&[&bias]);
        let product = self.cast("/head/words/BiasIn", &product, element);
        let bias = self.graph.weight("head.words.bias", &bias, Form::AsIs, element, &[e.vocabulary]);
        let sum = self.graph.node("Add", "/head/words/Add", &[&product, &bias], element, &[]);
        self.cast("/head/words/BiasOut", &sum, self.element)
    }
}
