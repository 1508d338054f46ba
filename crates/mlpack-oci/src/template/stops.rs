//! The texts at which generation has to end.

use super::ChatTemplate;
use super::infer::Shape;

/// The longest marker taken for one, in characters.
const MARKER_LIMIT: usize = 40;

/// The marker that ends the assistant's turn and the one that starts the user's: `<|im_end|>` and `<|im_start|>`,
/// `</s>` and `[INST]`, or a heading such as `### Instruction:`.
pub(super) fn stops(shape: &Shape, template: &ChatTemplate<'_>) -> Vec<String> {
    let after = shape.assistant.after.trim();
    // The user's turn may start with the token that begins a sequence; the marker after it is the telling one.
    let bos = template.special_tokens.iter().find(|(name, text)| *name == "bos_token" && !text.is_empty());
    let before = shape.user.before.trim();
    let before = bos.and_then(|(_, bos)| before.strip_prefix(bos)).unwrap_or(before).trim_start();
    let mut stops = Vec::new();
    for candidate in [marker(after).or_else(|| heading(after)), marker(before).or_else(|| heading(before))] {
        if let Some(stop) = candidate.map(str::to_owned)
            && !stops.contains(&stop)
        {
            stops.push(stop);
        }
    }
    stops
}

/// `<…>` or `[…]` without blanks at the start of a text.
fn marker(text: &str) -> Option<&str> {
    let close = match text.chars().next()? {
        '<' => '>',
        '[' => ']',
        _ => return None,
    };
    let end = text.find(close)? + 1;
    let marker = &text[..end];
    let fits = marker.chars().count() <= MARKER_LIMIT && marker.len() > 2 && !marker.contains(char::is_whitespace);
    fits.then_some(marker)
}

/// The first line of a text, when it is short.
fn heading(text: &str) -> Option<&str> {
    let line = text.lines().next()?.trim();
    (!line.is_empty() && line.chars().count() <= MARKER_LIMIT).then_some(line)
}
