//! Writing a value so that Ollama reads back the same value.

use super::parse;
use crate::ModelfileProblem;

/// The way of writing that is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `value`
    Bare,
    /// `"value"`
    Quoted,
    /// `"""value"""`
    Block,
}

/// The value as it stands in a Modelfile, in the first of the three ways that is read back as it was.
pub(crate) fn quote(value: &str, preferred: Style) -> Result<String, ModelfileProblem> {
    if let Some((offset, character)) = value.char_indices().find(|(_, c)| !is_kept(*c)) {
        return Err(ModelfileProblem::Unprintable { character, offset });
    }
    let order = match preferred {
        Style::Bare => [Style::Bare, Style::Quoted, Style::Block],
        Style::Quoted if !value.contains('"') => [Style::Quoted, Style::Block, Style::Bare],
        Style::Quoted | Style::Block => [Style::Block, Style::Quoted, Style::Bare],
    };
    let written = order.into_iter().map(|style| match style {
        Style::Bare => value.to_owned(),
        Style::Quoted => format!("\"{value}\""),
        Style::Block => format!("\"\"\"{value}\"\"\""),
    });
    written.into_iter().find(|text| reads_back(text, value)).ok_or(ModelfileProblem::Quotes)
}

/// Whether a line `SYSTEM text`, followed by another instruction, is read as that value.
fn reads_back(text: &str, value: &str) -> bool {
    let probe = format!("SYSTEM {text}\nFROM x\n");
    match parse::commands(&probe) {
        Ok(commands) => {
            matches!(&commands[..], [system, from] if system.value == value && from.keyword == "from" && from.value == "x")
        }
        Err(_) => false,
    }
}

/// Characters of a value that Ollama's parser keeps: printable ones, and the blanks that its value state writes
/// before it looks at printability.
pub(crate) fn is_kept(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r') || is_printable(c)
}

/// Go's `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space.
///
/// Rust's `escape_debug` escapes exactly the complement of that set (Unicode categories C and Z, without the space),
/// apart from quotes and the backslash; the two may differ on characters assigned after the older of their Unicode
/// versions. After a first character, combining marks are not escaped.
pub(crate) fn is_printable(c: char) -> bool {
    let mut buffer = ['a', c].iter().collect::<String>();
    buffer.retain(|c| !matches!(c, '"' | '\'' | '\\'));
    buffer.escape_debug().count() == buffer.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_is_what_go_calls_printable() {
        for c in ['a', ' ', '~', '"', '\'', '\\', 'é', '日', '｜', '▁', '\u{301}', '\u{ff9e}', '€', '😀'] {
            assert!(is_printable(c), "{c:?}");
        }
        for c in [
            '\0', '\u{1b}', '\u{7f}', '\u{85}', '\u{a0}', '\u{ad}', '\u{200b}', '\u{200d}', '\u{2028}', '\u{3000}',
            '\u{feff}', '\u{e000}',
        ] {
            assert!(!is_printable(c), "{c:?}");
        }
    }

    #[test]
    fn each_value_gets_a_way_of_writing_that_reads_back() {
        for (value, style, written) in [
            ("./x.gguf", Style::Bare, "./x.gguf"),
            (" x ", Style::Bare, "\" x \""),
            ("a\nb", Style::Bare, "\"a\nb\""),
            ("a\n\"b\"", Style::Quoted, "\"\"\"a\n\"b\"\"\"\""),
            ("say \"\"\"x\"\"\"", Style::Block, "\"\"\"say \"\"\"x\"\"\"\"\"\""),
            ("\"\"\"x", Style::Block, "\"\"\"\"\"\"x\"\"\""),
            ("", Style::Quoted, "\"\""),
        ] {
            assert_eq!(quote(value, style).unwrap(), written);
        }
        assert_eq!(quote("a\"\"\"\nb\"\"\"\n", Style::Block), Err(ModelfileProblem::Quotes));
        assert_eq!(quote("\"\"\"\nx", Style::Block), Err(ModelfileProblem::Quotes));
        assert_eq!(
            quote("a\u{1b}b", Style::Bare),
            Err(ModelfileProblem::Unprintable { character: '\u{1b}', offset: 1 })
        );
    }
}
