//! Ollama's Modelfile grammar: a state machine over characters.
//!
//! ```text
//! line start   `#` to the end of the line is a comment; blanks are skipped; else a keyword (letters) and one blank
//! PARAMETER    [A-Za-z0-9_]* and one blank
//! MESSAGE      [A-Za-z]* and one blank
//! value        up to the first line end at which its trimmed text is complete: bare text always is, text that
//!              starts with `"` or `"""` when it also ends with it
//! ```

use super::{Instruction, Parameter, Role, quote};
use crate::{Error, ModelfileProblem};

/// A keyword with its value, unquoted.
#[derive(Debug)]
pub(super) struct Command {
    pub line: usize,
    // In lower case.
    pub keyword: String,
    // The name of a parameter or the role of a message.
    pub name: String,
    pub value: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Comment,
    Keyword,
    Name,
    Value,
}

const KEYWORDS: [&str; 11] = [
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
];

/// Splits a Modelfile. Problems come with their line, from 1.
pub(super) fn commands(text: &str) -> Result<Vec<Command>, (usize, ModelfileProblem)> {
    let mut commands = Vec::new();
    let mut state = State::Start;
    let mut buffer = String::new();
    let mut command = Command { line: 1, keyword: String::new(), name: String::new(), value: String::new() };
    let mut line = 1;
    for c in text.chars() {
        let blank = c == ' ' || c == '\t';
        let line_end = c == '\n' || c == '\r';
        match state {
            State::Start if c == '#' => state = State::Comment,
            State::Start if blank || line_end => {}
            State::Start => {
                command = Command { line, keyword: String::new(), name: String::new(), value: String::new() };
                buffer.clear();
                buffer.push(c);
                state = State::Keyword;
            }
            State::Comment if line_end => state = State::Start,
            State::Comment => {}
            State::Keyword if c.is_ascii_alphabetic() => buffer.push(c),
            State::Keyword => {
                command.keyword = buffer.to_ascii_lowercase();
                if !blank || !KEYWORDS.contains(&command.keyword.as_str()) {
                    return Err((command.line, ModelfileProblem::Instruction(buffer)));
                }
                buffer.clear();
                let named = matches!(command.keyword.as_str(), "parameter" | "message");
                state = if named { State::Name } else { State::Value };
            }
            State::Name if c.is_ascii_alphanumeric() || c == '_' => buffer.push(c),
            State::Name if blank && !buffer.is_empty() => {
                command.name = std::mem::take(&mut buffer);
                state = State::Value;
            }
            State::Name => {
                buffer.push(c);
                return Err((command.line, ModelfileProblem::Name(buffer)));
            }
            State::Value if line_end => match unquote(buffer.trim()) {
                Some(value) => {
                    command.value = value.to_owned();
                    let next = Command { line, keyword: String::new(), name: String::new(), value: String::new() };
                    commands.push(std::mem::replace(&mut command, next));
                    state = State::Start;
                }
                None => buffer.push(c),
            },
            State::Value => {
                if quote::is_kept(c) {
                    buffer.push(c);
                }
            }
        }
        line += usize::from(c == '\n');
    }
    match state {
        State::Start | State::Comment => {}
        State::Value => match unquote(buffer.trim()) {
            Some(value) => {
                command.value = value.to_owned();
                commands.push(command);
            }
            None => return Err((command.line, ModelfileProblem::Incomplete)),
        },
        State::Keyword | State::Name => return Err((command.line, ModelfileProblem::Incomplete)),
    }
    Ok(commands)
}

/// The text without its quotes; `None` when it has opening quotes and no closing ones.
fn unquote(text: &str) -> Option<&str> {
    for quotes in ["\"\"\"", "\""] {
        if let Some(rest) = text.strip_prefix(quotes) {
            return rest.strip_suffix(quotes);
        }
    }
    Some(text)
}

/// Checks a command's value.
pub(super) fn instruction(command: Command) -> Result<Instruction, (usize, ModelfileProblem)> {
    let Command { line, keyword, name, value } = command;
    Ok(match keyword.as_str() {
        "from" => Instruction::From(value),
        "license" => Instruction::License(value),
        "template" => Instruction::Template(value),
        "system" => Instruction::System(value),
        "adapter" => Instruction::Adapter(value),
        "draft" => Instruction::Draft(value),
        "renderer" => Instruction::Renderer(value),
        "parser" => Instruction::Parser(value),
        "parameter" => {
            let parameter = Parameter::new(&name, &value).map_err(|e| match e {
                Error::ParameterValue { name, kind, found } => (line, ModelfileProblem::Value { name, kind, found }),
                _ => (line, ModelfileProblem::Parameter(name)),
            })?;
            Instruction::Parameter(parameter)
        }
        "message" => {
            let roles = [Role::System, Role::User, Role::Assistant];
            let role = roles.into_iter().find(|r| r.name() == name).ok_or((line, ModelfileProblem::Role(name)))?;
            Instruction::Message { role, content: value }
        }
        "requires" => {
            let version = value.strip_prefix('v').unwrap_or(&value).to_owned();
            if !is_version(&version) {
                return Err((line, ModelfileProblem::Version(value)));
            }
            Instruction::Requires(version)
        }
        _ => unreachable!("commands() accepts no other keyword"),
    })
}

/// `MAJOR[.MINOR[.PATCH]]` with an optional `-pre` or `+build` after the patch, as Go's semver package takes it.
fn is_version(text: &str) -> bool {
    let (core, rest) = match text.find(['-', '+']) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, "0"),
    };
    let parts: Vec<&str> = core.split('.').collect();
    let number = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && (p == "0" || !p.starts_with('0'));
    let has_rest = core.len() != text.len();
    parts.len() <= 3
        && (!has_rest || parts.len() == 3)
        && parts.iter().all(|p| number(p))
        && !rest.is_empty()
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+".contains(&b))
}
