//! Rules about Rust sources, checked on their code with comments and literals blanked out.

/// Lines of a file that are not tests, above which the header must say why it is long.
const LONG_FILE: usize = 600;
const LONG_LIB: usize = 100;

/// The rooms that may hold `unsafe`: memory maps, vector instructions, and the functions of a GPU's driver.
const UNSAFE_ROOMS: &[&str] = &["crates/mlpack-fs/", "crates/mlpack-quant/", "crates/mlpack-device/"];
/// Who may print: the command line, developer commands, tests and examples, and build scripts, whose output is for cargo.
const PRINTING: &[&str] = &["crates/mlpack/", "xtask/", "tests/"];

/// All findings in one source file.
pub fn check(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(format!("{file}:1: has no header; begin with `//!` and one sentence that says what the file is"));
    }
    let code = code_only(text);
    let lines: Vec<&str> = code.lines().collect();
    let tests_from = if is_test_file(file) { 0 } else { inline_tests(&lines) };
    if file.ends_with("/src/lib.rs") && lines.len() > LONG_LIB {
        findings.push(format!("{file}: {} lines; a lib.rs holds the crate's header, `mod` and `pub use` in at most {LONG_LIB}: move code into modules", lines.len()));
    }
    let header = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ").to_lowercase();
    if tests_from > LONG_FILE && !header.contains("long because") {
        findings.push(format!(
            "{file}: {tests_from} lines without tests; split it, or say in the header why it is \"long because …\""
        ));
    }
    let may_print = PRINTING.iter().any(|folder| file.starts_with(folder))
        || file.contains("/examples/")
        || file.ends_with("/build.rs");
    let may_be_unsafe = UNSAFE_ROOMS.iter().any(|room| file.starts_with(room));
    for (i, line) in lines.iter().enumerate() {
        let mut find = |what: &str| findings.push(format!("{file}:{}: {what}", i + 1));
        for name in ["todo", "unimplemented"] {
            if calls_macro(line, name) {
                find(&format!("`{name}!`; finish it, or return an error of kind Unsupported"));
            }
        }
        if calls_macro(line, "dbg") {
            find("`dbg!`; take it out");
        }
        if !may_print && i < tests_from {
            for name in ["print", "println", "eprint", "eprintln"] {
                if calls_macro(line, name) {
                    find(&format!("`{name}!` in a library; return the value and let crates/mlpack show it"));
                }
            }
        }
        for attribute in ["ignore", "should_panic"] {
            if has_attribute(line, attribute) {
                find(&format!(
                    "`#[{attribute}]`; a test runs always and states what it expects: skip with a printed reason, or compare the error"
                ));
            }
        }
        if !may_be_unsafe && words(line).any(|(_, word)| word == "unsafe") {
            find(
                "`unsafe` outside mlpack-fs, mlpack-quant and mlpack-device; use their safe functions, or a safe crate",
            );
        }
    }
    findings
}

fn is_test_file(file: &str) -> bool {
    file.starts_with("tests/") || file.contains("/tests/") || file.ends_with("/tests.rs")
}

/// The index of the line where an inline test module begins, or the number of lines.
fn inline_tests(lines: &[&str]) -> usize {
    let begins = |i: &usize| {
        lines[*i].trim() == "#[cfg(test)]"
            && lines.get(i + 1).is_some_and(|next| next.starts_with("mod ") && next.trim_end().ends_with('{'))
    };
    (0..lines.len()).find(begins).unwrap_or(lines.len())
}

fn calls_macro(line: &str, name: &str) -> bool {
    words(line).any(|(end, word)| word == name && line[end..].starts_with('!') && !line[end..].starts_with("!="))
}

fn has_attribute(line: &str, name: &str) -> bool {
    line.trim_start().strip_prefix("#[").is_some_and(|rest| words(rest).next().is_some_and(|(_, word)| word == name))
}

/// Each identifier or keyword of a line with the offset of its end.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + line[at..].find(part)?;
        let end = line[start..].find(|c| !part(c)).map_or(line.len(), |len| start + len);
        at = end;
        Some((end, &line[start..end]))
    })
}

/// The source with every comment, string and character literal replaced by spaces, line by line in place.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match at(i) {
            '/' if at(i + 1) == '/' => (i..chars.len()).find(|j| at(*j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => block_comment_end(&chars, i),
            '"' => quoted_end(&chars, i, '"'),
            '\'' if at(i + 1) == '\\' || (at(i + 2) == '\'' && at(i + 1) != '\'') => quoted_end(&chars, i, '\''),
            'r' if !(i > 0 && (at(i - 1).is_alphanumeric() && !matches!(at(i - 1), 'b' | 'c') || at(i - 1) == '_')) => {
                raw_string_end(&chars, i).unwrap_or(i)
            }
            _ => i,
        };
        if end == i {
            code.push(at(i));
            i += 1;
        } else {
            code.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    code
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut i = start;
    while i < chars.len() {
        match chars[i..] {
            ['/', '*', ..] => (depth, i) = (depth + 1, i + 2),
            ['*', '/', ..] => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    i
}

fn quoted_end(chars: &[char], start: usize, quote: char) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// The end of `r"…"`, `r#"…"#` and so on, where one starts; a raw identifier is none.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes =
        |i: &usize| chars[*i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    Some((open + 1..chars.len()).find(closes).map_or(chars.len(), |i| i + 1 + hashes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "crates/mlpack-gguf/src/read.rs";

    fn one(file: &str, body: &str) -> String {
        let findings = check(file, &format!("//! A file.\n{body}\n"));
        assert_eq!(findings.len(), 1, "{body}: {findings:?}");
        findings[0].clone()
    }

    fn none(file: &str, body: &str) {
        assert_eq!(check(file, &format!("//! A file.\n{body}\n")), [""; 0], "{body}");
    }

    #[test]
    fn each_rule_finds_its_line() {
        assert!(check(FILE, "use x;\n")[0].starts_with(&format!("{FILE}:1: has no header")));
        assert!(one(FILE, "fn f() {\n  println!(\"x\");\n}").contains(":3: `println!` in a library"));
        assert!(one(FILE, "let x = dbg!(y);").contains("`dbg!`"));
        assert!(one(FILE, "todo!()").contains("finish it"));
        assert!(one(FILE, "std::unimplemented!()").contains("finish it"));
        assert!(one(FILE, "#[ignore = \"slow\"]").contains("a test runs always"));
        assert!(one(FILE, "  #[should_panic(expected = \"x\")]").contains("a test runs always"));
        assert!(one(FILE, "let x = unsafe { y() };").contains("`unsafe` outside"));
    }

    #[test]
    fn text_that_only_looks_like_code_passes() {
        none(FILE, "// println!(\"x\") todo!() unsafe");
        none(FILE, "/* unsafe /* nested */ unsafe */ let x = 1;");
        none(FILE, "let s = \"unsafe \\\" todo!()\"; let r = r#\"dbg!(\" unsafe\"#; let b = br\"unsafe\";");
        none(FILE, "let q = '\"'; let e = '\\''; fn f<'a>(x: &'a str) {} let t = \"unsafe\";");
        none(FILE, "#![deny(unsafe_code)]\nlet todo = 1; if todo != 2 {}");
    }

    #[test]
    fn rooms_with_a_licence_to_do_so_may() {
        none("crates/mlpack-fs/src/map.rs", "let x = unsafe { y() };");
        none("crates/mlpack/src/main.rs", "println!(\"x\");");
        none(FILE, "#[cfg(test)]\nmod tests {\n  fn f() { println!(\"skipped: no skopeo\"); }\n}");
    }

    #[test]
    fn long_files_must_say_why() {
        let body = "fn f() {}\n".repeat(LONG_FILE);
        assert!(one(FILE, &body).contains("lines without tests"));
        assert_eq!(check(FILE, &format!("//! A table, long because the format has many keys.\n{body}")), [""; 0]);
        none(FILE, &format!("#[cfg(test)]\nmod tests {{\n{body}}}"));
        assert!(one("crates/mlpack-gguf/src/lib.rs", &"mod x;\n".repeat(LONG_LIB)).contains("move code into modules"));
    }
}
