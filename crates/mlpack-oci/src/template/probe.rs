//! Rendering the Jinja template as transformers does (5.23, `utils/chat_template_utils.py`): block trimming on, loop
//! controls, Python's string methods, `raise_exception`, `tools` and `documents` none. `strftime_now` is left out.

use super::{ChatTemplate, Message, NotTranslatable, roles};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use std::collections::BTreeMap;

/// The longest chat templates, with tool support for several formats, have about 30 KB.
const SOURCE_LIMIT: usize = 256 << 10;
/// Steps of the engine for one conversation of a few short messages.
const FUEL: u64 = 500_000;

const NAME: &str = "chat_template";

pub(super) struct Prober<'a> {
    environment: Environment<'a>,
    template: ChatTemplate<'a>,
}

impl<'a> Prober<'a> {
    pub fn new(template: &ChatTemplate<'a>) -> Result<Prober<'a>, NotTranslatable> {
        let source = template.source;
        if source.len() > SOURCE_LIMIT {
            return Err(NotTranslatable::TooLarge { limit: SOURCE_LIMIT, found: source.len() });
        }
        if source.contains("strftime_now") {
            return Err(NotTranslatable::UsesClock);
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the default ones"));
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // In Jinja2 none is not iterable; minijinja iterates it as an empty list.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|e| NotTranslatable::Syntax {
            line: e.line().unwrap_or(1),
            reason: e.detail().map_or_else(|| e.kind().to_string(), str::to_owned),
        })?;
        Ok(Prober { environment, template: *template })
    }

    /// What the model reads before it answers: the conversation with the generation prompt. A conversation that ends
    /// with the assistant is one to be continued.
    pub fn prompt(&self, messages: &[Message]) -> Result<String, NotTranslatable> {
        match messages {
            [before @ .., last] if last.role == "assistant" && !before.is_empty() => {
                Ok(self.render(before, true)? + &last.content)
            }
            _ => self.render(messages, true),
        }
    }

    /// What the Jinja template renders, without the `bos_token` that the runtime adds.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, NotTranslatable> {
        let mut context: BTreeMap<&str, Value> =
            self.template.special_tokens.iter().map(|(name, text)| (*name, Value::from(*text))).collect();
        let messages_value: Vec<Value> =
            messages.iter().map(|m| Value::from_pairs([("role", m.role), ("content", m.content.as_str())])).collect();
        context.insert("messages", Value::from(messages_value));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        let template = self.environment.get_template(NAME).expect("the template was added under that name");
        let text = template.render(context).map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => NotTranslatable::TooLong { fuel: FUEL },
            kind => NotTranslatable::Fails {
                roles: roles(messages),
                reason: e.detail().map_or_else(|| kind.to_string(), str::to_owned),
            },
        })?;
        Ok(match self.bos().and_then(|bos| text.strip_prefix(bos)) {
            Some(rest) => rest.to_owned(),
            None => text,
        })
    }

    /// The token that the runtime puts before every prompt.
    fn bos(&self) -> Option<&'a str> {
        let bos = self.template.special_tokens.iter().find(|(name, _)| *name == "bos_token");
        bos.map(|(_, text)| *text).filter(|text| self.template.runtime_adds_bos && !text.is_empty())
    }
}

/// `{% generation %}` … `{% endgeneration %}` mark the assistant's text for training in transformers and render nothing;
/// they become an `if` that always holds, which leaves the blocks' trimming as it is.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let name_at = tag.len() - tag.trim_start_matches(['-', '+', ' ']).len();
        let (blanks, name) = tag.split_at(name_at);
        let replaced =
            [("generation", " if true "), ("endgeneration", " endif ")].into_iter().find_map(|(from, to)| {
                let after = name.strip_prefix(from)?;
                after.trim_start_matches(['-', '+', ' ']).starts_with("%}").then_some((to, after))
            });
        rest = match replaced {
            Some((to, after)) => {
                out.push_str(blanks);
                out.push_str(to);
                after
            }
            None => tag,
        };
    }
    out + rest
}
