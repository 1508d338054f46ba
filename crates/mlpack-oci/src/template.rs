//! Chat templates: from the Jinja of a tokenizer to the Go template of an Ollama Modelfile.
//!
//! The Jinja source is not read but probed: short conversations of marked messages are rendered with `add_generation_prompt`
//! on, and the text around each mark tells what every role is wrapped in. A Go template is written from that, run by
//! a small interpreter of the constructs it uses, and compared with the Jinja template byte for byte on further
//! conversations. What is not equal is refused with a reason; Ollama then uses the Jinja in the GGUF.
//!
//! What Ollama does with a Go template is that of ollama fb30760, 2026-08-21, `template/template.go`: neighbouring
//! messages of one role arrive merged, `.System` holds all system messages, and a conversation that ends with the
//! assistant is one to be continued: it is rendered here as the generation prompt and the text so far.

use std::fmt;

mod emit;
mod go;
mod infer;
mod probe;
mod stops;

/// A Jinja chat template with what its tokenizer defines.
#[derive(Clone, Copy, Debug)]
pub struct ChatTemplate<'a> {
    /// The Jinja source.
    pub source: &'a str,
    /// The special tokens by their names in the tokenizer's config: `bos_token`, `eos_token`, `unk_token`, ….
    pub special_tokens: &'a [(&'a str, &'a str)],
    /// Whether the runtime puts the `bos_token` before every prompt (GGUF `tokenizer.ggml.add_bos_token`): then the
    /// one that the template starts with is left out.
    pub runtime_adds_bos: bool,
}

/// A Go template that renders as the Jinja template does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The value of TEMPLATE.
    pub go: String,
    /// Texts that end the assistant's turn or start the next one: values of `PARAMETER stop`.
    pub stops: Vec<String>,
    /// Where the two templates are known to part.
    pub notes: Vec<Note>,
}

/// Something that the Go template cannot do or that the Jinja template does not define.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The Jinja template trims blanks around messages; Go templates of Ollama cannot.
    TrimsContent,
    /// The Jinja template refuses system messages; the Go template puts them before the first user message, with a
    /// blank line between.
    SystemUnsupported,
    /// The Jinja template leaves system messages out, and so does the Go template.
    SystemIgnored,
    /// Conversations with roles in this order render differently.
    UnusualOrder(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::TrimsContent => {
                f.write_str("the chat template trims blanks around messages; the Modelfile's template keeps them")
            }
            Note::SystemUnsupported => f.write_str(
                "the chat template refuses system messages; the Modelfile's template puts them before the first user message",
            ),
            Note::SystemIgnored => f.write_str("the chat template leaves system messages out"),
            Note::UnusualOrder(roles) => {
                write!(f, "the Modelfile's template differs from the chat template for messages in the order {roles}")
            }
        }
    }
}

/// Why there is no Go template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotTranslatable {
    /// The source is larger than any chat template.
    #[error("the chat template has {found} bytes, more than {limit}")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
        /// The source's length in bytes.
        found: usize,
    },
    /// The source is not Jinja, or uses an extension.
    #[error("line {line} of the chat template does not parse: {}", mlpack_tensor::Escaped(reason))]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The parser's reason.
        reason: String,
    },
    /// The prompt depends on the date.
    #[error("the chat template uses the date (`strftime_now`)")]
    UsesClock,
    /// A conversation that every chat starts with is refused.
    #[error("the chat template cannot render the roles {roles}: {}", mlpack_tensor::Escaped(reason))]
    Fails {
        /// The roles.
        roles: String,
        /// The template's or the engine's reason.
        reason: String,
    },
    /// Rendering a short conversation takes too many steps.
    #[error("the chat template takes more than {fuel} steps for a short conversation")]
    TooLong {
        /// The limit.
        fuel: u64,
    },
    /// The messages do not come out once each, in order.
    #[error("the chat template does not render the messages of the roles {roles} once each and in order")]
    ContentChanged {
        /// The roles.
        roles: String,
    },
    /// The template treats a message in a way that the Go template has no form for.
    #[error(
        "the chat template is not expressible: for the roles {roles} it renders `{}`, the translation `{}`",
        mlpack_tensor::Escaped(expected),
        mlpack_tensor::Escaped(found)
    )]
    Differs {
        /// The roles.
        roles: String,
        /// What the Jinja template renders, from shortly before the first difference.
        expected: String,
        /// What the Go template renders there.
        found: String,
    },
}

/// Translates a chat template, or says why that is not possible.
///
/// ```
/// use mlpack_oci::{ChatTemplate, translate};
/// let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}\
///               {% if add_generation_prompt %}<|assistant|>{% endif %}";
/// let translation = translate(&ChatTemplate { source, special_tokens: &[], runtime_adds_bos: false }).unwrap();
/// assert_eq!(translation.stops, ["</s>", "<|user|>"]);
/// assert!(translation.go.contains("<|user|>{{ .Content }}</s>"));
/// ```
pub fn translate(template: &ChatTemplate<'_>) -> Result<Translation, NotTranslatable> {
    let prober = probe::Prober::new(template)?;
    let (shape, mut notes) = infer::infer(&prober)?;
    let go = emit::emit(&shape);
    let program = go::Program::parse(&go).expect("the emitted constructs are those that the interpreter reads");
    notes.extend(infer::verify(&prober, &shape, &program)?);
    Ok(Translation { go, stops: stops::stops(&shape, template), notes })
}

/// A message of a probe conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    role: &'static str,
    content: String,
}

/// The roles of a conversation, for messages: "user, assistant, user".
fn roles(messages: &[Message]) -> String {
    messages.iter().map(|m| m.role).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
