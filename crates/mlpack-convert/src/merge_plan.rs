//! Planning a merged checkpoint: the base's shards with the base's headers, and the merged values in them.

use crate::carry::carry;
use crate::{Done, Error, Output, OutputTensor, Plan, Resources, SealedFile, Source, Step, Stored, Target, execute};
use mlpack_fs::AtomicDir;

/// Plans the shards of the merged checkpoint. A LoRA delta keeps dtype and shape, so every shard keeps its header and
/// every tensor its place.
pub fn plan_merge(source: &Source) -> Result<Plan, Error> {
    let Some(checkpoint) = source.checkpoint().filter(|_| !source.adapters().is_empty()) else {
        return Err(Error::NoAdapter);
    };
    let mut plan = Plan { warnings: source.warnings.clone(), ..Plan::default() };
    for shard in checkpoint.shards() {
        let file_name = shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        plan.outputs.push(Output {
            file_name,
            variant: None,
            preamble: shard.preamble().to_vec(),
            tensors: Vec::new(),
            byte_len: shard.byte_len(),
        });
    }
    for (position, tensor) in checkpoint.tensors().iter().enumerate() {
        let output = &mut plan.outputs[tensor.shard];
        let range = checkpoint.entry(tensor).range.clone();
        let target = Target { output: tensor.shard, tensor: output.tensors.len() };
        output.tensors.push(OutputTensor {
            name: tensor.name.clone(),
            source: Some(tensor.name.clone()),
            stored: Stored::Safetensors(tensor.dtype),
            instead_of: None,
            importance: None,
            shape: tensor.shape.clone(),
            padded_end: range.end,
            range,
        });
        plan.steps.push(Step { targets: vec![target], ..Step::copy(position, &tensor.shape) });
    }
    Ok(plan)
}

/// Executes a merge plan into a directory that appears when it is complete: shards, index, config and tokenizer files.
/// The carried files are among the outputs, after the shards.
pub fn merge(
    source: &Source,
    plan: &Plan,
    out: AtomicDir,
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done, Error> {
    let mut done = execute(source, plan, out.contents(), resources, progress)?;
    if let Some(checkpoint) = source.checkpoint() {
        done.outputs.extend(carry(checkpoint.dir(), out.contents())?);
    }
    let dir = out.path().to_owned();
    out.seal()?;
    for SealedFile { path, .. } in &mut done.outputs {
        if let Some(name) = path.file_name() {
            *path = dir.join(name);
        }
    }
    Ok(done)
}
