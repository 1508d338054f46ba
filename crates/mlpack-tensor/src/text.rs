//! Untrusted text in messages: escaping, shortening, suggesting.

use std::fmt;

/// Shows untrusted text (tensor names, metadata keys, paths inside archives) without letting control characters,
/// escape sequences or bidirectional overrides reach a terminal. Long text is cut in the middle of nowhere it matters:
/// after 200 characters, with the count of what was left out.
///
/// ```
/// assert_eq!(mlpack_tensor::Escaped("a\u{1b}[31mb").to_string(), "a\\u{1b}[31mb");
/// ```
pub struct Escaped<'a>(pub &'a str);

/// Characters of untrusted text shown before it is cut.
const SHOWN_CHARS: usize = 200;

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars().take(SHOWN_CHARS) {
            let hidden = c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
            match c {
                '`' => f.write_str("\\`")?,
                c if hidden => write!(f, "{}", c.escape_unicode())?,
                c => write!(f, "{c}")?,
            }
        }
        match self.0.chars().count().checked_sub(SHOWN_CHARS) {
            Some(n) if n > 0 => write!(f, "… ({n} more characters)"),
            _ => Ok(()),
        }
    }
}

/// The candidates nearest to `name` by edit distance (Damerau-Levenshtein, normalised), best first, at most `limit`,
/// and only those that are alike enough to be a plausible slip. Ties keep the candidates' order.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>, limit: usize) -> Vec<&'a str> {
    const ALIKE: f64 = 0.5;
    let wanted = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|c| (strsim::normalized_damerau_levenshtein(&wanted, &c.to_lowercase()), c))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(limit).map(|(_, c)| c).collect()
}

/// Joins items as "`a`, `b`, `c` and 212 more", escaped and quoted, showing at most `limit`.
pub fn join_limited<'a>(items: impl IntoIterator<Item = &'a str>, limit: usize) -> String {
    let mut items = items.into_iter();
    let shown: Vec<String> = items.by_ref().take(limit).map(|s| format!("`{}`", Escaped(s))).collect();
    match items.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(Escaped("a\nb\u{202e}c`d").to_string(), "a\\u{a}b\\u{202e}c\\`d");
        assert_eq!(Escaped("日本語 model").to_string(), "日本語 model");
    }

    #[test]
    fn cuts_long_text_with_a_count() {
        assert!(Escaped(&"x".repeat(205)).to_string().ends_with("… (5 more characters)"));
        assert_eq!(Escaped(&"x".repeat(200)).to_string().len(), 200);
    }

    #[test]
    fn nearest_is_best_first_and_ignores_the_unlike() {
        let names = ["q_proj", "k_proj", "embed_tokens"];
        assert_eq!(nearest("q_porj", names, 2), ["q_proj", "k_proj"]);
        assert!(nearest("zzzzzz", names, 3).is_empty());
    }

    #[test]
    fn joins_with_a_count() {
        assert_eq!(join_limited(["a", "b", "c"], 2), "`a`, `b` and 1 more");
        assert_eq!(join_limited(["a"], 2), "`a`");
    }
}
