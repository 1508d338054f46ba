//! The integration tests: one binary, run against the real executable and the real fixtures.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `cli_adapters` | kinds of adapters, several of them, reports, shards, and adapters that are refused |
//! | `cli_convert` | outputs equal the goldens of llama.cpp; several variants, adapters, names |
//! | `cli_quantize` | every golden of llama-quantize, with each option that has one; split files |
//! | `cli_device` | `--device` in a build for the CPU alone |
//! | `cli_diff` | figures against plain arithmetic over the same files, gates, the page |
//! | `cli_merge` | a merged checkpoint is whole, and converting it equals converting through it |
//! | `cli_onnx` | graphs: recorded bytes, adapters, limits, and what is refused |
//! | `cli_validate` | graphs beside a forward pass of their source, in ONNX Runtime |
//! | `cli_release` | the legal-qa release: files, layout, Modelfile, trace back to run 4c421e9c… |
//! | `cli_rebuild` | every kind of step again from its recorded inputs |
//! | `cli_registry` | publish, pull, serve, export, import, deploy, against a real registry |
//! | `cli_attached` | signed releases in registries and layouts: what refers to them, traced, verified, damaged |
//! | `cli_sign` | keys, signatures, policies, one flipped byte in everything |
//! | `cli_errors` | every bad input: message snapshot, exit code, nothing left behind |
//! | `determinism` | thread counts, memory budgets and repeated runs give the same bytes |
//! | `interop_signing` | signatures, bills of materials and runs with the real tools of each |
//! | `interop_onnx` | portable graphs in a second runtime |
//! | `interop` | our files read by other implementations |

// Tests read files that they or the fixtures made, and say on standard output what they skip.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod cli_adapters;
mod cli_attached;
mod cli_convert;
mod cli_device;
mod cli_diff;
mod cli_errors;
mod cli_merge;
mod cli_onnx;
mod cli_quantize;
mod cli_rebuild;
mod cli_registry;
mod cli_release;
mod cli_sign;
mod cli_validate;
mod determinism;
mod interop;
mod interop_onnx;
mod interop_signing;
mod support;
