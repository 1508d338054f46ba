//! One recorded step, done again.
//!
//! The inputs are laid out as links under the names that the statement has, so that nothing but them is read, and so that
//! it does not matter where they are today.

use super::super::convert::{EMBEDDED, PlannedConversion, Quantizer, convert_lora_into};
use super::super::merge::PlannedMerge;
use super::super::onnx;
use super::super::quantize::quantize_into;
use crate::cli::{QuantizerArgs, RequantizerArgs};
use crate::inputs;
use crate::lineage::ORDER;
use crate::show::Show;
use anyhow::{Context as _, bail};
use mlpack_arch::Families;
use mlpack_convert::{
    Combine, GgufRequest, LoraRequest, MergeRequest, OverlayOptions, QuantizeRequest, Resources, Source, Split,
};
use mlpack_fs::AtomicDir;
use mlpack_provenance::{FoundRun, Ingredient, Recipe, StepKind};
use mlpack_tensor::Escaped;
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// Parameters that are not the quantizer's.
const OTHERS: [&str; 12] = [
    "to",
    "quant",
    "name",
    "pre",
    SPLIT_TENSORS,
    SPLIT_SIZE,
    EMBEDDED,
    "allow_empty",
    "combine",
    "density",
    "seed",
    "keep_split",
];
const SPLIT_TENSORS: &str = "split-max-tensors";
const SPLIT_SIZE: &str = "split-max-size";

/// A step with its inputs in place.
pub struct Again<'a> {
    recipe: &'a Recipe,
    // Each input, and where its link is.
    links: Vec<(&'a Ingredient, PathBuf)>,
    resources: &'a Resources,
    out: &'a Show,
}

impl<'a> Again<'a> {
    /// Lays out the inputs in an empty folder.
    pub fn new(
        recipe: &'a Recipe,
        folder: &Path,
        resources: &'a Resources,
        out: &'a Show,
    ) -> anyhow::Result<Again<'a>> {
        let mut links: Vec<(&Ingredient, PathBuf)> = Vec::with_capacity(recipe.inputs.len());
        for input in &recipe.inputs {
            let path = input.path.as_ref().with_context(|| format!("`{}` is not here", Escaped(&input.name)))?;
            check_name(&input.name)?;
            // Adapters of one step may lie in folders of one name.
            let apart = place(&input.annotations).map_or(folder.to_owned(), |place| folder.join(place.to_string()));
            let link = apart.join(&input.name);
            if let Some((other, _)) = links.iter().find(|(_, known)| *known == link) {
                if other.sha256 != input.sha256 {
                    bail!(
                        "two inputs are called `{}`, and the statement does not tell them apart",
                        Escaped(&input.name)
                    );
                }
            } else {
                let parent = link.parent().unwrap_or(folder);
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
                std::os::unix::fs::symlink(std::path::absolute(path)?, &link)
                    .with_context(|| format!("cannot create `{}`", link.display()))?;
            }
            links.push((input, link));
        }
        Ok(Again { recipe, links, resources, out })
    }

    /// Does the step, and leaves what it makes in `dir`.
    pub fn make(&self, dir: &Path) -> anyhow::Result<()> {
        match self.recipe.kind {
            StepKind::Merge => self.merge(dir),
            StepKind::Convert if self.parameter("to") == Some("gguf-lora") => self.convert_lora(dir),
            StepKind::Convert if self.parameter("to") == Some("onnx") => self.convert_onnx(dir),
            StepKind::Convert => self.convert(dir),
            StepKind::Quantize => self.quantize(dir),
            StepKind::Train | StepKind::Package => unreachable!("such a step is no recipe"),
        }
    }

    fn merge(&self, dir: &Path) -> anyhow::Result<()> {
        let source = self.source()?;
        let outputs = &self.recipe.outputs;
        let name = outputs.iter().map(|(name, _)| name.as_str()).find(|name| !name.contains('/')).unwrap_or("merged");
        check_name(name)?;
        let request = MergeRequest { max_shard_size: self.number("max_shard_size"), measures_changes: false };
        let parameters = self.recipe.parameters.clone();
        let target = AtomicDir::create(&dir.join(name))?;
        let runs = self.runs()?;
        let planned = PlannedMerge::new(&source, &request, parameters, &runs, target.path(), self.resources, self.out)?;
        planned.run(&source, target, &runs, self.resources, self.out).map(drop)
    }

    fn convert(&self, dir: &Path) -> anyhow::Result<()> {
        let source = self.source()?;
        let variants = inputs::variants(&[self.asked("quant")?.to_owned()])?;
        let mut quantizer = self.quantizer()?;
        quantizer.embed = self.recipe.parameters.contains_key(EMBEDDED);
        for key in ["allow_empty", "combine", "density", "seed"] {
            let value = self.recipe.parameters.get(key);
            quantizer.parameters.extend(value.map(|value| (key.to_owned(), value.clone())));
        }
        let split = Split {
            max_tensors: self.number(SPLIT_TENSORS).unwrap_or(0),
            max_byte_len: self.number(SPLIT_SIZE).unwrap_or(0),
        };
        let (name, pre) = (self.name()?, self.parameter("pre"));
        let request = GgufRequest { name, variants: &variants, pre, options: &quantizer.options, split };
        let (families, runs) = (self.families()?, self.runs()?);
        let (resources, out) = (self.resources, self.out);
        let planned = PlannedConversion::new(&source, &families, &request, &quantizer, &runs, dir, resources, out)?;
        planned.run(&source, &runs, resources, out).map(drop)
    }

    fn convert_lora(&self, dir: &Path) -> anyhow::Result<()> {
        let adapter = self.role("adapter").next().context("the statement names no adapter")?;
        let is_config = |path: &&Path| path.file_name().is_some_and(|name| name == "config.json");
        let base = self.role("config").find(is_config).and_then(Path::parent);
        let base = base.context("the statement does not name the base's config.json")?;
        let variants = inputs::variants(&[self.asked("quant")?.to_owned()])?;
        let dir_of_adapter = adapter.parent().unwrap_or(Path::new(""));
        let request = LoraRequest { dir: dir_of_adapter, name: self.name()?, variants: &variants };
        convert_lora_into(base, &self.families()?, &request, &self.runs()?, dir, self.resources, self.out)?;
        Ok(())
    }

    fn convert_onnx(&self, dir: &Path) -> anyhow::Result<()> {
        let source = self.source()?.with_modules()?;
        let mut asked = onnx::asked(&self.recipe.parameters)?;
        let outputs = &self.recipe.outputs;
        let name = outputs.iter().map(|(name, _)| name.as_str()).find(|name| !name.contains('/')).unwrap_or("onnx");
        check_name(name)?;
        let (families, runs, output) = (self.families()?, self.runs()?, dir.join(name));
        onnx::convert_into(&source, &families, &mut asked, &runs, &output, self.resources, None, self.out)?;
        Ok(())
    }

    fn quantize(&self, dir: &Path) -> anyhow::Result<()> {
        let model = self.role("model").next().context("the statement names no model")?;
        let source = Source::open_gguf(model)?;
        let requantizer: RequantizerArgs = self.settings(|key| key == "keep_split")?;
        let mut quantizer = self.quantizer()?;
        quantizer.options.keep_split = requantizer.keep_split;
        let variants = inputs::variants(&[self.asked("quant")?.to_owned()])?;
        let variant = *variants.first().context("the statement names no variant")?;
        let stem = match self.recipe.outputs.as_slice() {
            [(name, _), others @ ..] => {
                let whole = name.strip_suffix(".gguf").unwrap_or(name);
                let first = format!("-00001-of-{:05}", others.len() + 1);
                whole.strip_suffix(first.as_str()).unwrap_or(whole).to_owned()
            }
            [] => bail!("the statement is about nothing"),
        };
        check_name(&stem)?;
        let request = QuantizeRequest { variants: &[(variant, stem)], options: &quantizer.options };
        let parameters = |_: &str| Ok(self.recipe.parameters.clone());
        quantize_into(&source, &request, quantizer.limits, parameters, dir, self.resources, self.out)?;
        Ok(())
    }

    /// The base or model, with its adapters in the order in which they were given.
    fn source(&self) -> anyhow::Result<Source> {
        // Modules of the model have folders below its own.
        let weights = self.role("base").chain(self.role("model"));
        let base = weights.min_by_key(|path| path.components().count()).and_then(Path::parent);
        let base = base.context("the statement names no base and no model")?;
        let mut adapters: Vec<(u64, (PathBuf, f64))> = Vec::new();
        for (input, link) in self.links.iter().filter(|(input, _)| input.role == "adapter") {
            let weight = text(&input.annotations, "weight").map_or(Ok(1.0), str::parse);
            let weight = weight.with_context(|| format!("the weight of `{}` is no number", Escaped(&input.name)))?;
            adapters.push((place(&input.annotations).unwrap_or(0), (link.clone(), weight)));
        }
        adapters.sort_by_key(|(place, _)| *place);
        let adapters: Vec<(PathBuf, f64)> = adapters.into_iter().map(|(_, adapter)| adapter).collect();
        let density = self.parameter("density").map_or(Ok(0.5), str::parse).context("the density is no number")?;
        let combine = self.parameter("combine").unwrap_or("sum");
        let combine =
            Combine::parse(combine, density, self.number("seed").unwrap_or(0)).map_err(mlpack_convert::Error::from)?;
        let allow_empty = self.recipe.parameters.get("allow_empty").is_some_and(|value| *value == true);
        Ok(Source::open(base, &adapters, &OverlayOptions { allow_empty, combine })?)
    }

    /// The run of each adapter. No byte depends on it, but where a file says itself what it is made from.
    fn runs(&self) -> anyhow::Result<Vec<FoundRun>> {
        let mut runs: Vec<(u64, FoundRun)> = Vec::new();
        for (annotations, record) in &self.recipe.runs {
            let unknown = text(annotations, "status").is_some_and(|status| status == "unknown");
            let run = match record {
                Some(record) => FoundRun::recorded(record.clone()),
                None if !unknown && self.recipe.parameters.contains_key(EMBEDDED) => {
                    bail!("the record of a training run is not here, and the file says what is in it")
                }
                None => FoundRun::Unknown { reason: text(annotations, "reason").unwrap_or("made again").to_owned() },
            };
            runs.push((place(annotations).unwrap_or(0), run));
        }
        runs.sort_by_key(|(place, _)| *place);
        Ok(runs.into_iter().map(|(_, run)| run).collect())
    }

    fn families(&self) -> anyhow::Result<Families> {
        inputs::families(&self.role("architecture").map(Path::to_owned).collect::<Vec<_>>())
    }

    fn quantizer(&self) -> anyhow::Result<Quantizer> {
        let args: QuantizerArgs = self.settings(|key| !OTHERS.contains(&key))?;
        let without =
            QuantizerArgs { imatrix: None, include_weights: Vec::new(), exclude_weights: Vec::new(), ..args.clone() };
        let mut quantizer = Quantizer::new(&without, Path::new(""))?;
        quantizer.parameters = inputs::parameters(&args, &RequantizerArgs::default(), Path::new(""))?;
        if let (Some(named), Some(path)) = (&args.imatrix, self.role("imatrix").next()) {
            quantizer.options.imatrix = Some(inputs::imatrix_at(path, named, &args)?);
        }
        Ok(quantizer)
    }

    /// Options of the statement: its fractions are text there.
    fn settings<T: serde::de::DeserializeOwned>(&self, own: impl Fn(&str) -> bool) -> anyhow::Result<T> {
        const FRACTIONS: [&str; 2] = ["max_rmse", "min_cosine"];
        let mut known = Map::new();
        for (key, value) in self.recipe.parameters.iter().filter(|(key, _)| own(key)) {
            let is_fraction = FRACTIONS.contains(&key.as_str());
            let number = value.as_str().filter(|_| is_fraction).and_then(|text| text.parse::<f64>().ok());
            known.insert(key.clone(), number.map_or_else(|| value.clone(), Value::from));
        }
        serde_json::from_value(Value::Object(known))
            .context("the statement has options that this version does not know")
    }

    fn role(&self, role: &str) -> impl Iterator<Item = &Path> {
        self.links.iter().filter(move |(input, _)| input.role == role).map(|(_, link)| link.as_path())
    }

    fn parameter(&self, key: &str) -> Option<&str> {
        text(&self.recipe.parameters, key)
    }

    fn name(&self) -> anyhow::Result<&str> {
        let name = self.asked("name")?;
        check_name(name)?;
        Ok(name)
    }

    fn asked(&self, key: &'static str) -> anyhow::Result<&str> {
        self.parameter(key).with_context(|| format!("the statement does not say `{key}`"))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.recipe.parameters.get(key).and_then(Value::as_u64)
    }
}

/// The place of one of several adapters.
fn place(annotations: &Map<String, Value>) -> Option<u64> {
    text(annotations, ORDER)?.parse().ok()
}

/// Statements may come from anybody: what they name stays where the work is.
fn check_name(name: &str) -> anyhow::Result<()> {
    let stays = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !stays {
        bail!("the statement has the name `{}`\n  expected: a relative path without `..`", Escaped(name));
    }
    Ok(())
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}
