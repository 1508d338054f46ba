//! What a model's name says: `Llama-3.2-1B-Instruct` is version 3.2 of Llama, of size 1B, fine-tuned to instruct.

use regex::Regex;
use std::sync::LazyLock;

/// The parts of a model id, `ORGANIZATION/NAME` or `NAME`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Components {
    pub full_name: String,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

macro_rules! pattern {
    ($name:ident, $text:literal) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(concat!("^(?:", $text, ")$")).expect("the pattern is a constant"));
    };
}

pattern!(VERSION, r"(?i:(v|iter)?\d+([.]\d+)*)");
pattern!(QUANT_TYPE, r"(?i:i?q\d(_\w)*|b?fp?(16|32))");
pattern!(SIZE, r"(?i:([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)");
pattern!(FINETUNE, r"(?i:chat|instruct|vision|lora)");
pattern!(NOT_TITLED, r"v\d+(?:\.\d+)*|\d.*");
pattern!(DECIMAL, r"\p{Nd}");
pattern!(ALPHABETIC, r"\p{L}");

/// What a part of a name is taken for; a part may be several things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    basename: bool,
    size_label: bool,
    finetune: bool,
    version: bool,
    quant_type: bool,
    of_adapter: bool,
}

impl Kinds {
    fn count(self) -> usize {
        let all = [self.basename, self.size_label, self.finetune, self.version, self.quant_type, self.of_adapter];
        all.iter().filter(|b| **b).count()
    }
}

/// Takes a model id apart. `parameter_count` tells a size from a context length; it is negative for an adapter, whose
/// model may be larger.
pub(super) fn components(id: &str, parameter_count: i128) -> Components {
    let mut found = Components {
        full_name: id.to_owned(),
        organization: None,
        basename: None,
        finetune: None,
        version: None,
        size_label: None,
    };
    // A name in plain words.
    if id.contains(' ') {
        return found;
    }
    if let Some((organization, name)) = id.split_once('/') {
        found.full_name = name.to_owned();
        found.organization = (!organization.starts_with('.')).then(|| organization.to_owned());
    }
    let mut parts: Vec<(String, Kinds)> =
        found.full_name.split('-').filter(|p| !p.is_empty()).map(|p| (p.to_owned(), Kinds::default())).collect();
    for (i, (part, kinds)) in parts.iter_mut().enumerate() {
        classify(part, kinds, i == 0, parameter_count);
    }
    drop_word_sizes(&mut parts);
    mark_basename(&mut parts);

    let joined = |wanted: fn(&Kinds) -> bool| {
        let chosen: Vec<&str> = parts.iter().filter(|(_, k)| wanted(k)).map(|(p, _)| p.as_str()).collect();
        (!chosen.is_empty()).then(|| chosen.join("-"))
    };
    found.basename = joined(|k| k.basename);
    found.finetune = joined(|k| k.finetune);
    found.version = joined(|k| k.version && !k.basename);
    let mut sizes: Vec<&str> = Vec::new();
    for (part, _) in parts.iter().filter(|(_, k)| k.size_label) {
        if !sizes.contains(&part.as_str()) {
            sizes.push(part);
        }
    }
    found.size_label = (!sizes.is_empty()).then(|| sizes.join("-"));
    if found.size_label.is_none() && found.finetune.is_none() && found.version.is_none() {
        // Then the rest says too little to be trusted.
        found.basename = None;
    }
    found
}

fn classify(part: &mut String, kinds: &mut Kinds, first: bool, parameter_count: i128) {
    if VERSION.is_match(part) {
        kinds.version = true;
    } else if QUANT_TYPE.is_match(part) {
        kinds.quant_type = true;
        *part = part.to_uppercase();
    } else if !first && SIZE.is_match(part) {
        let mut size: Vec<char> = part.replace('_', ".").chars().collect();
        // "7b1" is 7.1b.
        if let [.., unit, digit] = size[..]
            && is_decimal(digit)
        {
            size.truncate(size.len() - 2);
            size.extend(['.', digit, unit]);
        }
        if let [.., before, unit] = &mut size[..]
            && is_decimal(*before)
            && matches!(unit, 'k' | 'm' | 'b' | 't')
        {
            unit.make_ascii_uppercase();
        }
        if is_context_length(&size, parameter_count) {
            kinds.finetune = true;
            if let Some(unit) = size.last_mut() {
                unit.make_ascii_lowercase();
            }
        } else {
            kinds.size_label = true;
        }
        *part = size.into_iter().collect();
    } else if !first && FINETUNE.is_match(part) {
        // That an adapter is one needs no saying.
        let is_type = parameter_count < 0 && part.eq_ignore_ascii_case("lora");
        (kinds.of_adapter, kinds.finetune) = (is_type, !is_type);
    }
}

/// Whether "4K" is too far from the number of parameters to be a size: by more than 7/8 of it.
fn is_context_length(size: &[char], parameter_count: i128) -> bool {
    let Some((unit, number)) = size.split_last() else { return false };
    let number: String = number.iter().collect();
    // What is not a number in Python's eyes ("small", "8x7") is taken for a size.
    let Some(number) = python_float(&number) else { return false };
    let thousands = match unit {
        'K' => 1,
        'M' => 2,
        'B' => 3,
        'T' => 4,
        ' ' => 0,
        _ => -1,
    };
    let labelled = number * 1000f64.powi(thousands);
    match parameter_count {
        0 => false,
        ..0 => labelled < (-parameter_count / 8) as f64,
        _ => (labelled - parameter_count as f64).abs() > (parameter_count * 7 / 8) as f64,
    }
}

/// Digits, a point and digits, in any script's decimal digits.
fn python_float(text: &str) -> Option<f64> {
    let ascii: Option<String> =
        text.chars().map(|c| if c == '.' { Some('.') } else { decimal_value(c).map(|d| (b'0' + d) as char) }).collect();
    ascii?.parse().ok()
}

/// The value of a decimal digit: digits come in runs of ten in Unicode, each run starting at its zero.
fn decimal_value(c: char) -> Option<u8> {
    if !is_decimal(c) {
        return None;
    }
    let mut value = 0;
    let mut code = u32::from(c);
    while value < 9 && code > 0 && char::from_u32(code - 1).is_some_and(is_decimal) {
        // The digit before the zero of a run may be the nine of the run before: stop there.
        if c.is_ascii_digit() && code == u32::from('0') {
            break;
        }
        code -= 1;
        value += 1;
    }
    Some(value)
}

/// Words like "small" are sizes only where no number is one.
fn drop_word_sizes(parts: &mut [(String, Kinds)]) {
    if parts.iter().any(|(p, k)| k.size_label && p.chars().any(is_decimal)) {
        for (part, kinds) in parts {
            if kinds.size_label && part.chars().all(is_alphabetic) {
                kinds.size_label = false;
            }
        }
    }
}

/// The leading parts that nothing else is known about are the base name; a version at its end is not.
fn mark_basename(parts: &mut [(String, Kinds)]) {
    let mut at_start = true;
    for (part, kinds) in parts.iter_mut() {
        let unknown = kinds.count() == 0;
        if at_start && (unknown && part.chars().next().is_some_and(is_alphabetic) || kinds.version) {
            kinds.basename = true;
        } else {
            at_start = false;
            kinds.finetune |= unknown;
        }
    }
    for (_, kinds) in parts.iter_mut().rev() {
        if !(kinds.basename && kinds.count() > 1) {
            break;
        }
        kinds.basename = false;
    }
}

/// "my-model-7b" as "My Model 7b": words in small letters get a capital, versions and numbers stay.
pub(super) fn title(name: &str) -> String {
    let spaced = name.trim().replace('-', " ");
    let words = spaced
        .split_whitespace()
        .map(|word| if is_lower(word) && !NOT_TITLED.is_match(word) { title_word(word) } else { word.to_owned() });
    words.collect::<Vec<_>>().join(" ")
}

/// Python's `str.islower`: some cased letter, and none that is not small.
fn is_lower(word: &str) -> bool {
    word.chars().any(char::is_lowercase) && !word.chars().any(|c| c.is_uppercase() || is_title_case(c))
}

/// Python's `str.title` for a word: a letter that does not follow a letter gets a capital.
fn title_word(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut after_letter = false;
    for c in word.chars() {
        if after_letter {
            out.extend(c.to_lowercase());
        } else {
            push_capital(&mut out, c);
        }
        after_letter = c.is_lowercase() || c.is_uppercase() || is_title_case(c);
    }
    out
}

/// The title case of a letter: its capital, where that is one character.
fn push_capital(out: &mut String, c: char) {
    match c {
        '\u{1c6}' => out.push('\u{1c5}'),
        '\u{1c9}' => out.push('\u{1c8}'),
        '\u{1cc}' => out.push('\u{1cb}'),
        '\u{1f3}' => out.push('\u{1f2}'),
        // Georgian letters have capitals but stay as they are in titles.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => out.push(c),
        _ => {
            let mut capital = c.to_uppercase();
            out.extend(capital.next());
            out.extend(capital.flat_map(char::to_lowercase));
        }
    }
}

fn is_title_case(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

fn is_decimal(c: char) -> bool {
    c.is_ascii_digit() || !c.is_ascii() && DECIMAL.is_match(c.encode_utf8(&mut [0; 4]))
}

fn is_alphabetic(c: char) -> bool {
    c.is_ascii_alphabetic() || !c.is_ascii() && ALPHABETIC.is_match(c.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_far_from_the_parameter_count_is_a_context_length() {
        let found = components("Phi-3-mini-128k-instruct", 3_800_000_000);
        assert_eq!(found.finetune.as_deref(), Some("128k-instruct"));
        assert_eq!(found.size_label.as_deref(), Some("mini"));
        assert_eq!(components("x-7b", 7_000_000_000).size_label.as_deref(), Some("7B"));
    }

    #[test]
    fn digits_of_any_script_count_as_digits() {
        assert_eq!(decimal_value('7'), Some(7));
        assert_eq!(decimal_value('\u{664}'), Some(4));
        assert_eq!(decimal_value('x'), None);
        assert_eq!(python_float("1.\u{665}"), Some(1.5));
    }

    #[test]
    fn titles_keep_versions_and_capitals() {
        assert_eq!(title("my-model-v2-7b-GGUF"), "My Model v2 7b GGUF");
        assert_eq!(title("it's straße"), "It'S Straße");
        assert_eq!(title("ßharp"), "Ssharp");
    }
}
