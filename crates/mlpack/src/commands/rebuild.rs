//! `mlpack rebuild`

mod steps;

use crate::cli::RebuildArgs;
use crate::exit::Exit;
use crate::inputs;
use crate::show::{Show, table};
use anyhow::{Context as _, bail};
use mlpack_convert::Resources;
use mlpack_fs::Sha256;
use mlpack_provenance::{Ingredient, TraceOptions, hash_path, recipe, tree_digest};
use mlpack_tensor::Escaped;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use steps::Again;

/// Most steps one after the other.
const MAX_DEPTH: usize = 16;
/// How the folder of a step's inputs starts.
const INPUTS: &str = "inputs-of-";

/// Does the recorded steps again from their recorded inputs, and compares what comes out.
pub fn rebuild(args: &RebuildArgs, out: &Show) -> anyhow::Result<Exit> {
    let digest = hash_path(&args.path)?;
    let scratch = Scratch::new(args.output.as_deref(), &args.path)?;
    let resources = inputs::resources(&args.resources)?;
    let mut work = Work { near: &args.path, resources, out, scratch: &scratch.dir, rows: Vec::new() };
    let made = work.make(digest, 0)?;
    let same = made.is_some();
    let rows =
        work.rows.iter().map(|r| [r.step.clone(), r.name.clone(), r.expected.to_string(), verdict(r).to_owned()]);
    let mut text = table(["step", "output", "recorded sha256", "rebuilt"], rows);
    text.push_str(&format!(
        "{} is {}\n",
        args.path.display(),
        if same { "rebuilt, byte for byte" } else { "not what its recorded steps give today" }
    ));
    let list: Vec<_> = work
        .rows
        .iter()
        .map(|r| {
            json!({
                "step": r.step, "name": r.name, "recorded": r.expected.to_string(),
                "rebuilt": r.found.map(|digest| digest.to_string()), "same": r.found == Some(r.expected),
            })
        })
        .collect();
    out.result(&text, &json!({"schema": "mlpack.rebuild/v1", "same": same, "outputs": list}));
    Ok(if same { Exit::Done } else { Exit::No })
}

fn verdict(row: &Row) -> &'static str {
    match row.found {
        Some(found) if found == row.expected => "the same",
        Some(_) => "other bytes",
        None => "not made",
    }
}

/// One output, compared.
struct Row {
    step: String,
    name: String,
    expected: Sha256,
    found: Option<Sha256>,
}

/// Where things are made: a folder that goes away, or the one that was asked for.
struct Scratch {
    dir: PathBuf,
    keep: bool,
}

impl Scratch {
    fn new(given: Option<&Path>, artifact: &Path) -> anyhow::Result<Scratch> {
        let (dir, keep) = match given {
            Some(dir) => (dir.to_owned(), true),
            None => {
                let absolute = std::path::absolute(artifact)?;
                let parent = absolute.parent().unwrap_or(Path::new("/")).to_owned();
                (parent.join(format!(".mlpack-rebuild-{}", std::process::id())), false)
            }
        };
        std::fs::create_dir(&dir).with_context(|| {
            format!("cannot create `{}`\n  expected: a folder that is not there yet", dir.display())
        })?;
        Ok(Scratch { dir, keep })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // What stays behind has a name that says what it is.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

struct Work<'a> {
    near: &'a Path,
    resources: Resources,
    out: &'a Show,
    scratch: &'a Path,
    rows: Vec<Row>,
}

impl Work<'_> {
    /// Makes the bytes with that digest again; where they are, when they are the same.
    fn make(&mut self, digest: Sha256, depth: usize) -> anyhow::Result<Option<PathBuf>> {
        let Some(mut recipe) = recipe(digest, self.near, &TraceOptions::default())? else {
            bail!(
                "no step of mlpack's is recorded for sha256:{digest}\n  expected: a statement in its claims or in a store near it"
            );
        };
        if depth > MAX_DEPTH {
            bail!("more than {MAX_DEPTH} steps one after the other");
        }
        for i in 0..recipe.inputs.len() {
            if recipe.inputs[i].path.is_none() {
                let Ingredient { name, sha256, .. } = recipe.inputs[i].clone();
                self.out.step(&format!("`{}` is not here: it is made again first", Escaped(&name)));
                let made = self.make(sha256, depth + 1).with_context(|| {
                    format!(
                        "cannot make `{}` again\n  expected: a file with sha256 {sha256}, or the steps that made it",
                        Escaped(&name)
                    )
                })?;
                if made.is_none() {
                    return Ok(None);
                }
                // Its neighbours may have been made with it.
                for input in recipe.inputs.iter_mut().filter(|input| input.path.is_none()) {
                    input.path = self.made(input.sha256);
                }
            }
        }
        let name = format!("{}-{}", recipe.kind.name(), &digest.to_string()[..12]);
        let (inputs, dir) = (self.scratch.join(format!("{INPUTS}{name}")), self.scratch.join(name));
        for folder in [&inputs, &dir] {
            std::fs::create_dir(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        }
        Again::new(&recipe, &inputs, &self.resources, self.out)?.make(&dir)?;
        let made = digests(&dir)?;
        let mut found = None;
        for (name, expected) in &recipe.outputs {
            let place = made.iter().find(|(_, digest)| *digest == expected);
            let by_name = || {
                let last = name.rsplit('/').next().unwrap_or(name);
                made.iter().find(|(path, _)| path.file_name().is_some_and(|n| n == last)).map(|(_, digest)| *digest)
            };
            if *expected == digest {
                found = place.map(|(path, _)| path.clone());
            }
            self.rows.push(Row {
                step: recipe.kind.name().to_owned(),
                name: Escaped(name).to_string(),
                expected: *expected,
                found: place.map(|(_, digest)| *digest).or_else(by_name),
            });
        }
        Ok(found)
    }

    fn made(&self, digest: Sha256) -> Option<PathBuf> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(self.scratch).ok()?.filter_map(Result::ok) {
            if !entry.file_name().to_string_lossy().starts_with(INPUTS) {
                all.extend(digests(&entry.path()).ok()?);
            }
        }
        all.into_iter().find(|(_, found)| *found == digest).map(|(path, _)| path)
    }
}

/// Every file below a folder and every folder in it, with their digests.
fn digests(dir: &Path) -> anyhow::Result<BTreeMap<PathBuf, Sha256>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())) {
        let path = entry?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || name.ends_with(".jsonl") {
            continue;
        }
        if path.is_dir() {
            let inside = digests(&path)?;
            // Folders within have digests of their own, but a tree is made of files.
            let files: Vec<(String, Sha256)> = inside
                .iter()
                .filter(|(file, _)| file.is_file())
                .filter_map(|(file, digest)| {
                    Some((file.strip_prefix(&path).ok()?.to_string_lossy().into_owned(), *digest))
                })
                .collect();
            found.insert(path, tree_digest(&files));
            found.extend(inside);
        } else {
            let digest = hash_path(&path)?;
            found.insert(path, digest);
        }
    }
    Ok(found)
}
