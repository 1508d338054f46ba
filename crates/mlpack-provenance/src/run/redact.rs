//! What a run record leaves out: folders of the machine that trained, credentials.

use std::collections::BTreeMap;

/// Names whose values are credentials, by a part of the name.
const SECRET_NAMES: [&str; 12] = [
    "password",
    "passwd",
    "secret",
    "api_key",
    "apikey",
    "access_key",
    "credential",
    "hub_token",
    "hf_token",
    "auth_token",
    "access_token",
    "api_token",
];
/// What stands in place of a credential.
const WITHHELD: &str = "(withheld)";

/// A table of values without host paths and credentials; the names of the changed ones go to `redacted`.
pub(super) fn redact_table(table: &mut BTreeMap<String, String>, redacted: &mut Vec<String>) {
    for (name, value) in table.iter_mut() {
        let clean = if is_secret(name) && !matches!(value.as_str(), "" | "None" | "null") {
            WITHHELD.to_owned()
        } else {
            redact(value)
        };
        if clean != *value {
            *value = clean;
            redacted.push(name.clone());
        }
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Replaces each absolute path in `text` by its last part, and takes user, password and query out of each URL.
pub(super) fn redact(text: &str) -> String {
    if is_absolute(text) && !text.chars().any(|c| matches!(c, '\'' | '"' | ',' | '\n')) {
        return last_part(text).to_owned();
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if is_boundary(c) {
            clean.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let end = rest.find(is_boundary).unwrap_or(rest.len());
        let (token, after) = rest.split_at(end);
        match token.split_once('=') {
            // `--data=/srv/…`
            Some((name, value)) if is_absolute(value) && !name.contains("://") => {
                clean.push_str(name);
                clean.push('=');
                clean.push_str(last_part(value));
            }
            _ if is_absolute(token) => clean.push_str(last_part(token)),
            _ => clean.push_str(&strip_url(token)),
        }
        rest = after;
    }
    clean
}

fn is_boundary(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\'' | '"' | '`' | ',' | ';' | '(' | ')' | '[' | ']' | '{' | '}')
}

fn is_absolute(token: &str) -> bool {
    let b = token.as_bytes();
    let drive = b.len() > 2 && b[0].is_ascii_alphabetic() && b[1] == b':' && matches!(b[2], b'\\' | b'/');
    (token.starts_with('/') && token.len() > 1)
        || token.starts_with("~/")
        || token.starts_with("\\\\")
        || token.starts_with("file:")
        || token.starts_with("sqlite:")
        || drive
}

fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default()
}

fn strip_url(token: &str) -> String {
    let Some((scheme, rest)) = token.split_once("://") else { return token.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (authority, path) = match rest.find('/') {
        Some(i) => rest.split_at(i),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or(authority);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_lose_their_folders_and_urls_their_secrets() {
        for (text, expected) in [
            ("/srv/joe/base model", "base model"),
            ("/srv/joe/run/", "run"),
            ("C:\\Users\\joe\\run", "run"),
            ("\\\\host\\share\\d.jsonl", "d.jsonl"),
            ("~/models/base", "base"),
            ("file:///srv/joe/data.jsonl", "data.jsonl"),
            ("{'train': '/srv/joe/a.jsonl', \"n\": 3}", "{'train': 'a.jsonl', \"n\": 3}"),
            ("['/a/b/c', 'd/e']", "['c', 'd/e']"),
            ("--data=/srv/joe/x.jsonl", "--data=x.jsonl"),
            ("https://joe:pw@example.org/o/r?sig=abc", "https://example.org/o/r"),
            ("s3://bucket/key", "s3://bucket/key"),
            ("org/model", "org/model"),
            ("a / b", "a / b"),
            ("0.0002", "0.0002"),
        ] {
            assert_eq!(redact(text), expected, "{text}");
        }
    }

    #[test]
    fn credentials_are_withheld_and_named() {
        let mut table = BTreeMap::from([
            ("hub_token".to_owned(), "hf_abc".to_owned()),
            ("push_to_hub_token".to_owned(), "None".to_owned()),
            ("pad_token".to_owned(), "</s>".to_owned()),
            ("output_dir".to_owned(), "/srv/joe/run".to_owned()),
        ]);
        let mut redacted = Vec::new();
        redact_table(&mut table, &mut redacted);
        assert_eq!(redacted, ["hub_token", "output_dir"]);
        let values: Vec<&str> = table.values().map(String::as_str).collect();
        assert_eq!(values, ["(withheld)", "run", "</s>", "None"]);
    }
}
