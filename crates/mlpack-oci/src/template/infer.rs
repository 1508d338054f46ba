//! From rendered probes to the text around each role, and the comparison of the result.

use super::go::Program;
use super::probe::Prober;
use super::{Message, NotTranslatable, Note, roles};

/// What a conversation is rendered as: for each message its `before`, its content and its `after`; the generation
/// prompt at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub user: Wrap,
    pub assistant: Wrap,
    pub system: System,
    pub generation: String,
}

/// The text around a role's messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wrap {
    /// Before the content of the first message of the conversation.
    pub first: String,
    /// Before the content of a later message.
    pub before: String,
    /// After the content.
    pub after: String,
}

/// Where system messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// They are turns like the others.
    Turn(Wrap),
    /// Into the first user message: before the system text, and between it and the user's.
    FirstUser { before: String, after: String },
    /// Into the last user message.
    LastUser { before: String, after: String },
    /// Nowhere.
    Ignored,
}

/// Infers the shape. The notes say what the Jinja template does not define.
pub(super) fn infer(prober: &Prober<'_>) -> Result<(Shape, Vec<Note>), NotTranslatable> {
    let (user, assistant, generation) = infer_turns(prober)?;
    let mut notes = Vec::new();
    let head = user.first.strip_suffix(user.before.as_str()).unwrap_or_default().to_owned();
    let system = match prober.prompt(&probe("su")) {
        Err(NotTranslatable::Fails { .. }) => {
            notes.push(Note::SystemUnsupported);
            System::FirstUser { before: String::new(), after: "\n\n".to_owned() }
        }
        Err(error) => return Err(error),
        Ok(text) => infer_system(prober, &text, &user, &assistant, &head)?,
    };
    if system == System::Ignored {
        notes.push(Note::SystemIgnored);
    }
    let first = match prober.prompt(&probe("au")).ok().and_then(|text| segments(&text, &probe("au"))) {
        Some(parts) => parts[0].clone(),
        None => format!("{head}{}", assistant.before),
    };
    let assistant = Wrap { first, ..assistant };
    let blank = Message { role: "user", content: " \n blank \n ".to_owned() };
    if prober.prompt(std::slice::from_ref(&blank)).is_ok_and(|text| !text.contains(&blank.content)) {
        notes.push(Note::TrimsContent);
    }
    Ok((Shape { user, assistant, system, generation }, notes))
}

/// The text around user and assistant messages, and the generation prompt.
fn infer_turns(prober: &Prober<'_>) -> Result<(Wrap, Wrap, String), NotTranslatable> {
    let messages = probe("uau");
    let parts = segments_of(&prober.prompt(&messages)?, &messages)?;
    let [first, user_to_assistant, assistant_to_user, end] = &parts[..] else {
        unreachable!("three messages have four texts around them")
    };
    // Rendering without the generation prompt shows where a turn ends; any other split renders the same conversations.
    let tail = |kinds: &str| {
        let messages = probe(kinds);
        prober.render(&messages, false).ok().and_then(|text| segments(&text, &messages)?.pop())
    };
    let after_user = tail("u")
        .filter(|t| user_to_assistant.starts_with(t) && end.starts_with(t))
        .unwrap_or_else(|| common_prefix(user_to_assistant, end).to_owned());
    let after_assistant = tail("ua").filter(|t| assistant_to_user.starts_with(t)).unwrap_or_default();
    let before_user = assistant_to_user[after_assistant.len()..].to_owned();
    let before_assistant = user_to_assistant[after_user.len()..].to_owned();
    let generation = end[after_user.len()..].to_owned();
    let user = Wrap { first: first.clone(), before: before_user, after: after_user };
    let assistant = Wrap { first: String::new(), before: before_assistant, after: after_assistant };
    Ok((user, assistant, generation))
}

fn infer_system(
    prober: &Prober<'_>,
    text: &str,
    user: &Wrap,
    assistant: &Wrap,
    head: &str,
) -> Result<System, NotTranslatable> {
    let messages = probe("su");
    if !text.contains(&messages[0].content) {
        return Ok(System::Ignored);
    }
    let parts = segments_of(text, &messages)?;
    let (before, between) = (&parts[0], &parts[1]);
    let merged = |before: &str| (before.to_owned(), between.clone());
    let long = probe("suau");
    let long_text = prober.prompt(&long)?;
    let place = |message: &Message| long_text.find(&message.content);
    if place(&long[0]) > place(&long[2]) {
        let Some(before) = before.strip_prefix(user.first.as_str()) else {
            return Err(NotTranslatable::ContentChanged { roles: roles(&long) });
        };
        let (before, after) = merged(before);
        return Ok(System::LastUser { before, after });
    }
    if let Some(after) = between.strip_suffix(user.before.as_str()) {
        let later = prober.prompt(&probe("uasu")).ok().and_then(|text| {
            let parts = segments(&text, &probe("uasu"))?;
            Some(parts[2].strip_prefix(assistant.after.as_str())?.to_owned())
        });
        let later = later.unwrap_or_else(|| before.strip_prefix(head).unwrap_or(before).to_owned());
        return Ok(System::Turn(Wrap { first: before.clone(), before: later, after: after.to_owned() }));
    }
    match before.strip_prefix(user.first.as_str()) {
        Some(before) => {
            let (before, after) = merged(before);
            Ok(System::FirstUser { before, after })
        }
        None => Err(NotTranslatable::ContentChanged { roles: roles(&messages) }),
    }
}

/// Compares the Go template with the Jinja template. A difference in a usual conversation is an error, one in an order
/// of roles that only comes about when a long conversation is cut is a note.
pub(super) fn verify(prober: &Prober<'_>, shape: &Shape, program: &Program) -> Result<Vec<Note>, NotTranslatable> {
    const TURNS: [&str; 5] = ["u", "uau", "uauau", "ua", "uaua"];
    const WITH_SYSTEM: [&str; 4] = ["su", "suau", "suauau", "sua"];
    const UNUSUAL: [&str; 4] = ["au", "sau", "uasu", "suasu"];
    let refuses_system = prober.prompt(&probe("su")).is_err();
    let with_system = if refuses_system { &[][..] } else { &WITH_SYSTEM[..] };
    for kinds in TURNS.iter().chain(with_system) {
        for messages in [probe(kinds), hard(kinds)] {
            let expected = prober.prompt(&messages)?;
            let found = program.run(&messages);
            if expected != found {
                return Err(difference(&messages, &expected, &found));
            }
        }
    }
    let mut notes = Vec::new();
    for kinds in UNUSUAL {
        let merges = !matches!(shape.system, System::Turn(_));
        if refuses_system && kinds.contains('s') || merges && kinds.contains("as") {
            continue;
        }
        let messages = hard(kinds);
        if prober.prompt(&messages).is_ok_and(|expected| expected != program.run(&messages)) {
            notes.push(Note::UnusualOrder(roles(&messages)));
        }
    }
    Ok(notes)
}

fn difference(messages: &[Message], expected: &str, found: &str) -> NotTranslatable {
    let start = common_prefix(expected, found).len().saturating_sub(20);
    let excerpt = |text: &str| {
        let start = (0..=start).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text[start..].chars().take(60).collect()
    };
    NotTranslatable::Differs { roles: roles(messages), expected: excerpt(expected), found: excerpt(found) }
}

/// A conversation of marked messages: `s`, `u` and `a` are the roles.
fn probe(kinds: &str) -> Vec<Message> {
    conversation(kinds, |i| format!("mlpackProbe{i}Text"))
}

/// The same with contents that a template engine could stumble over.
fn hard(kinds: &str) -> Vec<Message> {
    conversation(kinds, |i| {
        format!("{i}: \"q\" 'a' <b>&amp;</b> {{{{ .Content }}}} {{% if %}}\n\n\tline \\n é日本 {i}.")
    })
}

fn conversation(kinds: &str, content: impl Fn(usize) -> String) -> Vec<Message> {
    let role = |c| match c {
        's' => "system",
        'u' => "user",
        _ => "assistant",
    };
    kinds.chars().enumerate().map(|(i, c)| Message { role: role(c), content: content(i) }).collect()
}

/// The texts before, between and after the contents; `None` unless each content is there once and in order.
fn segments(text: &str, messages: &[Message]) -> Option<Vec<String>> {
    let mut rest = text;
    let mut parts = Vec::new();
    for message in messages {
        let (part, after) = rest.split_once(&message.content)?;
        parts.push(part.to_owned());
        rest = after;
    }
    parts.push(rest.to_owned());
    let clean = |part: &String| messages.iter().all(|m| !part.contains(&m.content));
    parts.iter().all(clean).then_some(parts)
}

fn segments_of(text: &str, messages: &[Message]) -> Result<Vec<String>, NotTranslatable> {
    segments(text, messages).ok_or_else(|| NotTranslatable::ContentChanged { roles: roles(messages) })
}

fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let len = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &a[..len]
}
