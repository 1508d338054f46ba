//! Where an artifact goes: `oci:DIR:TAG` or `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`.
//!
//! The grammar of repositories, tags and digests is that of the OCI distribution spec v1.1, "Pulling manifests".

use crate::{Error, ReferenceProblem};
use mlpack_fs::Sha256;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed reference.
///
/// In `oci:DIR:TAG` the tag is what follows the **last** colon, so a directory may contain colons; skopeo splits at
/// the first one and cannot open such a directory. The tag is required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `oci:DIR:TAG`: an image layout on disk.
    Layout {
        /// The layout's directory.
        dir: PathBuf,
        /// The tag.
        tag: Tag,
    },
    /// `HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX]`. The host is never implied.
    Registry {
        /// Host and port as written.
        host: String,
        /// The repository's name.
        repository: String,
        /// The tag, if there is one.
        tag: Option<Tag>,
        /// The manifest's digest, if there is one.
        digest: Option<Sha256>,
    },
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let parsed = match text.strip_prefix("oci:") {
            Some(rest) => parse_layout(rest),
            None => parse_registry(text),
        };
        parsed.map_err(|problem| Error::InvalidReference { text: text.to_owned(), problem })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Layout { dir, tag } => write!(f, "oci:{}:{tag}", dir.display()),
            Reference::Registry { host, repository, tag, digest } => {
                write!(f, "{host}/{repository}")?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                match digest {
                    Some(digest) => write!(f, "@sha256:{digest}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `TAG-suffix`, the suffix in lower case and with every character that a tag cannot hold replaced by `-`; `None`
    /// when the result is too long or the suffix is empty.
    pub fn with_suffix(&self, suffix: &str) -> Option<Tag> {
        let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '-' };
        let suffix: String = suffix.chars().map(fits).collect();
        if suffix.is_empty() { None } else { parse_tag(&format!("{}-{suffix}", self.0)) }
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Tag, Error> {
        parse_tag(text).ok_or_else(|| Error::InvalidReference { text: text.to_owned(), problem: ReferenceProblem::Tag })
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parse_tag(text: &str) -> Option<Tag> {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let (first, rest) = text.as_bytes().split_first()?;
    let valid = word(first) && rest.len() < 128 && rest.iter().all(|b| word(b) || *b == b'.' || *b == b'-');
    valid.then(|| Tag(text.to_owned()))
}

fn parse_layout(rest: &str) -> Result<Reference, ReferenceProblem> {
    let (dir, tag) = rest.rsplit_once(':').ok_or(ReferenceProblem::NoTag)?;
    // `oci:/a:b/c` has no tag, however many colons its directory has.
    if tag.contains('/') {
        return Err(ReferenceProblem::NoTag);
    }
    if dir.is_empty() {
        return Err(ReferenceProblem::NoDirectory);
    }
    let tag = parse_tag(tag).ok_or(ReferenceProblem::Tag)?;
    Ok(Reference::Layout { dir: PathBuf::from(dir), tag })
}

fn parse_registry(text: &str) -> Result<Reference, ReferenceProblem> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let hex = digest.strip_prefix("sha256:").ok_or(ReferenceProblem::Digest)?;
            (rest, Some(hex.parse().map_err(|_| ReferenceProblem::Digest)?))
        }
        None => (text, None),
    };
    let (host, name) = rest.split_once('/').ok_or(ReferenceProblem::NoHost)?;
    if !is_host(host) {
        return Err(ReferenceProblem::NoHost);
    }
    let (repository, tag) = match name.split_once(':') {
        Some((repository, tag)) => (repository, Some(parse_tag(tag).ok_or(ReferenceProblem::Tag)?)),
        None => (name, None),
    };
    if !is_repository(repository) {
        return Err(ReferenceProblem::Repository);
    }
    Ok(Reference::Registry { host: host.to_owned(), repository: repository.to_owned(), tag, digest })
}

/// A host must look like one, as Docker's rule has it: a dot, a port, or `localhost`. Otherwise `library/x` and
/// `./out:v1` would be hosts.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((v6, port)) => {
            if v6.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.len() <= 253
        && host.split('.').all(label)
        && port.is_none_or(|p| p.parse::<u16>().is_ok())
        && (host.contains('.') || port.is_some() || host == "localhost")
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` between slashes, at most 255 bytes.
fn is_repository(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component = |c: &str| {
        let separators_fit = c
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'));
        separators_fit && c.bytes().next().is_some_and(alphanumeric) && c.bytes().last().is_some_and(alphanumeric)
    };
    text.len() <= 255 && text.split('/').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> ReferenceProblem {
        match text.parse::<Reference>() {
            Err(Error::InvalidReference { problem, .. }) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_layout_splits_at_the_last_colon() {
        for (text, dir, tag) in [
            ("oci:out:v1", "out", "v1"),
            ("oci:/a:b/c:1.0-rc.1_x", "/a:b/c", "1.0-rc.1_x"),
            ("oci:a:b:c", "a:b", "c"),
            ("oci:./x y:latest", "./x y", "latest"),
        ] {
            let expected = Reference::Layout { dir: dir.into(), tag: tag.parse().unwrap() };
            let parsed: Reference = text.parse().unwrap();
            assert_eq!(parsed, expected);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_registry_has_a_host_a_repository_a_tag_and_a_digest() {
        let hex = "a".repeat(64);
        let text = format!("localhost:5000/team/legal-qa:v1@sha256:{hex}");
        let parsed: Reference = text.parse().unwrap();
        let expected = Reference::Registry {
            host: "localhost:5000".into(),
            repository: "team/legal-qa".into(),
            tag: Some("v1".parse().unwrap()),
            digest: Some(hex.parse().unwrap()),
        };
        assert_eq!(parsed, expected);
        assert_eq!(parsed.to_string(), text);
        for text in ["ghcr.io/a/b__c/d-e.f:x", "[::1]:5000/a", "localhost/a"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_references_say_which_part_is_wrong() {
        use ReferenceProblem::*;
        for (text, expected) in [
            ("oci:out", NoTag),
            ("oci:/a:b/c", NoTag),
            ("oci::v1", NoDirectory),
            ("oci:out:", Tag),
            ("oci:out:-v", Tag),
            ("oci:out:v 1", Tag),
            ("out:v1", NoHost),
            ("./out:v1", NoHost),
            ("library/x:v1", NoHost),
            ("", NoHost),
            ("ghcr.io:99999/x", NoHost),
            ("ghcr.io/A/b", Repository),
            ("ghcr.io/a//b", Repository),
            ("ghcr.io/a___b", Repository),
            ("ghcr.io/../b", Repository),
            ("ghcr.io/a:", Tag),
            ("ghcr.io/a@sha512:00", Digest),
            ("ghcr.io/a@sha256:ABC", Digest),
        ] {
            assert_eq!(problem(text), expected, "{text}");
        }
        assert_eq!(problem(&format!("oci:d:{}", "x".repeat(129))), Tag);
        assert!(format!("oci:d:{}", "x".repeat(128)).parse::<Reference>().is_ok());
    }

    #[test]
    fn a_suffix_fits_the_tag_grammar() {
        let tag: Tag = "1.0".parse().unwrap();
        assert_eq!(tag.with_suffix("Q4_K_M").unwrap().as_str(), "1.0-q4_k_m");
        assert_eq!(tag.with_suffix("fp16/é").unwrap().as_str(), "1.0-fp16--");
        assert_eq!(tag.with_suffix(""), None);
        assert_eq!(tag.with_suffix(&"x".repeat(125)), None);
    }
}
