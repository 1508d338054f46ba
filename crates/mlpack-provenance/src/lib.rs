//! Statements about inputs, steps and outputs, records of training runs, and the way back from an artifact.
//!
//! The nouns are [`Step`] (what was done, from what, to what), [`Statement`] (the same as an in-toto statement with a
//! SLSA provenance predicate, byte for byte reproducible), [`RunRecord`] (what a store says about a training run),
//! [`Store`] (where both are kept, by digest) and [`Trace`] (what all of it says about a file, and how far that was
//! checked).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (input, output) = (dir.path().join("in.gguf"), dir.path().join("out.gguf"));
//! # std::fs::write(&input, "in")?; std::fs::write(&output, "out")?;
//! use mlpack_provenance::{Artifact, Dependency, Role, State, Step, StepKind, Store, TraceOptions};
//! let (read, _) = mlpack_fs::hash_file(&input)?;
//! let (made, _) = mlpack_fs::hash_file(&output)?;
//! let parameters = [("quant".to_owned(), "Q8_0".into())].into_iter().collect();
//! let mut step = Step::new(StepKind::Quantize, parameters, vec![Dependency::file(Role::Model, &input, read)]);
//! step.outputs = vec![Artifact::file(&output, made)];
//!
//! let store = Store::beside(dir.path());
//! store.record(&step)?;
//! store.write_sidecar(&step.outputs[0])?;
//! let trace = mlpack_provenance::trace(&output, &TraceOptions::default())?;
//! assert_eq!(trace.root.state, State::Unsigned);
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - The same inputs, parameters and version give the same statement and record bytes: no time, host, user or absolute
//!   path is in them.
//! - A statement is believed only about what was checked: everything else is shown as claimed, missing or mismatched.
//! - Statements, sidecars and run stores are read as hostile input: bounded, without duplicate keys, without cycles.
//! - A run that is not known is stated as unknown; nothing is made up.
//!
//! It does not talk to a network.

mod claims;
mod error;
mod json;
mod object;
mod policy;
mod run;
mod sign;
mod statement;
mod step;
mod store;
mod trace;
mod tree;

pub use error::{Disagreement, Error};
pub use policy::{Finding, Policy};
pub use run::{
    Agreement, Answer, BaseModel, Curve, Dataset, Evidence, Fetch, FoundRun, LinkedModel, MAX_ANSWER_LEN, OtherBase,
    Request, Run, RunRecord, RunSource, Source, find_run, find_run_with, other_bases,
};
pub use sign::{
    BUNDLE_MEDIA_TYPE, Bundle, KeyAlgorithm, MODEL_SIGNATURE, ModelCheck, PAYLOAD_TYPE, PrivateKey, PublicKey,
    Resource, SignOptions, SignedChain, SignedStep, Trust, TrustedKey, base64, check_model, model_signature_path,
    sign_chain, sign_model,
};
pub use statement::{PREDICATE_TYPE, STATEMENT_TYPE, Statement};
pub use step::{Artifact, BUILDER, Dependency, Identity, RUN_MEDIA_TYPE, Role, Step, StepKind, TENSORS, UNKNOWN_RUN};
pub use store::{Store, sidecar_path, signatures_of};
pub use trace::{
    CheckStore, Dependent, Graph, GraphNode, Image, Ingredient, Layer, Line, Node, NodeKind, Recipe, State, Trace,
    TraceOptions, dependents, hash_path, recipe, trace, trace_digest, trace_image,
};
pub use tree::{TensorContent, tensors_digest, tree_digest};
