//! Chat templates of the usual families, translated and compared with what Jinja2 and Go's text/template render.
//!
//! `tests/chat-templates` has the sources, the expected Go templates and the prompts; its README says how they are
//! made and checked.

use super::*;
use go::Program;
use serde_json::Value;

type Tokens = [(&'static str, &'static str); 2];

const TOKENS: Tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
const GEMMA_TOKENS: Tokens = [("bos_token", "<bos>"), ("eos_token", "<eos>")];
const LLAMA_3_TOKENS: Tokens = [("bos_token", "<|begin_of_text|>"), ("eos_token", "<|eot_id|>")];
const DEEPSEEK_TOKENS: Tokens = [("bos_token", "<｜begin▁of▁sentence｜>"), ("eos_token", "<｜end▁of▁sentence｜>")];

struct Family {
    name: &'static str,
    jinja: &'static str,
    go: &'static str,
    tokens: Tokens,
    stops: &'static [&'static str],
    notes: &'static [Note],
}

macro_rules! family {
    ($name:literal, $jinja:expr, $tokens:expr, $stops:expr, $notes:expr) => {
        Family {
            name: $name,
            jinja: $jinja,
            go: include_str!(concat!("../../tests/chat-templates/", $name, ".gotmpl")),
            tokens: $tokens,
            stops: $stops,
            notes: $notes,
        }
    };
    ($name:literal, $tokens:expr, $stops:expr, $notes:expr) => {
        family!($name, include_str!(concat!("../../tests/chat-templates/", $name, ".jinja")), $tokens, $stops, $notes)
    };
}

const CHATML_STOPS: &[&str] = &["<|im_end|>", "<|im_start|>"];
const LEGAL_QA: &str = include_str!("../../../../fixtures/legal-qa/kjv-llama/chat_template.jinja");

/// Every family of `golden.json`. The ones whose notes say "unusual order" are compared without them.
const FAMILIES: [Family; 12] = [
    family!("legal-qa", LEGAL_QA, TOKENS, CHATML_STOPS, &[]),
    family!("chatml", TOKENS, CHATML_STOPS, &[]),
    family!("chatml-default-system", TOKENS, CHATML_STOPS, &[]),
    family!("llama-3", LLAMA_3_TOKENS, &["<|eot_id|>", "<|start_header_id|>"], &[Note::TrimsContent]),
    family!("zephyr", TOKENS, &["</s>", "<|user|>"], &[]),
    family!("mistral", TOKENS, &["</s>", "[INST]"], &[Note::SystemUnsupported]),
    family!("mistral-last-system", TOKENS, &["</s>", "[INST]"], &[]),
    family!("llama-2", TOKENS, &["</s>", "[INST]"], &[Note::TrimsContent]),
    family!(
        "gemma",
        GEMMA_TOKENS,
        &["<end_of_turn>", "<start_of_turn>"],
        &[Note::SystemUnsupported, Note::TrimsContent]
    ),
    family!("gemma-3", GEMMA_TOKENS, &["<end_of_turn>", "<start_of_turn>"], &[Note::TrimsContent]),
    family!("alpaca", TOKENS, &["### Instruction:"], &[]),
    family!("deepseek", DEEPSEEK_TOKENS, &["<｜end▁of▁sentence｜>", "<｜User｜>"], &[]),
];

fn translated(family: &Family, runtime_adds_bos: bool) -> Translation {
    let template = ChatTemplate { source: family.jinja, special_tokens: &family.tokens, runtime_adds_bos };
    translate(&template).unwrap_or_else(|e| panic!("{}: {e}", family.name))
}

fn refused(source: &str) -> NotTranslatable {
    translate(&ChatTemplate { source, special_tokens: &TOKENS, runtime_adds_bos: false }).unwrap_err()
}

/// The conversations of a family with the prompts that Jinja2 renders.
fn golden(name: &str) -> Vec<(Vec<Message>, String)> {
    let golden: Value = serde_json::from_str(include_str!("../../tests/chat-templates/golden.json")).unwrap();
    let message = |m: &Value| {
        let role = ["system", "user", "assistant"].into_iter().find(|r| m["role"] == *r).unwrap();
        Message { role, content: m["content"].as_str().unwrap().to_owned() }
    };
    let conversation = |c: &Value| {
        let messages = c["messages"].as_array().unwrap().iter().map(message).collect();
        (messages, c["prompt"].as_str().unwrap().to_owned())
    };
    golden[name].as_array().unwrap().iter().map(conversation).collect()
}

#[test]
fn the_usual_families_are_translated() {
    for family in &FAMILIES {
        let translation = translated(family, false);
        assert_eq!(translation.go, family.go, "{}", family.name);
        assert_eq!(translation.stops, family.stops, "{}", family.name);
        let notes: Vec<_> = translation.notes.into_iter().filter(|n| !matches!(n, Note::UnusualOrder(_))).collect();
        assert_eq!(notes, family.notes, "{}", family.name);
    }
}

#[test]
fn translations_render_what_jinja2_renders() {
    for family in &FAMILIES {
        let conversations = golden(family.name);
        assert!(conversations.len() >= 3, "{}", family.name);
        for (messages, prompt) in conversations {
            let program = Program::parse(family.go).unwrap();
            assert_eq!(program.run(&messages), prompt, "{} for {}", family.name, roles(&messages));
        }
    }
}

#[test]
fn without_the_token_that_the_runtime_adds_the_rest_is_the_same() {
    for family in &FAMILIES {
        let program = Program::parse(&translated(family, true).go).unwrap();
        for (messages, prompt) in golden(family.name) {
            let expected = prompt.strip_prefix(family.tokens[0].1).unwrap_or(&prompt);
            assert_eq!(program.run(&messages), expected, "{} for {}", family.name, roles(&messages));
        }
    }
}

#[test]
fn a_modelfile_carries_every_translation() {
    for family in &FAMILIES {
        let mut file = crate::Modelfile::new("./x.gguf");
        file.set(crate::Instruction::Template(translated(family, true).go));
        let text = file.render().unwrap();
        assert_eq!(crate::Modelfile::parse("Modelfile".as_ref(), &text).unwrap(), file);
    }
}

#[test]
fn text_that_go_or_a_modelfile_would_misread_becomes_constants() {
    let source = "{% for m in messages %}{{ '{{\u{200b}\"' + m.role + '\"\"\"{' + m.content + '}}\"' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '{{\u{200b}\"assistant\"\"\"{' }}{% endif %}";
    let translation =
        translate(&ChatTemplate { source, special_tokens: &[], runtime_adds_bos: false }).expect("it is a plain loop");
    assert!(translation.go.contains("{{ \"{\" }}{{ \"{\" }}{{ \"\\U0000200b\" }}"), "{}", translation.go);
    let mut file = crate::Modelfile::new("x");
    file.set(crate::Instruction::Template(translation.go));
    assert!(file.render().is_ok());
}

#[test]
fn a_refused_system_message_goes_before_the_first_user_message() {
    let family = FAMILIES.iter().find(|f| f.name == "gemma").unwrap();
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let messages =
        [message("system", "Be brief."), message("user", "Hi"), message("assistant", "Yo"), message("user", "?")];
    assert_eq!(
        Program::parse(family.go).unwrap().run(&messages),
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n\
         <start_of_turn>user\n?<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn generation_tags_render_nothing() {
    let marked = "{% for m in messages %}<|{{ m.role }}|>{%- generation -%} {{ m.content }}{% endgeneration %}\n</s>{% endfor %}\
                  {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let template = ChatTemplate { source: marked, special_tokens: &[], runtime_adds_bos: false };
    assert!(translate(&template).unwrap().go.contains("<|user|>{{ .Content }}</s>"));
}

#[test]
fn what_cannot_be_expressed_is_refused_with_the_reason() {
    let large = " ".repeat((256 << 10) + 1);
    assert_eq!(refused(&large), NotTranslatable::TooLarge { limit: 256 << 10, found: (256 << 10) + 1 });
    assert!(matches!(refused("{% for m in messages %}\n{{ m.content }"), NotTranslatable::Syntax { line: 2, .. }));
    assert_eq!(refused("{{ strftime_now('%Y') }}"), NotTranslatable::UsesClock);
    assert_eq!(
        refused("{{ raise_exception('no \u{1b}chat') }}").to_string(),
        "the chat template cannot render the roles user, assistant, user: no \\u{1b}chat"
    );
    assert!(matches!(
        refused("{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}"),
        NotTranslatable::TooLong { .. }
    ));
    assert!(matches!(refused("{{ messages[-1].content }}"), NotTranslatable::ContentChanged { .. }));
    assert!(matches!(
        refused("{% for m in messages %}{{ m.content | upper }}{% endfor %}"),
        NotTranslatable::ContentChanged { .. }
    ));
    // The number of the turn cannot come from a loop over roles.
    let counted = "{% for m in messages %}[{{ loop.index }}]{{ m.content }}{% endfor %}";
    assert!(matches!(refused(counted), NotTranslatable::Differs { .. }));
}

#[test]
fn the_interpreter_refuses_what_it_does_not_know() {
    for source in [
        "{{ end }}",
        "{{ if .System }}",
        "{{ range .Messages }}{{ end }}",
        "{{ .Tools }}",
        "{{ eq .Role }}",
        "{{ printf \"x\" }}",
        "{{ \"x }}",
        "{{ if (eq .Role \"x\" }}{{ end }}",
        "{{ .Role",
        "{{ | }}",
    ] {
        assert!(Program::parse(source).is_err(), "{source}");
    }
}
