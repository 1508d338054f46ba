//! Portable graphs in RTen, a runtime in Rust that has nothing in common with ONNX Runtime.

use crate::cli_onnx::{add_dense, small_bert};
use crate::support::{TestDir, base, fixture, mlpack};
use rten::{Model, NodeId, Value, ValueOrView};
use rten_tensor::NdTensor;
use serde_json::Value as Json;
use std::path::Path;

/// A graph by the names of its inputs and outputs.
struct Graph(Model);

impl Graph {
    fn open(path: &Path) -> Graph {
        Graph(Model::load_file(path).unwrap_or_else(|e| panic!("{e}")))
    }

    fn run(&self, inputs: Vec<(String, Value)>, outputs: &[String]) -> Vec<Value> {
        let node = |name: &str| self.0.node_id(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let inputs: Vec<(NodeId, ValueOrView<'static>)> =
            inputs.into_iter().map(|(name, value)| (node(&name), value.into())).collect();
        let outputs: Vec<NodeId> = outputs.iter().map(|name| node(name)).collect();
        self.0.run(inputs, &outputs, None).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// One text of integers; RTen's are of 32 bits.
fn integers(name: &str, values: &[i32]) -> (String, Value) {
    (name.to_owned(), NdTensor::from_data([1, values.len()], values.to_vec()).into())
}

#[test]
fn a_decoder_generates_the_tokens_of_transformers_with_its_cache() {
    let dir = TestDir::new();
    let adapter = fixture("legal-qa/legal-qa-lora").display().to_string();
    let args = ["convert", &base(), "-a", &adapter, "--to", "onnx", "--precision", "fp32", "--profile", "portable"];
    mlpack(&dir).args(args).args(["-o", "out"]).succeed();
    let graph = Graph::open(&dir.path("out/onnx/model.onnx"));
    let golden = std::fs::read(fixture("legal-qa/golden/transformers-greedy.json")).unwrap();
    let golden: Json = serde_json::from_slice(&golden).unwrap();
    let list = |name: &str| -> Vec<i32> {
        golden[name].as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()
    };
    let config: Json = serde_json::from_slice(&std::fs::read(dir.path("out/config.json")).unwrap()).unwrap();
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let (layers, kv_heads) = (size("num_hidden_layers"), size("num_key_value_heads"));
    let width = size("hidden_size") / size("num_attention_heads");
    let names = |start: &str| -> Vec<String> {
        (0..layers).flat_map(|i| ["key", "value"].map(|part| format!("{start}.{i}.{part}"))).collect()
    };
    let mut cache: Vec<Value> =
        names("past_key_values").iter().map(|_| NdTensor::<f32, 4>::zeros([1, kv_heads, 0, width]).into()).collect();
    let (mut ids, expected) = (list("prompt_ids"), list("greedy_ids"));
    let mut new = ids.clone();
    while ids.len() < expected.len() {
        let positions: Vec<i32> = ((ids.len() - new.len()) as i32..ids.len() as i32).collect();
        let mut inputs = vec![
            integers("input_ids", &new),
            integers("attention_mask", &vec![1; ids.len()]),
            integers("position_ids", &positions),
        ];
        inputs.extend(names("past_key_values").into_iter().zip(cache));
        let outputs = [vec!["logits".to_owned()], names("present")].concat();
        let mut found = graph.run(inputs, &outputs).into_iter();
        let ([_, rows, vocabulary], logits) = found.next().unwrap().into_shape_vec::<f32, 3>().unwrap();
        cache = found.collect();
        let last = &logits[(rows - 1) * vocabulary..];
        if rows > 1 {
            let first: Vec<f64> =
                golden["last_logits_first8"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let near = last.iter().zip(&first).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-4);
            assert!(near, "{:?} beside {first:?}", &last[..first.len()]);
        }
        let best = (0..vocabulary).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        new = vec![best as i32];
        ids.extend(&new);
    }
    assert_eq!(ids, expected);
}

/// The first elements of the sentence embedding of the tokens below, as transformers 5.23.0 and the mean over positions give
/// them, in float32.
const EMBEDDING: [f32; 6] = [0.2619547, 0.1903065, 0.0850972, -0.1634708, -0.2235977, 0.1456782];

/// The same behind a matrix of 32 by 8 with a hyperbolic tangent.
const WITH_DENSE: [f32; 6] = [0.3560937, -0.1841117, -0.388131, -0.2702431, 0.468529, 0.2940039];

#[test]
fn a_sentence_embedder_gives_the_vector_of_transformers() {
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    embeds(&dir, 32, EMBEDDING);
}

#[test]
fn a_matrix_after_pooling_gives_the_vector_of_torch() {
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    add_dense(&dir, "torch.nn.modules.activation.Tanh");
    embeds(&dir, 8, WITH_DENSE);
}

fn embeds(dir: &TestDir, outputs: usize, expected: [f32; 6]) {
    for (precision, file, tolerance) in [("fp32", "model.onnx", 1e-5), ("int8", "model_quantized.onnx", 0.02)] {
        let args =
            ["convert", "bert", "--to", "onnx", "--precision", precision, "--profile", "portable", "-o", precision];
        mlpack(dir).args(args).succeed();
        let graph = Graph::open(&dir.path(&format!("{precision}/onnx/{file}")));
        // The last two positions are padding.
        let inputs = vec![
            integers("input_ids", &[3, 17, 29, 8, 35, 0, 0]),
            integers("attention_mask", &[1, 1, 1, 1, 1, 0, 0]),
            integers("token_type_ids", &[0, 0, 0, 1, 1, 0, 0]),
        ];
        let mut found = graph.run(inputs, &["sentence_embedding".to_owned()]).into_iter();
        let ([count, width], vector) = found.next().unwrap().into_shape_vec::<f32, 2>().unwrap();
        assert_eq!([count, width], [1, outputs]);
        let near = vector.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
        assert!(near, "{precision}: {:?} beside {expected:?}", &vector[..expected.len()]);
    }
}
