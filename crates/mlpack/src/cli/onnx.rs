//! Options of `--to onnx`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What only ONNX graphs have.
#[derive(Debug, Args)]
pub struct OnnxArgs {
    /// Precisions of ONNX graphs, separated by commas: fp32, fp16, bf16, int8, int4
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "quant")]
    pub precision: Vec<String>,
    /// What the graph is for: text-generation, feature-extraction, fill-mask, text-classification, token-classification or
    /// question-answering [default: what the model's class is for]
    #[arg(long, value_name = "TASK", requires = "precision", conflicts_with = "quant")]
    pub task: Option<String>,
    /// Operators of ONNX graphs [default: std]
    #[arg(long, value_enum, requires = "precision", conflicts_with = "quant")]
    pub profile: Option<OnnxProfile>,
    /// Values of a block of 4-bit and 8-bit matrices of ONNX graphs: 16, 32, 64, 128 or 256 [default: 32]
    #[arg(long, value_name = "N", requires = "precision", conflicts_with = "quant", value_parser = block_size)]
    pub block_size: Option<u32>,
    /// Give the blocks of ONNX graphs zero points
    #[arg(long, requires = "precision", conflicts_with = "quant")]
    pub asymmetric: bool,
    /// How exactly ONNX Runtime multiplies by blocks: 1 in float32, 4 in integers, faster, 0 as it chooses [default: 4]
    #[arg(long, value_name = "LEVEL", requires = "precision", conflicts_with = "quant", value_parser = clap::value_parser!(u32).range(0..=4))]
    pub accuracy_level: Option<u32>,
    /// How int8 and int4 matrices are stored: blocks, for ONNX Runtime's operators; qdq, for standard ones; dynamic, int8
    /// alone, also multiplied in integers [default: blocks; for int8 in profile portable qdq, of encoders dynamic]
    #[arg(long, value_enum, requires = "precision", conflicts_with = "quant")]
    pub scheme: Option<OnnxScheme>,
    /// Keep tensors in float32 in fp16 and bf16 graphs: those with such a part in their name, or `overflow`, those with a value
    /// that float16 cannot hold; separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "precision", conflicts_with = "quant")]
    pub keep_fp32: Vec<String>,
    /// The runtime that the directory is for: transformers.js (graphs in onnx/), plain (graphs beside config.json) or genai
    /// (onnxruntime-genai) [default: transformers.js]
    #[arg(long, value_name = "RUNTIME", requires = "precision", conflicts_with = "quant")]
    pub layout: Option<String>,
    /// Sizes of inputs that are known, for runtimes that want static shapes: batch=N,sequence=N, and past=N for a decoder's cache
    #[arg(long, value_name = "DIMS", value_delimiter = ',', requires = "precision", conflicts_with = "quant")]
    pub fix_dims: Vec<String>,
}

/// What is done with graphs before they get their names.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Run the graphs in ONNX Runtime beside a forward pass of the source's weights, and write nothing where they are too far from it
    #[arg(long, requires = "precision")]
    pub validate: bool,
    /// The library of ONNX Runtime, or the folder that has it [default: ORT_DYLIB_PATH, else where the system looks for libraries]
    #[arg(long, value_name = "PATH", requires = "validate")]
    pub onnxruntime: Option<PathBuf>,
}

fn block_size(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|size: &u32| size.is_power_of_two() && (16..=256).contains(size));
    size.ok_or_else(|| "expected 16, 32, 64, 128 or 256".to_owned())
}

/// How matrices of integers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnnxScheme {
    /// Blocks of rows, for ONNX Runtime's MatMulNBits
    Blocks,
    /// Columns of int8 or blocks of columns of int4, and DequantizeLinear
    Qdq,
    /// Columns of int8, and MatMulInteger
    Dynamic,
}

/// The operators of an ONNX graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnnxProfile {
    /// Standard operators of opset 23
    Std,
    /// Primitives of opset 17, for old and small runtimes
    Portable,
    /// ONNX Runtime's own operators too
    Ort,
}
