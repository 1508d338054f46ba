//! Modelfiles as Ollama reads and writes them.

use super::*;

fn parse(text: &str) -> Result<Modelfile, Error> {
    Modelfile::parse(Path::new("Modelfile"), text)
}

fn parameter(name: &str, value: &str) -> Instruction {
    Instruction::Parameter(Parameter::new(name, value).unwrap())
}

#[test]
fn every_instruction_is_rendered_and_read_back() {
    let mut file = Modelfile::new("./legal-qa-Q4_K_M.gguf");
    for instruction in [
        Instruction::Adapter("./lora.gguf".into()),
        Instruction::Template("{{ range .Messages }}{{ .Content }}\n{{ end }}".into()),
        Instruction::System("You answer \"briefly\".\n".into()),
        parameter("stop", "<|im_end|>"),
        parameter("stop", " a \n\"b\""),
        parameter("temperature", "0.7"),
        parameter("num_ctx", "+4096"),
        parameter("use_mmap", "T"),
        Instruction::License("MIT\n\nPermission is granted".into()),
        Instruction::Message { role: Role::User, content: "Hi # there".into() },
        Instruction::Message { role: Role::Assistant, content: "Hello:\n - x".into() },
        Instruction::Requires("0.14.0".into()),
    ] {
        file.set(instruction);
    }
    let text = file.render().unwrap();
    assert_eq!(
        text,
        r#"FROM ./legal-qa-Q4_K_M.gguf
ADAPTER ./lora.gguf
TEMPLATE """{{ range .Messages }}{{ .Content }}
{{ end }}"""
SYSTEM """You answer "briefly".
"""
PARAMETER stop "<|im_end|>"
PARAMETER stop """ a 
"b""""
PARAMETER temperature 0.7
PARAMETER num_ctx 4096
PARAMETER use_mmap true
LICENSE """MIT

Permission is granted"""
MESSAGE user "Hi # there"
MESSAGE assistant "Hello:
 - x"
REQUIRES 0.14.0
"#
    );
    assert_eq!(parse(&text).unwrap(), file);
    assert_eq!(parse(&text).unwrap().render().unwrap(), text);
}

#[test]
fn what_ollama_accepts_is_accepted() {
    let text = "# a comment\r\n  from   llama3 \n\nSYSTEM You are Mario. # not a comment\nparameter stop \"a b\"\n\
                TEMPLATE \"\"\"x\n\"y\"\n\"\"\"\n#end\nMESSAGE user hi: there\nREQUIRES v0.14\nSYSTEM \"\"\"a\u{1b}b\"\"\"";
    let file = parse(text).unwrap();
    assert_eq!(
        file.instructions(),
        [
            Instruction::From("llama3".into()),
            Instruction::System("You are Mario. # not a comment".into()),
            parameter("stop", "a b"),
            Instruction::Template("x\n\"y\"\n".into()),
            Instruction::Message { role: Role::User, content: "hi: there".into() },
            Instruction::Requires("0.14".into()),
            // Ollama drops the escape character too.
            Instruction::System("ab".into()),
        ]
    );
}

#[test]
fn setting_replaces_what_ollama_takes_once() {
    let mut file = Modelfile::new("a");
    for instruction in [
        Instruction::System("x".into()),
        parameter("top_k", "1"),
        parameter("stop", "a"),
        Instruction::System("y".into()),
        parameter("top_k", "2"),
        parameter("stop", "b"),
    ] {
        file.set(instruction);
    }
    let text = file.render().unwrap();
    assert_eq!(text, "FROM a\nSYSTEM \"\"\"y\"\"\"\nPARAMETER top_k 2\nPARAMETER stop \"a\"\nPARAMETER stop \"b\"\n");
}

#[test]
fn malformed_files_name_the_line_and_the_problem() {
    for (text, message) in [
        ("", "line 1: there is no `FROM` instruction"),
        ("FORM x\n", "line 1: expected: one of `FROM`, `LICENSE`"),
        ("FROM x\n\nSYSTEM \"\"\"a\nb\n", "line 3: the value is not complete at the end of the file"),
        ("FROM", "line 1: the value is not complete at the end of the file"),
        ("FROM x\nMESSAGE tool x\n", "line 2: expected: `system`, `user` or `assistant`\n  found:    `tool`"),
        ("FROM x\nPARAMETER  stop x\n", "line 2: expected: a name and a value"),
        (
            "FROM x\nPARAMETER num_ctx big\n",
            "line 2: parameter `num_ctx`\n  expected: a whole number\n  found:    `big`",
        ),
        ("FROM x\nREQUIRES latest\n", "line 2: expected: a version such as `0.14.0`\n  found:    `latest`"),
        ("FROM x\nPARAMETER numctx 1\n", "line 2: unknown parameter `numctx`, expected: one of `num_keep`, `seed`"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with("cannot read `Modelfile`\n  ") && error.contains(message), "{text:?}: {error}");
    }
}

#[test]
fn an_unknown_parameter_gets_the_list_and_the_nearest_name() {
    let error = Parameter::new("num_context", "1").unwrap_err();
    assert_eq!(error.kind(), mlpack_fs::ErrorKind::Misuse);
    assert_eq!(
        error.to_string(),
        "unknown Modelfile parameter `num_context`\n  expected: one of `num_keep`, `seed`, `num_predict`, `top_k`, \
         `top_p`, `min_p`, `typical_p`, `repeat_last_n`, `temperature`, `repeat_penalty`, `presence_penalty`, \
         `frequency_penalty`, `stop`, `num_ctx`, `num_batch`, `num_gpu`, `main_gpu`, `use_mmap`, `num_thread`, \
         `draft_num_predict`"
    );
    assert!(error.hint().unwrap().starts_with("did you mean `num_ctx`"), "{:?}", error.hint());
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    for (name, value) in [
        ("num_ctx", "4k"),
        ("num_ctx", "1.0"),
        ("seed", "9223372036854775808"),
        ("temperature", "warm"),
        ("temperature", "NaN"),
        ("temperature", "1e39"),
        ("use_mmap", "yes"),
    ] {
        assert!(matches!(Parameter::new(name, value), Err(Error::ParameterValue { .. })), "{name} {value}");
    }
    let error = Parameter::new("temperature", "warm").unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot set Modelfile parameter `temperature`\n  expected: a finite decimal number\n  found:    `warm`"
    );
}

#[test]
fn ignored_parameters_are_named() {
    let file = parse("FROM x\nPARAMETER mirostat 2\nPARAMETER top_k 1\nPARAMETER f16_kv true\n").unwrap();
    assert_eq!(file.deprecated_parameters(), ["mirostat", "f16_kv"]);
}

#[test]
fn what_ollama_would_drop_or_cut_is_not_written() {
    let mut file = Modelfile::new("x");
    file.set(Instruction::Template("a\u{a0}b".into()));
    let error = file.render().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write Modelfile instruction `TEMPLATE`\n  expected: printable characters, tabs and line ends (Ollama \
         drops the others)\n  found:    U+00A0 at byte 1"
    );
    assert!(error.hint().unwrap().contains("chat template in the GGUF"));
    let mut file = Modelfile::new("x");
    file.set(Instruction::License("\"\"\"\n\"\"\"\n".into()));
    assert!(file.render().unwrap_err().to_string().contains("three double quotes"));
}
