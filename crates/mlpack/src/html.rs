//! Text in pages: what every page that mlpack writes has in common.

use mlpack_tensor::Escaped;

/// Writing to a string has no way to fail.
pub const INFALLIBLE: &str = "a string takes any text";

/// Untrusted text for HTML: no control characters, nothing that is markup.
pub fn text(untrusted: &str) -> String {
    let mut html = String::with_capacity(untrusted.len());
    for c in Escaped(untrusted).to_string().chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

/// Our own sentence around untrusted names: as [`text`], with what stands in backticks as code.
pub fn sentence(untrusted: &str) -> String {
    let part = |(i, part): (usize, &str)| match i % 2 {
        0 => text(part),
        _ => format!("<code>{}</code>", text(part)),
    };
    untrusted.split('`').enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_sentences_are_code_and_markup_stays_text() {
        assert_eq!(sentence("`a<b>` has <i> now"), "<code>a&lt;b&gt;</code> has &lt;i&gt; now");
        assert_eq!(sentence("one ` alone"), "one <code> alone</code>");
    }
}
