//! The main path: open, plan, execute, seal.
//!
//! [`Source::open`] opens a checkpoint and lays adapters over it, [`Source::open_gguf`] a GGUF file. [`plan_gguf`],
//! [`plan_quantize`], [`plan_merge`] and [`plan_lora`] turn names, shapes and types into a [`Plan`]: every output file with the type and
//! the place of every tensor, before a weight is read. [`execute`] runs the plan in row slabs on all cores and seals the
//! outputs. Start reading at `plan.rs`.
//!
//! ```no_run
//! use mlpack_convert::*;
//! # fn main() -> Result<(), Error> {
//! let source = Source::open("base".as_ref(), &[("legal-qa-lora".into(), 1.0)], &Default::default())?;
//! let model = open_model(&source, None, &mlpack_arch::Families::builtin())?;
//! let variants = [FileType::parse("Q4_K_M")?, FileType::parse("F16")?];
//! let plan = plan_gguf(&source, &model, &GgufRequest {
//!     name: "legal-qa", variants: &variants, pre: None, options: &QuantizeOptions::default(),
//!     split: Split::default(),
//! })?;
//! let done = execute(&source, &plan, "out".as_ref(), &Resources::default(), &|_| {})?;
//! println!("{}", done.outputs[0].sha256);
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - A plan depends on headers alone; executing it on any number of threads gives the same bytes.
//! - Each source tensor is read once, whatever the number of outputs; memory is the budget, not the model.
//! - No output has its final name before all of them are complete.
//! - Every source tensor is in every output, or named in the plan with the reason why it is not.

mod carry;
mod describe;
mod diff;
mod embed;
mod error;
mod execute;
mod fidelity;
mod file_type;
mod gather;
mod gguf_plan;
mod importance;
mod lora_plan;
mod merge_plan;
mod mixture;
mod offload;
mod onnx_layout;
mod onnx_plan;
mod options;
mod packed;
mod plan;
mod quantize_plan;
mod resume;
mod slab;
mod source;
mod survey;
mod weight_rows;

pub use carry::Carried;
pub use diff::{Diff, Reshaped, TensorDiff, Unpaired, bits_per_weight, diff};
pub use embed::add_metadata;
pub use error::{Error, TooFar};
pub use execute::{Done, Resources, SealedFile, execute};
pub use fidelity::{ErrorSums, Exceeded, Limits, MaxError, SlabSums, TensorError};
pub use file_type::{FileType, Origin};
pub use gguf_plan::{GgufRequest, plan_gguf};
pub use importance::{Entry, Importance, ImportanceError, ImportanceProblem};
pub use lora_plan::{LoraRequest, plan_lora};
pub use merge_plan::{MergePlan, MergeRequest, merge, merge_with, plan_merge};
pub use mixture::{Choice, Mixture, ModelFacts, allows_quantization, fit, quantized_order};
pub use mlpack_lora::{Combine, OverlayOptions, TensorChange};
pub use offload::{OnDevice, Place, Unopened, WORTH_ELEMENTS};
pub use onnx_layout::Layout;
pub use onnx_plan::{
    BlockOptions, Computation, OnnxPlan, OnnxRequest, Precision, f16_overflows, plan_onnx, seal_onnx, write_onnx,
};
pub use options::{Imatrix, QuantizeOptions, TensorType, parse_override, parse_type};
pub use plan::{BytesPart, Gather, Input, Output, OutputTensor, Plan, Step, Stored, Target};
pub use quantize_plan::{QuantizeRequest, Split, plan_quantize};
pub use source::{Source, SourceTensor, open_model};
pub use weight_rows::WeightRows;
