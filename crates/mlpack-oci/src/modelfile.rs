//! Modelfiles: what `ollama create` reads (ollama fb30760, 2026-08-21, `parser/parser.go` and `api/types.go`).
//!
//! ```text
//! FROM ./legal-qa-Q4_K_M.gguf
//! TEMPLATE """{{ range .Messages }}…{{ end }}"""
//! PARAMETER stop "<|im_end|>"
//! PARAMETER temperature 0.7
//! ```
//!
//! A value is bare up to the end of the line, `"…"` or `"""…"""`; there are no escapes, and Ollama drops every
//! character that Go does not call printable. [`Modelfile::render`] therefore reads each value back with the parser
//! here before it writes it.

use crate::{Error, ModelfileProblem};
use mlpack_fs::read_to_string_bounded;
use std::fmt::Write as _;
use std::path::Path;

mod parameter;
mod parse;
pub(crate) mod quote;

pub use parameter::{Parameter, ParameterKind, parameter_names};

/// Largest Modelfile read: licences of several models fit.
const MODELFILE_LIMIT: u64 = 4 << 20;

/// A Modelfile: instructions in order, at least one of them FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modelfile {
    // Lines before the instructions.
    comments: Vec<String>,
    instructions: Vec<Instruction>,
}

/// One instruction with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// The model: a path relative to the Modelfile, or a model's name.
    From(String),
    /// The prompt template, a Go template.
    Template(String),
    /// The system message.
    System(String),
    /// A LoRA adapter: a path relative to the Modelfile.
    Adapter(String),
    /// A draft model for speculative decoding: a path.
    Draft(String),
    /// The name of a built-in prompt renderer.
    Renderer(String),
    /// The name of a built-in output parser.
    Parser(String),
    /// A parameter.
    Parameter(Parameter),
    /// The text of a licence.
    License(String),
    /// A message of the conversation that every chat starts with.
    Message {
        /// Who says it.
        role: Role,
        /// What is said.
        content: String,
    },
    /// The least version of Ollama, such as `0.14.0`.
    Requires(String),
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `system`
    System,
    /// `user`
    User,
    /// `assistant`
    Assistant,
}

impl Role {
    /// The word in a Modelfile.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl Modelfile {
    /// A Modelfile with its FROM: a path relative to the file, or a model's name.
    pub fn new(from: impl Into<String>) -> Modelfile {
        Modelfile { comments: Vec::new(), instructions: vec![Instruction::From(from.into())] }
    }

    /// Reads a Modelfile.
    pub fn open(path: &Path) -> Result<Modelfile, Error> {
        Modelfile::parse(path, &read_to_string_bounded(path, MODELFILE_LIMIT)?)
    }

    /// Parses a Modelfile as Ollama does; `path` is for messages only. Comments are not kept.
    pub fn parse(path: &Path, text: &str) -> Result<Modelfile, Error> {
        let failed = |(line, problem)| Error::MalformedModelfile { path: path.to_owned(), line, problem };
        let commands = parse::commands(text).map_err(failed)?;
        let instructions: Vec<Instruction> =
            commands.into_iter().map(parse::instruction).collect::<Result<_, _>>().map_err(failed)?;
        if !instructions.iter().any(|i| matches!(i, Instruction::From(_))) {
            return Err(failed((text.lines().count().max(1), ModelfileProblem::NoFrom)));
        }
        Ok(Modelfile { comments: Vec::new(), instructions })
    }

    /// The instructions in order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Adds an instruction. Where Ollama takes only the last of several (TEMPLATE, SYSTEM, every parameter but `stop`,
    /// …), the earlier one is replaced in its place; FROM, ADAPTER, DRAFT, LICENSE, MESSAGE and `stop` add up.
    pub fn set(&mut self, instruction: Instruction) {
        let replaced = self.instructions.iter_mut().find(|earlier| replaces(&instruction, earlier));
        match replaced {
            Some(earlier) => *earlier = instruction,
            None => self.instructions.push(instruction),
        }
    }

    /// Adds a comment before the instructions. Line breaks in it become spaces.
    pub fn comment(&mut self, text: impl Into<String>) {
        self.comments.push(text.into().replace(['\n', '\r'], " "));
    }

    /// The names of parameters in it that Ollama only warns about and ignores.
    pub fn deprecated_parameters(&self) -> Vec<&'static str> {
        let deprecated = |i: &Instruction| match i {
            Instruction::Parameter(p) if p.kind() == ParameterKind::Ignored => Some(p.name()),
            _ => None,
        };
        self.instructions.iter().filter_map(deprecated).collect()
    }

    /// The file's text. The same instructions give the same bytes.
    pub fn render(&self) -> Result<String, Error> {
        let mut text: String = self.comments.iter().map(|comment| format!("# {comment}\n")).collect();
        for instruction in &self.instructions {
            let (name, head, value, style) = instruction.parts();
            let value =
                quote::quote(value, style).map_err(|problem| Error::Unquotable { instruction: name, problem })?;
            writeln!(text, "{name} {head}{value}").expect("writing to a string does not fail");
        }
        Ok(text)
    }
}

impl Instruction {
    /// The keyword, what stands before the value, the value, and how it is quoted by preference.
    fn parts(&self) -> (&'static str, String, &str, quote::Style) {
        use quote::Style::{Bare, Block, Quoted};
        let none = String::new();
        match self {
            Instruction::From(v) => ("FROM", none, v, Bare),
            Instruction::Template(v) => ("TEMPLATE", none, v, Block),
            Instruction::System(v) => ("SYSTEM", none, v, Block),
            Instruction::Adapter(v) => ("ADAPTER", none, v, Bare),
            Instruction::Draft(v) => ("DRAFT", none, v, Bare),
            Instruction::Renderer(v) => ("RENDERER", none, v, Bare),
            Instruction::Parser(v) => ("PARSER", none, v, Bare),
            Instruction::License(v) => ("LICENSE", none, v, Block),
            Instruction::Requires(v) => ("REQUIRES", none, v, Bare),
            Instruction::Message { role, content } => ("MESSAGE", format!("{} ", role.name()), content, Quoted),
            Instruction::Parameter(p) => {
                let style = if p.kind() == ParameterKind::TextList { Quoted } else { Bare };
                ("PARAMETER", format!("{} ", p.name()), p.value(), style)
            }
        }
    }
}

fn replaces(new: &Instruction, earlier: &Instruction) -> bool {
    match (new, earlier) {
        (Instruction::Parameter(new), Instruction::Parameter(earlier)) => {
            new.name() == earlier.name() && new.kind() != ParameterKind::TextList
        }
        (Instruction::Template(_), Instruction::Template(_))
        | (Instruction::System(_), Instruction::System(_))
        | (Instruction::Renderer(_), Instruction::Renderer(_))
        | (Instruction::Parser(_), Instruction::Parser(_))
        | (Instruction::Requires(_), Instruction::Requires(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
