//! The model card: the YAML block at the top of README.md.

use super::{Fact, name, set_text};
use crate::Error;
use crate::yaml::{self, Yaml};
use mlpack_tensor::Metadata;
use regex::Regex;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::LazyLock;

/// Bytes of the largest README.md that is read.
const FILE_LIMIT: u64 = 16 << 20;

/// A model card; without a file or a block, one that says nothing.
#[derive(Debug)]
pub(super) struct Card {
    path: PathBuf,
    content: Yaml,
}

impl Card {
    /// A card that says nothing.
    pub fn empty(dir: &Path) -> Card {
        Card { path: dir.join("README.md"), content: Yaml::Null }
    }

    /// Reads `DIR/README.md`.
    pub fn read(dir: &Path, files: &mut Vec<PathBuf>) -> Result<Card, Error> {
        let path = dir.join("README.md");
        if !path.is_file() {
            return Ok(Card::empty(dir));
        }
        let bytes = mlpack_fs::read_bounded(&path, FILE_LIMIT)?;
        // A byte-order mark is kept: with one the first line is not "---", and there is no block.
        let text = String::from_utf8(bytes).map_err(|e| {
            let offset = e.utf8_error().valid_up_to() as u64;
            Error::Fs(mlpack_fs::Error::NotUtf8 { path: path.clone(), offset })
        })?;
        let content = match front_matter(&text) {
            None => Yaml::Null,
            Some(block) => yaml::parse(&block).map_err(|e| Error::Yaml {
                path: path.clone(),
                // The block starts on the second line of the file.
                line: e.line + 1,
                message: e.message,
            })?,
        };
        files.push(path.clone());
        Ok(Card { path, content })
    }

    /// The first of these keys that is there and not null.
    pub fn first(&self, keys: &[&'static str]) -> Option<Fact> {
        keys.iter().find_map(|&key| match self.content.find(key) {
            None | Some(Yaml::Null) => None,
            Some(value) => Some(Fact::Card { key, value: value.clone() }),
        })
    }

    /// The value as text; `None` when it is empty, and an error when it is not text.
    pub fn text<'a>(&self, key: &str, value: &'a Yaml) -> Result<Option<&'a str>, Error> {
        match value {
            Yaml::String(s) if s.is_empty() => Ok(None),
            Yaml::String(s) => Ok(Some(s)),
            other if !other.is_truthy() => Ok(None),
            other => Err(self.wrong(key, "a string", other)),
        }
    }

    /// Appends `general.license` and what belongs to it.
    pub fn append_license(&self, metadata: &mut Metadata) -> Result<(), Error> {
        match self.content.find("license") {
            Some(Yaml::List(list)) => {
                let names = self.strings("license", list)?;
                set_text(metadata, "general.license", &names.join(","));
            }
            Some(value) => set_text(metadata, "general.license", self.text("license", value)?.unwrap_or_default()),
            None => {}
        }
        for (key, gguf_key) in [("license_name", "general.license.name"), ("license_link", "general.license.link")] {
            if let Some(value) = self.content.find(key) {
                set_text(metadata, gguf_key, self.text(key, value)?.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Appends base models, datasets, tags and languages.
    pub fn append_lists(&self, metadata: &mut Metadata, parameter_count: i128) -> Result<(), Error> {
        let base_models = ["base_model", "base_models", "base_model_sources"];
        let datasets = ["datasets", "dataset", "dataset_sources"];
        for (keys, kind) in [(base_models, "base_model"), (datasets, "dataset")] {
            let Some(key) = keys.into_iter().find(|key| self.content.find(key).is_some()) else { continue };
            let entries: Vec<Rc<Yaml>> = match self.content.find(key) {
                Some(Yaml::List(list)) => list.clone(),
                Some(value @ Yaml::String(_)) => vec![Rc::new(value.clone())],
                _ => Vec::new(),
            };
            metadata.set(format!("general.{kind}.count"), (entries.len() as u32).into());
            for (i, entry) in entries.iter().enumerate() {
                for (field, text) in self.source(key, entry, parameter_count)? {
                    set_text(metadata, &format!("general.{kind}.{i}.{field}"), &text);
                }
            }
        }
        for (keys, gguf_key) in
            [(["tags", "pipeline_tag"], "general.tags"), (["languages", "language"], "general.languages")]
        {
            let mut all = Vec::new();
            for key in keys {
                match self.content.find(key) {
                    Some(Yaml::String(s)) => all.push(s.clone()),
                    Some(Yaml::List(list)) => all.extend(self.strings(key, list)?),
                    _ => {}
                }
            }
            if !all.is_empty() {
                metadata.set(gguf_key, all.into());
            }
        }
        Ok(())
    }

    /// What an entry of a list of models or datasets says, in the order of the keys.
    fn source(&self, key: &str, entry: &Yaml, parameter_count: i128) -> Result<Vec<(&'static str, String)>, Error> {
        const FIELDS: [&str; 9] =
            ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];
        match entry {
            Yaml::String(id) if ["http://", "https://", "ssh://"].iter().any(|s| id.starts_with(s)) => {
                let mut fields = match HUGGING_FACE_URL.captures(id) {
                    Some(found) if !found[1].is_empty() => id_fields(&found[1], parameter_count),
                    _ => Vec::new(),
                };
                fields.retain(|(field, _)| *field != "repo_url");
                fields.push(("repo_url", id.clone()));
                Ok(fields)
            }
            Yaml::String(id) => Ok(id_fields(id, parameter_count)),
            Yaml::Map(_) => {
                let mut fields = Vec::new();
                for field in FIELDS {
                    if let Some(value) = entry.find(field)
                        && let Some(text) = self.text(&format!("{key}.{field}"), value)?
                    {
                        fields.push((field, text.to_owned()));
                    }
                }
                Ok(fields)
            }
            // The converter counts such an entry and says nothing about it.
            _ => Ok(Vec::new()),
        }
    }

    fn strings(&self, key: &str, list: &[Rc<Yaml>]) -> Result<Vec<String>, Error> {
        list.iter()
            .map(|item| match &**item {
                Yaml::String(s) => Ok(s.clone()),
                other => Err(self.wrong(key, "a list of strings", other)),
            })
            .collect()
    }

    fn wrong(&self, key: &str, expected: &'static str, found: &Yaml) -> Error {
        Error::WrongValue { path: self.path.clone(), field: key.to_owned(), expected, found: found.describe() }
    }
}

static HUGGING_FACE_URL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^https?://huggingface.co/([^/]+/[^/]+)$").expect("the pattern is a constant"));

fn id_fields(id: &str, parameter_count: i128) -> Vec<(&'static str, String)> {
    let found = name::components(id, parameter_count);
    let mut fields = vec![("name", name::title(&found.full_name))];
    fields.extend(found.version.map(|v| ("version", v)));
    if let Some(organization) = found.organization {
        fields.push(("organization", name::title(&organization)));
        fields.push(("repo_url", format!("https://huggingface.co/{organization}/{}", found.full_name)));
    }
    fields
}

/// The text between the first line, `---`, and the next such line, with the two repairs that the converter makes.
fn front_matter(text: &str) -> Option<String> {
    let mut lines = python_lines(text);
    if lines.next()? != "---" {
        return None;
    }
    let mut block: String = lines.take_while(|line| *line != "---").collect::<Vec<_>>().join("\n");
    block.push('\n');
    // YAML 1.1 reads the language "no" as false.
    Some(block.replace("- no\n", "- \"no\"\n").replace('\t', "  "))
}

/// Python's `str.splitlines` of a text read in text mode.
fn python_lines(text: &str) -> impl Iterator<Item = &str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(end) = rest.find(ENDS) else { return Some(std::mem::take(&mut rest)) };
        let line = &rest[..end];
        rest = rest[end..].strip_prefix("\r\n").unwrap_or_else(|| {
            let mut chars = rest[end..].chars();
            chars.next();
            chars.as_str()
        });
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_needs_its_first_line() {
        assert_eq!(front_matter("---\r\na: 1\r\n---\r\nb"), Some("a: 1\n".to_owned()));
        assert_eq!(front_matter("---\na: 1"), Some("a: 1\n".to_owned()));
        assert_eq!(front_matter("\u{feff}---\na: 1\n---\n"), None);
        assert_eq!(front_matter(" ---\na: 1\n---\n"), None);
        assert_eq!(front_matter(""), None);
    }

    #[test]
    fn lines_end_where_python_ends_them() {
        assert_eq!(python_lines("a\rb\r\nc\u{2028}d\n\n").collect::<Vec<_>>(), ["a", "b", "c", "d", ""]);
    }
}
