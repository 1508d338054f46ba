//! YAML 1.1 as PyYAML's `safe_load` reads it, as far as a model card needs: which scalars are strings.
//!
//! The syntax is parsed by saphyr-parser; what a plain scalar means is decided here, by the rules of YAML 1.1 that
//! PyYAML implements (`resolver.py`): `no` is a boolean, `1_000` and `12:30` are numbers, `2024-01-01` is a date.

use regex::Regex;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};
use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;

/// A value of a document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Yaml {
    Null,
    Bool(bool),
    /// A number; only whether it is zero matters.
    Number {
        zero: bool,
    },
    /// A date or another scalar that is not a string.
    Other,
    String(String),
    List(Vec<Rc<Yaml>>),
    /// String keys only; the last of equal keys counts, in the place of the first.
    Map(Vec<(String, Rc<Yaml>)>),
}

impl Yaml {
    /// The value of a key.
    pub fn find(&self, key: &str) -> Option<&Yaml> {
        match self {
            Yaml::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| &**v),
            _ => None,
        }
    }

    /// Python's `bool(value)`.
    pub fn is_truthy(&self) -> bool {
        match self {
            Yaml::Null => false,
            Yaml::Bool(b) => *b,
            Yaml::Number { zero } => !zero,
            Yaml::Other => true,
            Yaml::String(s) => !s.is_empty(),
            Yaml::List(l) => !l.is_empty(),
            Yaml::Map(m) => !m.is_empty(),
        }
    }

    /// The kind of value in words, for "found:".
    pub fn describe(&self) -> String {
        match self {
            Yaml::Null => "nothing".to_owned(),
            Yaml::Bool(_) => "true or false (as YAML reads yes, no, on and off)".to_owned(),
            Yaml::Number { .. } => "a number".to_owned(),
            Yaml::Other => "a date or another value that is not a string".to_owned(),
            Yaml::String(s) => format!("the string `{}`", mlpack_tensor::Escaped(s)),
            Yaml::List(l) => format!("a list of {}", l.len()),
            Yaml::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// What is wrong with a document.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    /// Line, from 1.
    pub line: usize,
    pub message: String,
}

/// Parses one document. Nothing but comments is null.
pub(crate) fn parse(text: &str) -> Result<Yaml, SyntaxError> {
    let mut loader = Loader { parser: Parser::new_from_str(text), anchors: HashMap::new(), line: 1 };
    loop {
        match loader.next()? {
            Event::DocumentStart(_) => break,
            Event::StreamEnd => return Ok(Yaml::Null),
            _ => {}
        }
    }
    let first = loader.next()?;
    let root = loader.node(first, 0)?;
    loop {
        match loader.next()? {
            Event::StreamEnd => return Ok(Rc::unwrap_or_clone(root)),
            Event::DocumentStart(_) => return Err(loader.error("one document is expected, and another starts here")),
            _ => {}
        }
    }
}

/// Lists and mappings may be nested this deep.
const DEPTH_LIMIT: usize = 64;

struct Loader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Rc<Yaml>>,
    line: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<Event<'a>, SyntaxError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(e)) => Err(scan_error(&e)),
            None => Ok(Event::StreamEnd),
        }
    }

    fn error(&self, message: &str) -> SyntaxError {
        SyntaxError { line: self.line, message: message.to_owned() }
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Rc<Yaml>, SyntaxError> {
        if depth > DEPTH_LIMIT {
            return Err(self.error("nested too deep"));
        }
        let (anchor, value) = match event {
            Event::Alias(id) => {
                return self.anchors.get(&id).cloned().ok_or_else(|| self.error("the anchor is not known yet"));
            }
            Event::Scalar(text, style, anchor, tag) => (anchor, self.scalar(&text, style, tag.as_deref())?),
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag, "seq")?;
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break,
                        event => list.push(self.node(event, depth + 1)?),
                    }
                }
                (anchor, Yaml::List(list))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag, "map")?;
                (anchor, self.mapping(depth)?)
            }
            _ => return Err(self.error("a value is expected here")),
        };
        let value = Rc::new(value);
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn mapping(&mut self, depth: usize) -> Result<Yaml, SyntaxError> {
        let mut entries: Vec<(String, Rc<Yaml>)> = Vec::new();
        let mut merged: Vec<Rc<Yaml>> = Vec::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => break,
                event => {
                    let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
                    let key = self.node(event, depth + 1)?;
                    if is_merge { None } else { Some(key) }
                }
            };
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            match key.as_deref() {
                None => merged.push(value),
                Some(Yaml::String(key)) => match entries.iter_mut().find(|(k, _)| k == key) {
                    Some(entry) => entry.1 = value,
                    None => entries.push((key.clone(), value)),
                },
                // No key of a model card is anything but a string.
                Some(_) => {}
            }
        }
        for source in merged {
            let sources = match &*source {
                Yaml::List(list) => list.clone(),
                _ => vec![source],
            };
            for source in sources {
                let Yaml::Map(more) = &*source else { return Err(self.error("`<<` needs a mapping")) };
                for (key, value) in more {
                    if !entries.iter().any(|(k, _)| k == key) {
                        entries.push((key.clone(), value.clone()));
                    }
                }
            }
        }
        Ok(Yaml::Map(entries))
    }

    fn check_tag(&self, tag: Option<Cow<'_, Tag>>, expected: &str) -> Result<(), SyntaxError> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == expected) => {
                Err(self.error("a tag that is not known"))
            }
            _ => Ok(()),
        }
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Yaml, SyntaxError> {
        let known = |suffix| tag.is_some_and(|t| t.is_yaml_core_schema() && t.suffix == suffix);
        match tag {
            _ if known("str") => Ok(Yaml::String(text.to_owned())),
            _ if known("null") => Ok(Yaml::Null),
            _ if known("bool") || known("int") || known("float") || known("timestamp") || known("binary") => {
                Ok(Yaml::Other)
            }
            Some(_) => Err(self.error("a tag that is not known")),
            None if style == ScalarStyle::Plain => resolve(text).ok_or_else(|| self.error("`=` cannot be read")),
            None => Ok(Yaml::String(text.to_owned())),
        }
    }
}

fn scan_error(error: &ScanError) -> SyntaxError {
    SyntaxError { line: error.marker().line(), message: error.info().to_owned() }
}

macro_rules! pattern {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(&format!("^(?:{})$", $text)).expect("the pattern is a constant"));
    };
}

pattern!(
    FLOAT,
    concat!(
        r"[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?",
        r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    )
);
pattern!(
    INTEGER,
    concat!(
        r"[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+",
        r"|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+"
    )
);
pattern!(
    TIMESTAMP,
    concat!(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}",
        r"(?:\.[0-9]*)?(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?"
    )
);

/// What a plain scalar is; `None` for `=`, which PyYAML has no value for.
fn resolve(text: &str) -> Option<Yaml> {
    Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Yaml::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Yaml::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Yaml::Bool(false),
        "=" => return None,
        _ if FLOAT.is_match(text) || INTEGER.is_match(text) => {
            let digits = text.split(['e', 'E']).next().unwrap_or(text).trim_start_matches(['-', '+']);
            let digits = digits.strip_prefix("0x").or(digits.strip_prefix("0b")).unwrap_or(digits);
            Yaml::Number { zero: digits.chars().all(|c| matches!(c, '0' | '_' | '.' | ':')) }
        }
        _ if TIMESTAMP.is_match(text) => Yaml::Other,
        _ => Yaml::String(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_follow_yaml_1_1() {
        let table = [
            ("no", Yaml::Bool(false)),
            ("Yes", Yaml::Bool(true)),
            ("nO", Yaml::String("nO".into())),
            ("1_000", Yaml::Number { zero: false }),
            ("0.0", Yaml::Number { zero: true }),
            ("0x0", Yaml::Number { zero: true }),
            ("12:30:45", Yaml::Number { zero: false }),
            ("1e3", Yaml::String("1e3".into())),
            ("1.0e+3", Yaml::Number { zero: false }),
            ("0o7", Yaml::String("0o7".into())),
            ("2024-01-01", Yaml::Other),
            ("2024-1-1", Yaml::String("2024-1-1".into())),
            ("~", Yaml::Null),
            ("v1.0", Yaml::String("v1.0".into())),
        ];
        for (text, expected) in table {
            assert_eq!(resolve(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn aliases_share_and_do_not_multiply() {
        let mut text = String::from("a0: &a0 [x]\n");
        for i in 1..60 {
            text += &format!("a{i}: &a{i} [*a{p}, *a{p}, *a{p}]\n", p = i - 1);
        }
        let Yaml::Map(entries) = parse(&text).unwrap() else { panic!("a mapping") };
        assert_eq!(entries.len(), 60);
    }

    #[test]
    fn deep_nesting_is_refused() {
        let error = parse(&"[".repeat(100_000)).unwrap_err();
        assert_eq!(error.line, 1);
    }
}
