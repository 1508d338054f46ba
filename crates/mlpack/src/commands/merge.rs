//! `mlpack merge`

use crate::cli::MergeArgs;
use crate::exit::Exit;
use crate::show::{Show, files_json, files_table};
use crate::{inputs, lineage};
use mlpack_convert::{Resources, SealedFile, Source, plan_merge};
use mlpack_fs::AtomicDir;
use mlpack_provenance::{FoundRun, RunSource, Step, StepKind, Store};
use serde_json::{Map, json};
use std::path::Path;

/// Merges adapters into a base checkpoint.
pub fn merge(args: &MergeArgs, out: &Show) -> anyhow::Result<Exit> {
    let adapters = inputs::adapters(&args.source)?;
    let resources = inputs::resources(&args.resources)?;
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let source = Source::open(&args.source.model, &adapters)?;
    let runs = lineage::runs(&adapters, run.as_ref(), None)?;
    let files = merge_into(&source, &runs, AtomicDir::create(&args.output)?, &resources, out)?;
    let value = json!({"schema": "mlpack.merge/v1", "directory": args.output, "files": files_json(&files), "warnings": source.warnings});
    out.result(&files_table(&files), &value);
    Ok(Exit::Done)
}

/// Merges, and records the step; shared with `release`.
pub fn merge_into(
    source: &Source,
    runs: &[FoundRun],
    dir: AtomicDir,
    resources: &Resources,
    out: &Show,
) -> anyhow::Result<Vec<SealedFile>> {
    let path = dir.path().to_owned();
    let mut plan = plan_merge(source)?;
    out.warnings(&plan.warnings);
    out.step(&format!(
        "merging {} of {} tensors into {}",
        source.overlay().map_or(0, |overlay| overlay.changed().count()),
        source.tensors().len(),
        path.display()
    ));
    let bar = out.progress(plan.byte_len());
    let done = mlpack_convert::merge(source, &plan, dir, resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    let store = Store::beside(path.parent().unwrap_or(Path::new("")));
    if let Some(checkpoint) = source.checkpoint() {
        let carried = mlpack_convert::carried_files(checkpoint.dir())?;
        plan.described_by = carried.into_iter().filter(|p| Some(p.as_path()) != checkpoint.index()).collect();
    }
    let dependencies = lineage::dependencies(source, &plan, &done, runs, &store)?;
    let mut step = Step::new(StepKind::Merge, Map::new(), dependencies);
    step.outputs = lineage::directory(&path, &done.outputs);
    store.record(&step)?;
    store.write_sidecar(&step.outputs[0])?;
    Ok(done.outputs)
}
