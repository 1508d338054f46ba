//! `mlpack merge`

use super::changes;
use super::convert::EMBEDDED;
use crate::cli::{MergeArgs, MergingArgs};
use crate::exit::Exit;
use crate::show::{Show, bytes, files_json, files_table};
use crate::{inputs, lineage};
use mlpack_convert::{Done, MergePlan, MergeRequest, Resources, Source, plan_merge};
use mlpack_fs::AtomicDir;
use mlpack_provenance::{FoundRun, RunSource, Step, StepKind, Store};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Merges adapters into a base checkpoint.
pub fn merge(args: &MergeArgs, out: &Show) -> anyhow::Result<Exit> {
    let adapters = inputs::adapters(&args.source)?;
    let resources = inputs::resources_on(&args.resources, &args.device, out)?;
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let max_shard_size = args.max_shard_size.as_deref().map(inputs::size).transpose()?;
    let request = MergeRequest { max_shard_size, measures_changes: args.source.merging.report.is_some() };
    let source = Source::open(&args.source.model, &adapters, &inputs::overlay(&args.source.merging)?)?;
    let runs = lineage::runs(&adapters, run.as_ref(), None)?;
    let parameters = merge_parameters(&args.source.merging, max_shard_size, args.embed_provenance);
    let dir = AtomicDir::take_up(&args.output)?;
    let planned = PlannedMerge::new(&source, &request, parameters, &runs, dir.path(), &resources, out)?;
    let Done { outputs: files, changes, kept, .. } = planned.run(&source, dir, &runs, &resources, out)?;
    let mut text = files_table(&files);
    if kept > 0 {
        text.push_str(&format!("{} of it an interrupted merge had left\n", bytes(kept)));
    }
    if let Some(report) = &args.source.merging.report {
        text.push_str(&changes::write(report, &source, &changes)?);
    }
    let value = json!({"schema": "mlpack.merge/v1", "directory": args.output, "files": files_json(&files), "bytes_kept": kept, "warnings": source.warnings});
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// What was asked for, as the statement says it.
pub fn merge_parameters(args: &MergingArgs, max_shard_size: Option<u64>, embed: bool) -> Map<String, Value> {
    let mut parameters = inputs::merging_parameters(args);
    if let Some(size) = max_shard_size {
        parameters.insert("max_shard_size".to_owned(), size.into());
    }
    if embed {
        parameters.insert(EMBEDDED.to_owned(), true.into());
    }
    parameters
}

/// A merge before it is done; shared with `release`, which does it together with a conversion, and `rebuild`.
pub struct PlannedMerge {
    pub plan: MergePlan,
    path: PathBuf,
    parameters: Map<String, Value>,
    store: Store,
}

impl PlannedMerge {
    /// Plans a merged checkpoint at `path`, and says so.
    pub fn new(
        source: &Source,
        request: &MergeRequest,
        parameters: Map<String, Value>,
        runs: &[FoundRun],
        path: &Path,
        resources: &Resources,
        out: &Show,
    ) -> anyhow::Result<PlannedMerge> {
        let store = Store::beside(path.parent().unwrap_or(Path::new("")));
        let mut plan = plan_merge(source, request)?;
        lineage::recall(source, &mut plan.plan, &store);
        if parameters.contains_key(EMBEDDED) {
            let parameters = |_: &str| Ok(parameters.clone());
            lineage::embed(StepKind::Merge, source, &mut plan.plan, runs, resources, parameters)?;
        }
        out.warnings(&plan.plan.warnings);
        out.step(&format!(
            "merging {} of {} tensors into {}",
            source.overlay().map_or(0, |overlay| overlay.targets().len()),
            source.tensors().len(),
            path.display()
        ));
        Ok(PlannedMerge { plan, path: path.to_owned(), parameters, store })
    }

    /// Merges into the directory that it was planned for, and records the step.
    pub fn run(
        self,
        source: &Source,
        dir: AtomicDir,
        runs: &[FoundRun],
        resources: &Resources,
        out: &Show,
    ) -> anyhow::Result<Done> {
        out.device(resources, source, &self.plan.plan);
        let bar = out.progress(self.plan.plan.byte_len());
        let done = mlpack_convert::merge(source, &self.plan, dir, resources, &|n| bar.inc(n))?;
        bar.finish_and_clear();
        out.warnings(&done.warnings);
        self.record(source, &done, runs, out)?;
        Ok(done)
    }

    /// Records the step.
    pub fn record(self, source: &Source, done: &Done, runs: &[FoundRun], out: &Show) -> anyhow::Result<()> {
        let dependencies = lineage::read(source, &self.plan.plan, done, runs, &self.store, out)?;
        let mut step = Step::new(StepKind::Merge, self.parameters, dependencies);
        step.outputs = lineage::directory(&self.path, &done.outputs);
        self.store.record(&step)?;
        self.store.write_sidecar(&step.outputs[0])?;
        Ok(())
    }
}
