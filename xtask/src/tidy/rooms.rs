//! The rooms (crates) and the arrows between them.

use crate::workspace;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Each room and the rooms it may use. docs/ARCHITECTURE.md tells the reasons; this table is what is enforced.
const ROOMS: &[(&str, &[&str])] = &[
    ("mlpack-tensor", &[]),
    ("mlpack-fs", &[]),
    ("mlpack-safetensors", &["mlpack-tensor", "mlpack-fs"]),
    ("mlpack-gguf", &["mlpack-tensor", "mlpack-fs"]),
    ("mlpack-quant", &["mlpack-tensor", "mlpack-fs"]),
    ("mlpack-device", &["mlpack-tensor", "mlpack-fs", "mlpack-quant"]),
    ("mlpack-lora", &["mlpack-tensor", "mlpack-fs", "mlpack-safetensors"]),
    ("mlpack-arch", &["mlpack-tensor", "mlpack-fs", "mlpack-safetensors"]),
    ("mlpack-onnx", &["mlpack-tensor", "mlpack-fs", "mlpack-arch"]),
    (
        "mlpack-convert",
        &[
            "mlpack-tensor",
            "mlpack-fs",
            "mlpack-safetensors",
            "mlpack-gguf",
            "mlpack-quant",
            "mlpack-device",
            "mlpack-lora",
            "mlpack-arch",
            "mlpack-onnx",
        ],
    ),
    ("mlpack-validate", &["mlpack-tensor", "mlpack-fs", "mlpack-arch", "mlpack-onnx", "mlpack-convert"]),
    ("mlpack-provenance", &["mlpack-tensor", "mlpack-fs"]),
    ("mlpack-oci", &["mlpack-tensor", "mlpack-fs"]),
    ("mlpack-registry", &["mlpack-tensor", "mlpack-fs", "mlpack-oci"]),
    (
        "mlpack",
        &[
            "mlpack-tensor",
            "mlpack-fs",
            "mlpack-safetensors",
            "mlpack-gguf",
            "mlpack-quant",
            "mlpack-device",
            "mlpack-lora",
            "mlpack-arch",
            "mlpack-onnx",
            "mlpack-convert",
            "mlpack-validate",
            "mlpack-provenance",
            "mlpack-oci",
            "mlpack-registry",
        ],
    ),
];

/// What xtask may use: the vocabulary and readers it compares files with, and the codecs that it compares row by row.
const XTASK: &[&str] = &["mlpack-tensor", "mlpack-fs", "mlpack-gguf", "mlpack-quant"];

/// Crates of the terminal. Libraries return values and errors; only the command line shows them.
const TERMINAL_CRATES: &[&str] =
    &["anstream", "anyhow", "clap", "clap_complete", "comfy-table", "indicatif", "owo-colors"];

const TOP_LEVEL: &[&str] = &["Cargo.toml", "README.md", "crates", "docs", "fixtures", "tests", "xtask"];
const TOP_LEVEL_EXTRA: &[&str] = &["Cargo.lock", "LICENSE"];

/// The root holds what the owner fixed, and nothing else but dotfiles.
pub fn top_level(files: &[String]) -> Vec<String> {
    let found: BTreeSet<&str> = files.iter().map(|file| file.split('/').next().unwrap_or(file)).collect();
    let missing = TOP_LEVEL
        .iter()
        .filter(|name| !found.contains(*name))
        .map(|name| format!("{name}: missing; the root always holds {}", TOP_LEVEL.join(" ")));
    let extra = found
        .iter()
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name) && !TOP_LEVEL_EXTRA.contains(name))
        .map(|name| format!("{name}: does not belong in the root; move it under one of {}", TOP_LEVEL.join(" ")));
    missing.chain(extra).collect()
}

/// Every room is in the table, and every dependency follows an arrow of it.
pub fn check(files: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let found: BTreeSet<&str> =
        files.iter().filter_map(|file| file.strip_prefix("crates/")?.split('/').next()).collect();
    let listed: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    for room in found.difference(&listed) {
        findings.push(format!("crates/{room}: not a room; add it to ROOMS in xtask/src/tidy/rooms.rs with the rooms it may use, and to docs/ARCHITECTURE.md"));
    }
    for room in listed.difference(&found) {
        findings
            .push(format!("crates/{room}: missing, but ROOMS in xtask/src/tidy/rooms.rs lists it; take its row out"));
    }
    for (room, may_use) in ROOMS.iter().filter(|(room, _)| found.contains(room)) {
        let file = format!("crates/{room}/Cargo.toml");
        findings.extend(manifest(&file, room, may_use, &workspace::read(&file)?)?);
    }
    findings.extend(manifest("xtask/Cargo.toml", "xtask", XTASK, &workspace::read("xtask/Cargo.toml")?)?);
    Ok(findings)
}

#[derive(serde::Deserialize)]
struct Manifest {
    package: Package,
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "dev-dependencies")]
    dev_dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "build-dependencies")]
    build_dependencies: BTreeMap<String, toml::Value>,
}

#[derive(serde::Deserialize)]
struct Package {
    name: String,
}

fn manifest(file: &str, room: &str, may_use: &[&str], text: &str) -> Result<Vec<String>> {
    let manifest: Manifest = toml::from_str(text).with_context(|| format!("cannot parse `{file}`"))?;
    let mut findings = Vec::new();
    if manifest.package.name != room {
        findings
            .push(format!("{file}: package is named `{}`; name it `{room}`, as its directory", manifest.package.name));
    }
    for name in manifest.dependencies.keys().chain(manifest.build_dependencies.keys()) {
        if (name == "mlpack" || name.starts_with("mlpack-")) && !may_use.contains(&name.as_str()) {
            findings.push(format!(
                "{file}: depends on `{name}`, which is no arrow of the house; {room} may use {}. \
                 Move the code to the room that may, or change ROOMS in xtask/src/tidy/rooms.rs and docs/ARCHITECTURE.md together",
                if may_use.is_empty() { "no other room".to_owned() } else { may_use.join(", ") },
            ));
        }
        if TERMINAL_CRATES.contains(&name.as_str()) && !matches!(room, "mlpack" | "xtask") {
            findings.push(format!("{file}: depends on `{name}`; only crates/mlpack talks to a terminal: return a value or a typed error instead"));
        }
    }
    let tables = [&manifest.dependencies, &manifest.dev_dependencies, &manifest.build_dependencies];
    for (name, value) in tables.into_iter().flatten() {
        if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
            findings.push(format!("{file}: `{name}` has a version of its own; put it into [workspace.dependencies] and write `{name}.workspace = true`"));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"mlpack-gguf\"\n{text}");
        manifest("Cargo.toml", "mlpack-gguf", &["mlpack-fs"], &text).unwrap()
    }

    #[test]
    fn an_arrow_outside_the_table_is_named_and_a_dev_dependency_is_not() {
        assert_eq!(of("[dependencies]\nmlpack-fs.workspace = true"), [""; 0]);
        assert_eq!(of("[dev-dependencies]\nmlpack-quant.workspace = true"), [""; 0]);
        let findings = of("[dependencies]\nmlpack-quant.workspace = true");
        assert!(findings.len() == 1 && findings[0].contains("`mlpack-quant`, which is no arrow"), "{findings:?}");
    }

    #[test]
    fn terminal_crates_and_private_versions_are_named() {
        let findings = of("[dependencies]\nclap.workspace = true");
        assert!(findings.len() == 1 && findings[0].contains("talks to a terminal"), "{findings:?}");
        let findings = of("[dev-dependencies]\ntempfile = \"3\"");
        assert!(findings.len() == 1 && findings[0].contains("tempfile.workspace = true"), "{findings:?}");
    }

    #[test]
    fn rooms_use_only_rooms_above_them() {
        for (i, (room, may_use)) in ROOMS.iter().enumerate() {
            for used in *may_use {
                assert!(ROOMS[..i].iter().any(|(above, _)| above == used), "{room} -> {used} makes a circle possible");
            }
        }
    }

    #[test]
    fn the_root_is_exactly_the_fixed_list() {
        let mut files: Vec<String> = TOP_LEVEL.iter().map(|name| format!("{name}/x")).collect();
        files.extend([".ci/run".to_owned(), "Cargo.lock".to_owned()]);
        assert_eq!(top_level(&files), [""; 0]);
        files.push("scripts/x.sh".to_owned());
        files.remove(0);
        let findings = top_level(&files);
        assert!(findings.len() == 2, "{findings:?}");
        assert!(findings[0].starts_with("Cargo.toml: missing") && findings[1].starts_with("scripts: does not belong"));
    }
}
