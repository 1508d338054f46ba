//! Options of `--to onnx`.

use clap::{Args, ValueEnum};

/// What only ONNX graphs have.
#[derive(Debug, Args)]
pub struct OnnxArgs {
    /// Precisions of ONNX graphs, separated by commas: fp32, fp16, bf16, int8, int4
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "quant")]
    pub precision: Vec<String>,
    /// Operators of ONNX graphs [default: std]
    #[arg(long, value_enum, requires = "precision")]
    pub profile: Option<OnnxProfile>,
    /// Values of a block of 4-bit and 8-bit matrices of ONNX graphs: 16, 32, 64, 128 or 256 [default: 32]
    #[arg(long, value_name = "N", requires = "precision", value_parser = block_size)]
    pub block_size: Option<u32>,
    /// Give the blocks of ONNX graphs zero points
    #[arg(long, requires = "precision")]
    pub asymmetric: bool,
    /// How exactly ONNX Runtime multiplies by blocks: 0 as it chooses, 1 in float32, 4 in integers, faster [default: 0]
    #[arg(long, value_name = "LEVEL", requires = "precision", value_parser = clap::value_parser!(u32).range(0..=4))]
    pub accuracy_level: Option<u32>,
}

fn block_size(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|size: &u32| size.is_power_of_two() && (16..=256).contains(size));
    size.ok_or_else(|| "expected 16, 32, 64, 128 or 256".to_owned())
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
