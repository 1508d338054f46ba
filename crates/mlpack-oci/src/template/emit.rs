//! Writing a shape as a Go template.
//!
//! ```text
//! {{ range $i, $_ := .Messages }}
//! {{- $last := eq (len (slice $.Messages $i)) 1 }}
//! {{- if eq .Role "user" }}<|im_start|>user
//! {{ .Content }}<|im_end|>
//! {{ else if … }}…{{ end }}
//! {{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
//! {{ end }}
//! {{- end }}
//! ```
//!
//! Between two actions stands a line end that the second one trims (`{{-`); beside literal text nothing is trimmed, so
//! the text comes out as it is.

use super::infer::{Shape, System, Wrap};
use crate::modelfile::quote;

pub(super) fn emit(shape: &Shape) -> String {
    let head = common_head(shape).unwrap_or_default();
    // A merged or left-out system message comes before the first turn that is rendered.
    let counts_turns = !matches!(shape.system, System::Turn(_));
    let differs = |wrap: &Wrap| wrap.first[head.len()..] != wrap.before;
    let marks_first = counts_turns && (differs(&shape.user) || differs(&shape.assistant));
    let first = if marks_first { "$first" } else { "eq $i 0" };
    let mut out = Writer { text: String::new(), after_action: false, head_len: head.len(), first };
    out.literal(head);
    if marks_first {
        out.action("$first := true");
    }
    if matches!(shape.system, System::FirstUser { .. }) {
        out.action("$system := .System");
    }
    out.action("range $i, $_ := .Messages");
    if uses_last(shape) {
        out.action("$last := eq (len (slice $.Messages $i)) 1");
    }
    let mut keyword = "if";
    if let System::Turn(wrap) = &shape.system {
        out.action("if eq .Role \"system\"");
        out.before(wrap);
        out.action(".Content");
        out.literal(&wrap.after);
        keyword = "else if";
    }
    out.action(&format!("{keyword} eq .Role \"user\""));
    out.before(&shape.user);
    match &shape.system {
        System::FirstUser { before, after } => {
            out.action("if $system");
            out.literal(before);
            out.action("$system");
            out.literal(after);
            out.action("$system = \"\"");
            out.action("end");
        }
        System::LastUser { before, after } => {
            // With a last assistant message to be continued, the last user message is the one before it.
            out.action("if and $.System (le (len (slice $.Messages $i)) 2)");
            out.literal(before);
            out.action("$.System");
            out.literal(after);
            out.action("end");
        }
        System::Turn(_) | System::Ignored => {}
    }
    out.action(".Content");
    out.literal(&shape.user.after);
    if marks_first {
        out.action("$first = false");
    }
    out.action("else if eq .Role \"assistant\"");
    emit_assistant(&mut out, shape);
    if marks_first {
        out.action("$first = false");
    }
    out.action("end");
    if !shape.generation.is_empty() {
        out.action("if and $last (ne .Role \"assistant\")");
        out.literal(&shape.generation);
        out.action("end");
    }
    out.action("end");
    out.text
}

/// A last assistant message is continued: it starts with the generation prompt and does not end.
fn emit_assistant(out: &mut Writer, shape: &Shape) {
    let wrap = &shape.assistant;
    if shape.generation == wrap.before {
        out.before(wrap);
    } else if shape.generation.is_empty() {
        out.action("if not $last");
        out.before(wrap);
        out.action("end");
    } else {
        out.action("if $last");
        out.literal(&shape.generation);
        out.action("else");
        out.before(wrap);
        out.action("end");
    }
    out.action(".Content");
    if !wrap.after.is_empty() {
        out.action("if not $last");
        out.literal(&wrap.after);
        out.action("end");
    }
}

fn uses_last(shape: &Shape) -> bool {
    !shape.generation.is_empty() || shape.generation != shape.assistant.before || !shape.assistant.after.is_empty()
}

/// What every conversation starts with, whatever the role of its first message.
fn common_head(shape: &Shape) -> Option<&str> {
    let head = |wrap| wrap_head(wrap).filter(|h| !h.is_empty());
    let user = head(&shape.user)?;
    let same = head(&shape.assistant) == Some(user)
        && match &shape.system {
            System::Turn(wrap) => head(wrap) == Some(user),
            System::FirstUser { .. } | System::LastUser { .. } | System::Ignored => true,
        };
    same.then_some(user)
}

fn wrap_head(wrap: &Wrap) -> Option<&str> {
    wrap.first.strip_suffix(wrap.before.as_str())
}

struct Writer {
    text: String,
    after_action: bool,
    // Bytes of the conversation's first text that are written before the loop.
    head_len: usize,
    // The condition that holds for the first turn.
    first: &'static str,
}

impl Writer {
    fn action(&mut self, code: &str) {
        let open = if self.after_action { "\n{{- " } else { "{{ " };
        self.text.push_str(open);
        self.text.push_str(code);
        self.text.push_str(" }}");
        self.after_action = true;
    }

    /// Literal text; what Go's lexer or a Modelfile would not take as it is becomes a string constant.
    fn literal(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let braces = text.contains("{{") || text.ends_with('{');
        let quotes = text.contains("\"\"\"") || text.starts_with('"') || text.ends_with('"');
        for c in text.chars() {
            match c {
                '{' if braces => self.constant("{"),
                '"' if quotes => self.constant("\\\""),
                c if quote::is_kept(c) => self.text.push(c),
                c => self.constant(&format!("\\U{:08x}", u32::from(c))),
            }
        }
        self.after_action = false;
    }

    fn constant(&mut self, escaped: &str) {
        self.text.push_str("{{ \"");
        self.text.push_str(escaped);
        self.text.push_str("\" }}");
    }

    /// The text before a message, without the head of the conversation, which is written already.
    fn before(&mut self, wrap: &Wrap) {
        let first = &wrap.first[self.head_len..];
        if first == wrap.before {
            return self.literal(&wrap.before);
        }
        self.action(&format!("if {}", self.first));
        match first.strip_suffix(wrap.before.as_str()) {
            Some(head) => {
                self.literal(head);
                self.action("end");
                self.literal(&wrap.before);
            }
            None => {
                self.literal(first);
                self.action("else");
                self.literal(&wrap.before);
                self.action("end");
            }
        }
    }
}
