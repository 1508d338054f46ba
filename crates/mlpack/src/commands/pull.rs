//! `mlpack pull`

use super::registry::{Place, Source};
use crate::cli::PullArgs;
use crate::exit::Exit;
use crate::show::{Show, bytes, table};
use anyhow::{Context as _, bail};
use mlpack_fs::{AtomicDir, Sha256, hash_file};
use mlpack_gguf::GgufFile;
use mlpack_oci::{Content, Contents, Entry, Form, TensorMap, contents, media};
use mlpack_registry::{Known, Wanted};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Indexes inside each other.
const DEPTH_LIMIT: usize = 4;

/// Pulls an artifact of any ecosystem into a directory.
pub fn pull(args: &PullArgs, out: &Show) -> anyhow::Result<Exit> {
    let select = Select::new(&args.select)?;
    let place = Place::new(&args.reference, &args.registry)?;
    let (source, root) = Source::open(&place)?;
    let mut files = Vec::new();
    collect(&source, &root.bytes, &select, 0, &mut files)?;
    let plan = Plan::new(files, &select)?;
    let plan = Plan { maps: tensor_maps(&source, &plan, &args.output)?, ..plan };
    out.step(&format!("pulling {} of {} into {}", plan.summary(), args.reference, args.output.display()));
    let (names, fetched, kept) = fetch(&source, &plan, &args.output, out)?;
    let rows = names.iter().map(|name| {
        let len = fs::metadata(args.output.join(name)).map_or(0, |m| m.len());
        [args.output.join(name).display().to_string(), bytes(len)]
    });
    let mut text = table(["file", "size"], rows);
    text.push_str(&format!("{} fetched, {} were there already\n", bytes(fetched), bytes(kept)));
    let value = json!({
        "schema": "mlpack.pull/v1", "reference": args.reference, "digest": format!("sha256:{}", root.digest),
        "output": args.output, "files": names, "bytes_fetched": fetched, "bytes_kept": kept,
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// What of an artifact is wanted.
struct Select {
    /// Annotation or platform, and the value it must have.
    entries: Vec<(String, String)>,
    /// Patterns of file names; none for all.
    files: Vec<String>,
}

impl Select {
    fn new(texts: &[String]) -> anyhow::Result<Select> {
        let mut select = Select { entries: Vec::new(), files: Vec::new() };
        for text in texts {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            match key {
                "file" if !value.is_empty() => select.files.push(value.to_owned()),
                "quant" | "variant" | "format" | "platform" if !value.is_empty() => {
                    select.entries.push((key.to_owned(), value.to_owned()));
                }
                _ => bail!(
                    "cannot select `{text}`\n  expected: quant=NAME, format=NAME, platform=OS/ARCH or file=PATTERN\n  found:    `{text}`"
                ),
            }
        }
        Ok(select)
    }

    fn takes(&self, entry: &Entry) -> bool {
        self.entries.iter().all(|(key, value)| {
            let found = match key.as_str() {
                "format" => entry.annotations.get(media::FORMAT),
                "platform" => entry.platform.as_ref(),
                _ => entry.annotations.get(media::VARIANT),
            };
            found.is_some_and(|found| found.eq_ignore_ascii_case(value))
        })
    }
}

/// Whether a name fits a pattern of `*` (anything), `?` (one character) and themselves.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => fits(rest, name) || (!name.is_empty() && fits(pattern, &name[1..])),
        ([b'?', rest @ ..], [_, name @ ..]) => fits(rest, name),
        ([p, rest @ ..], [n, name @ ..]) => p == n && fits(rest, name),
        _ => false,
    }
}

/// The layers of all manifests that are selected.
fn collect(
    source: &Source<'_>,
    document: &[u8],
    select: &Select,
    depth: usize,
    files: &mut Vec<Content>,
) -> anyhow::Result<()> {
    let entries = match contents(document)? {
        Contents::Files(found) => {
            files.extend(found);
            return Ok(());
        }
        Contents::Index(entries) => entries,
    };
    if depth >= DEPTH_LIMIT {
        bail!("cannot pull: indexes are nested deeper than {DEPTH_LIMIT}");
    }
    let mut taken: Vec<&Entry> = entries.iter().filter(|entry| select.takes(entry)).collect();
    if taken.is_empty() {
        let label = |entry: &Entry| {
            entry.annotations.get(media::VARIANT).or(entry.platform.as_ref()).cloned().unwrap_or_else(|| "?".to_owned())
        };
        let labels: Vec<String> = entries.iter().map(label).collect();
        bail!(
            "cannot select from the index\n  expected: {}\n  found:    {}",
            select.entries.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", "),
            mlpack_tensor::join_limited(labels.iter().map(String::as_str), 16)
        );
    }
    // Platforms of an image hold the same model.
    if taken.iter().all(|entry| entry.platform.is_some() && !entry.annotations.contains_key(media::VARIANT)) {
        taken.truncate(1);
    }
    for entry in taken {
        let child = source.document(&entry.digest)?;
        if child.bytes.len() as u64 != entry.byte_len {
            bail!(
                "manifest sha256:{} has {} bytes, its index says {}",
                entry.digest,
                child.bytes.len(),
                entry.byte_len
            );
        }
        collect(source, &child.bytes, select, depth + 1, files)?;
    }
    Ok(())
}

/// What is fetched and what becomes of it.
struct Plan {
    files: BTreeMap<String, (Sha256, u64)>,
    archives: Vec<(Sha256, u64, bool, String)>,
    patterns: Vec<String>,
    /// Blobs that are tensor maps.
    map_blobs: Vec<Sha256>,
    /// Tensor maps of files that another version of is there, by the files' digests.
    maps: BTreeMap<Sha256, TensorMap>,
}

impl Plan {
    fn new(contents: Vec<Content>, select: &Select) -> anyhow::Result<Plan> {
        let mut plan = Plan {
            files: BTreeMap::new(),
            archives: Vec::new(),
            patterns: select.files.clone(),
            map_blobs: Vec::new(),
            maps: BTreeMap::new(),
        };
        for content in contents {
            match content.form {
                Form::File(name) if plan.wants(&name) => {
                    let value = (content.digest, content.byte_len);
                    if plan.files.insert(name.clone(), value).is_some_and(|other| other != value) {
                        bail!(
                            "cannot pull: two variants have a file `{}` of their own\n\nhint: choose one with --select quant=NAME",
                            mlpack_tensor::Escaped(&name)
                        );
                    }
                }
                Form::Tar { gzip, below } => {
                    let archive = (content.digest, content.byte_len, gzip, below);
                    if !plan.archives.contains(&archive) {
                        plan.archives.push(archive);
                    }
                }
                Form::TensorMap => plan.map_blobs.push(content.digest),
                Form::File(_) => {}
            }
        }
        if plan.files.is_empty() && plan.archives.is_empty() {
            bail!("cannot pull: no file of the artifact is selected\n  expected: {}", plan.patterns.join(", "));
        }
        Ok(plan)
    }

    fn wants(&self, name: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| fits(pattern.as_bytes(), name.as_bytes()))
    }

    fn summary(&self) -> String {
        let len: u64 =
            self.files.values().map(|(_, len)| len).chain(self.archives.iter().map(|(_, len, ..)| len)).sum();
        format!("{} in {} layers", bytes(len), self.files.len() + self.archives.len())
    }
}

/// The tensor maps of files of which another version is in the output.
fn tensor_maps(source: &Source<'_>, plan: &Plan, output: &Path) -> anyhow::Result<BTreeMap<Sha256, TensorMap>> {
    let mut maps = BTreeMap::new();
    if plan.files.keys().any(|name| output.join(name).is_file()) {
        for digest in &plan.map_blobs {
            let map = TensorMap::parse(&source.small_blob(digest)?)?;
            maps.insert(map.file, map);
        }
    }
    Ok(maps)
}

/// The tensors that the file there has, too. What cannot be read is no help, and no error.
fn unchanged(map: &TensorMap, there: &Path) -> Vec<Known> {
    let Ok(gguf) = GgufFile::open(there) else { return Vec::new() };
    let tensors: BTreeMap<&str, _> = gguf.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut known = Vec::new();
    for wanted in &map.tensors {
        let Some(tensor) = tensors.get(wanted.name.as_str()) else { continue };
        let same_len = tensor.range.end - tensor.range.start == wanted.byte_len;
        if same_len && wanted.byte_len > 0 && Sha256::of(gguf.bytes(tensor)) == wanted.sha256 {
            let range = wanted.offset..wanted.offset + wanted.byte_len;
            known.push(Known { range, path: there.to_owned(), offset: tensor.range.start });
        }
        gguf.release(tensor.range.clone());
    }
    known
}

/// Fetches and puts in place; the names of the files, and the bytes that came and that were there.
fn fetch(source: &Source<'_>, plan: &Plan, output: &Path, out: &Show) -> anyhow::Result<(Vec<String>, u64, u64)> {
    let occupied = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !plan.archives.is_empty() {
        return Err(mlpack_fs::Error::NotEmpty { path: output.to_owned() }.into());
    }
    let mut there = 0;
    let mut wanted = Vec::new();
    let staged = AtomicDir::resume(output)?;
    let stage = staged.contents().to_owned();
    for (name, (digest, byte_len)) in &plan.files {
        let present = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == *byte_len)
                && hash_file(path).is_ok_and(|(found, _)| found == *digest)
        };
        if (occupied && present(&output.join(name))) || present(&stage.join(name)) {
            there += byte_len;
        } else {
            let known = plan.maps.get(digest).map_or_else(Vec::new, |map| unchanged(map, &output.join(name)));
            wanted.push(Wanted { digest: *digest, byte_len: *byte_len, path: stage.join(name), known });
        }
    }
    for (digest, byte_len, ..) in &plan.archives {
        wanted.push(Wanted {
            digest: *digest,
            byte_len: *byte_len,
            path: layer_path(&stage, digest),
            known: Vec::new(),
        });
    }
    let bar = out.progress(wanted.iter().map(|w| w.byte_len).sum());
    let progress = |n: i64| match u64::try_from(n) {
        Ok(n) => bar.inc(n),
        Err(_) => bar.dec(n.unsigned_abs()),
    };
    let fetched = source.fetch(&wanted, &progress);
    bar.finish_and_clear();
    let (fetched, kept) = match fetched {
        Ok(counts) => counts,
        Err(error) => {
            // What came so far is for the next run, where there is anything of it.
            if fs::read_dir(&stage).is_ok_and(|mut entries| entries.next().is_some()) {
                staged.keep();
            }
            return Err(error);
        }
    };
    let mut names: Vec<String> = plan.files.keys().cloned().collect();
    for (digest, _, gzip, below) in &plan.archives {
        let layer = layer_path(&stage, digest);
        for name in mlpack_oci::unpack(&layer, *gzip, below, &stage)? {
            if plan.wants(&name) {
                names.push(name);
            } else {
                let path = stage.join(&name);
                fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
            }
        }
        fs::remove_file(&layer).with_context(|| format!("cannot remove `{}`", layer.display()))?;
    }
    names.sort();
    match occupied {
        false => staged.seal()?,
        true => put_in_place(&stage, output, plan)?,
    }
    Ok((names, fetched, kept + there))
}

fn layer_path(stage: &Path, digest: &Sha256) -> PathBuf {
    stage.join(format!(".layer-{digest}"))
}

/// Files that are new or changed, into a directory that is there: all of them are right by now.
fn put_in_place(stage: &Path, output: &Path, plan: &Plan) -> anyhow::Result<()> {
    for name in plan.files.keys() {
        let (from, to) = (stage.join(name), output.join(name));
        if !from.is_file() {
            continue;
        }
        if let Some(parent) = to.parent() {
            // A link could lead out of the directory.
            let inside = parent.ancestors().take_while(|dir| *dir != output);
            if inside.into_iter().any(|dir| fs::symlink_metadata(dir).is_ok_and(|m| !m.is_dir())) {
                bail!("cannot put `{}` in place: its folder is a link or a file", to.display());
            }
            fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
        }
        fs::rename(&from, &to).with_context(|| format!("cannot put `{}` in place", to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, expected) in [
            ("*.gguf", "a-Q4_K_M.gguf", true),
            ("*.gguf", "a.gguf.txt", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("onnx/*", "onnx/model.onnx", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
