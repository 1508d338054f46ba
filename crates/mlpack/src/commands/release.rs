//! `mlpack release`: everything that `mlpack.toml` declares.

use super::convert::{PlannedConversion, Quantizer};
use super::merge::{PlannedMerge, merge_parameters};
use super::modelfile::{self, Settings};
use super::publish::{self, How};
use super::registry::Place;
use super::sign::sign_made;
use super::trace;
use crate::cli::{PassphraseArgs, RegistryArgs, ReleaseArgs};
use crate::exit::Exit;
use crate::show::{Show, files_json, files_table};
use crate::{inputs, keys, lineage};
use config::Config;
use mlpack_convert::{GgufRequest, MergeRequest, Source, Split, merge_with};
use mlpack_fs::{AtomicDir, Sha256};
use mlpack_oci::Parameter;
use mlpack_provenance::{PrivateKey, RunSource, TraceOptions, Trust, TrustedKey};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod config;

pub use config::ConfigError;

/// Does everything that a release file declares.
pub fn release(args: &ReleaseArgs, out: &Show) -> anyhow::Result<Exit> {
    let config = Config::open(&args.file)?;
    // All that can be wrong with the declaration is found before the first byte is written.
    let variants = inputs::variants(&config.gguf.quant)?;
    let families = inputs::families(&config.paths(&config.gguf.arch_file))?;
    let settings = settings(&config)?;
    let mut quantizer = Quantizer::new(&config.quantize, config.folder())?;
    let merging = config.merge.merging();
    quantizer.embed = config.embed_provenance;
    quantizer.parameters.extend(inputs::merging_parameters(&merging));
    let max_shard_size = config.merge.max_shard_size.as_deref().map(inputs::size).transpose()?;
    let resources = inputs::resources_on(&args.resources, &args.device, out)?;
    let dir = args.output.clone().unwrap_or_else(|| config.path(&config.output));
    let target = config.publish.as_ref().map(|p| Place::target(&p.to, &RegistryArgs::default())).transpose()?;
    let key = signing_key(&config)?;
    let run = config.run.as_deref().map(|text| RunSource::parse(text, config.folder())).transpose()?;
    let adapters: Vec<(PathBuf, f64)> = config.adapter.iter().map(|a| (config.path(&a.path), a.weight)).collect();
    let source = Source::open(&config.path(&config.base), &adapters, &inputs::overlay(&merging)?)?;
    let dataset = config.dataset.as_deref().map(|path| config.path(path));
    let runs = lineage::runs(&adapters, run.as_ref(), dataset.as_deref())?;

    let pre = config.gguf.pre.as_deref();
    let request = GgufRequest {
        name: &config.name,
        variants: &variants,
        pre,
        options: &quantizer.options,
        split: Split::default(),
    };
    let merge = match &config.merge.output {
        None => None,
        Some(output) => {
            // A merged checkpoint of an earlier run has its claims beside it and is replaced; anything else is not touched.
            let path = dir.join(output);
            let ours = mlpack_provenance::sidecar_path(&path).is_file();
            let merged = if ours { AtomicDir::resume(&path)? } else { AtomicDir::take_up(&path)? };
            let request = MergeRequest { max_shard_size, measures_changes: false };
            let parameters = merge_parameters(&merging, max_shard_size, config.embed_provenance);
            let planned = PlannedMerge::new(&source, &request, parameters, &runs, &path, &resources, out)?;
            Some((planned, merged, path))
        }
    };
    let conversion = PlannedConversion::new(&source, &families, &request, &quantizer, &runs, &dir, &resources, out)?;
    let done = match merge {
        None => conversion.run(&source, &runs, &resources, out)?.1,
        Some((merge, merged, path)) => {
            out.device(&resources, &source, &conversion.plan);
            let bar = out.progress(source.byte_len());
            let plans = ((&merge.plan, merged), (&conversion.plan, &*dir));
            let (of_merge, done) = merge_with(&source, plans.0, plans.1, &resources, &|n| bar.inc(n))?;
            bar.finish_and_clear();
            out.warnings(&of_merge.warnings);
            merge.record(&source, &of_merge, &runs, out)?;
            conversion.record(&source, &done, &runs, out)?;
            key.as_ref().map_or(Ok(()), |key| sign_made(&path, key, out))?;
            done
        }
    };
    // What was hashed while it was read or written is not hashed again.
    let hashed = done.inputs.iter().chain(&done.outputs);
    let known: BTreeMap<PathBuf, Sha256> = hashed.map(|file| (file.path.clone(), file.sha256)).collect();
    let files = done.outputs;
    let mut trust = Trust::default();
    trust.keys.extend(key.as_ref().map(|key| TrustedKey::unlimited("the key of the release", key.public())));
    if let Some(key) = &key {
        out.step(&format!("signing {} artifacts", files.len()));
        files.iter().try_for_each(|file| sign_made(&file.path, key, out))?;
    }
    let mut manifests = Vec::new();
    let mut text = files_table(&files);
    if let Some(mut target) = target {
        // A layout without a path of its own goes into the output.
        if let Place::Layout { dir: layout, .. } = &mut target {
            *layout = dir.join(&*layout);
        }
        let paths: Vec<PathBuf> = files.iter().map(|f| f.path.clone()).collect();
        let how = How { licenses: config.paths(&config.modelfile.license), key, ..How::default() };
        let (published_text, value) = publish::publish_into(&paths, &target, &settings, &how, &known, out)?;
        text.push('\n');
        text.push_str(&published_text);
        manifests.push(value);
    }
    let mut holds = true;
    let mut traces = Vec::new();
    let options = TraceOptions { known, trust, ..TraceOptions::default() };
    for file in &files {
        let traced = mlpack_provenance::trace(&file.path, &options)?;
        holds &= traced.holds();
        traces.push(traced);
    }
    // The variants have the same origin; one tree shows it.
    if let Some(last) = traces.last() {
        text.push('\n');
        text.push_str(&trace::text(last));
    }
    let value = json!({
        "schema": "mlpack.release/v1", "outputs": files_json(&files), "published": manifests,
        "traces": traces.iter().map(mlpack_provenance::Trace::to_json).collect::<Vec<_>>(),
    });
    out.result(&text, &value);
    Ok(if holds { Exit::Done } else { Exit::No })
}

/// The key of `[sign]`; a file's path starts at the release file's folder.
fn signing_key(config: &Config) -> anyhow::Result<Option<PrivateKey>> {
    let Some(sign) = &config.sign else { return Ok(None) };
    let from = match sign.key.starts_with("env:") {
        true => sign.key.clone(),
        false => config.path(Path::new(&sign.key)).display().to_string(),
    };
    let passphrase_file = sign.passphrase_file.as_ref().map(|path| config.path(path));
    keys::private_key(&from, &PassphraseArgs { passphrase_file }).map(Some)
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    let declared = &config.modelfile;
    let read = |path: &PathBuf| modelfile::text(&config.path(path));
    let mut parameters = Vec::new();
    for (name, value) in &declared.parameters {
        for text in value.texts() {
            parameters.push(Parameter::new(name, &text)?);
        }
    }
    Ok(Settings {
        system: declared.system.clone(),
        template: declared.template.as_ref().map(read).transpose()?,
        parameters,
        licenses: declared.license.iter().map(read).collect::<Result<_, _>>()?,
        keep: false,
    })
}

impl Config {
    /// Paths of the file start at its folder.
    fn path(&self, path: &Path) -> PathBuf {
        self.folder().join(path)
    }

    fn paths(&self, paths: &[PathBuf]) -> Vec<PathBuf> {
        paths.iter().map(|p| self.path(p)).collect()
    }
}
