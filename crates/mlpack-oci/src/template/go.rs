//! An interpreter of the Go template constructs that this crate writes, to check them before anyone runs them.
//!
//! ```text
//! text   {{ ACTION }}   {{- ACTION }} (trims the blanks before it)
//! ACTION range $i, $_ := .Messages | if E | else if E | else | end | $x := E | $x = E | E
//! E      eq O O | ne O O | le O O | and O O | not O | len O | slice O O | O
//! O      .Role .Content .System .Messages $.System $.Messages $x "text" number true false (E)
//! ```

use super::Message;
use std::collections::BTreeMap;

/// Conditions inside each other; what this crate writes has about four.
const DEPTH_LIMIT: usize = 32;

/// A parsed template.
#[derive(Debug)]
pub(super) struct Program(Vec<Node>);

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Expr),
    // Go tells declaration and assignment apart by scope; the names written here are declared once.
    Set(String, Expr),
    If { cases: Vec<(Expr, Vec<Node>)>, otherwise: Vec<Node> },
    Range(Vec<Node>),
}

#[derive(Debug)]
enum Expr {
    Field(String),
    Root(String),
    Variable(String),
    Text(String),
    Int(usize),
    Bool(bool),
    Call(String, Vec<Expr>),
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Int(usize),
    Bool(bool),
}

impl Program {
    /// Parses a template; the error is what is not one of the constructs above.
    pub fn parse(source: &str) -> Result<Program, String> {
        let items = lex(source)?;
        let mut parser = Parser { items: &items, at: 0 };
        let nodes = parser.nodes(0)?;
        match parser.items.get(parser.at) {
            None => Ok(Program(nodes)),
            Some(item) => Err(format!("{item:?} without its beginning")),
        }
    }

    /// Renders a conversation as Ollama calls templates.
    pub fn run(&self, messages: &[Message]) -> String {
        let system: Vec<&str> = messages.iter().filter(|m| m.role == "system").map(|m| m.content.as_str()).collect();
        let mut run = Run {
            messages,
            system: system.join("\n\n"),
            variables: BTreeMap::new(),
            current: None,
            out: String::new(),
        };
        run.nodes(&self.0);
        run.out
    }
}

#[derive(Debug)]
enum Item {
    Text(String),
    Action(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Int(usize),
    Open,
    Close,
    Comma,
    Declare,
    Assign,
}

fn lex(source: &str) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find("{{") {
        let (text, action) = (&rest[..at], &rest[at + 2..]);
        let (text, action) = match action.strip_prefix("- ") {
            Some(action) => (text.trim_end_matches([' ', '\t', '\r', '\n']), action),
            None => (text, action),
        };
        if !text.is_empty() {
            items.push(Item::Text(text.to_owned()));
        }
        let (tokens, after) = tokens(action)?;
        items.push(Item::Action(tokens));
        rest = after;
    }
    if !rest.is_empty() {
        items.push(Item::Text(rest.to_owned()));
    }
    Ok(items)
}

/// The tokens up to `}}`, and what follows it.
fn tokens(source: &str) -> Result<(Vec<Token>, &str), String> {
    let mut tokens = Vec::new();
    let mut rest = source;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((tokens, after));
        }
        let c = rest.chars().next().ok_or("an action without its end")?;
        let symbol = [
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
            (":=", Token::Declare),
            ("=", Token::Assign),
        ];
        if let Some((text, token)) = symbol.into_iter().find(|(text, _)| rest.starts_with(text)) {
            tokens.push(token);
            rest = &rest[text.len()..];
        } else if c == '"' {
            let (text, after) = string(&rest[1..])?;
            tokens.push(Token::Text(text));
            rest = after;
        } else {
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '$' | '_');
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            if end == 0 {
                return Err(format!("character {c:?}"));
            }
            let text = &rest[..end];
            tokens.push(match text.parse() {
                Ok(n) => Token::Int(n),
                Err(_) => Token::Word(text.to_owned()),
            });
            rest = &rest[end..];
        }
    }
}

/// A Go string constant after its opening quote.
fn string(source: &str) -> Result<(String, &str), String> {
    let mut text = String::new();
    let mut chars = source.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((text, &source[at + 1..])),
            '\n' => break,
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\\'))) => text.push(c),
                Some((_, 'U')) => {
                    let digits: String = chars.by_ref().take(8).map(|(_, c)| c).collect();
                    let c = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                    text.push(c.ok_or_else(|| format!("escape \\U{digits}"))?);
                }
                other => return Err(format!("escape {other:?}")),
            },
            c => text.push(c),
        }
    }
    Err("a string without its end".to_owned())
}

struct Parser<'a> {
    items: &'a [Item],
    at: usize,
}

impl Parser<'_> {
    /// Nodes up to an `else`, an `end` or the end of the source.
    fn nodes(&mut self, depth: usize) -> Result<Vec<Node>, String> {
        if depth > DEPTH_LIMIT {
            return Err("too deep".to_owned());
        }
        let mut nodes = Vec::new();
        while let Some(item) = self.items.get(self.at) {
            let tokens = match item {
                Item::Text(text) => {
                    nodes.push(Node::Text(text.clone()));
                    self.at += 1;
                    continue;
                }
                Item::Action(tokens) => tokens,
            };
            match &tokens[..] {
                [Token::Word(w), ..] if w == "else" || w == "end" => return Ok(nodes),
                [Token::Word(w), condition @ ..] if w == "if" => nodes.push(self.conditional(condition, depth)?),
                [Token::Word(w), rest @ ..] if w == "range" => {
                    let word = |w: &str| Token::Word(w.to_owned());
                    if rest != [word("$i"), Token::Comma, word("$_"), Token::Declare, word(".Messages")] {
                        return Err(format!("range {rest:?}"));
                    }
                    self.at += 1;
                    let body = self.nodes(depth + 1)?;
                    self.end()?;
                    nodes.push(Node::Range(body));
                }
                [Token::Word(name), Token::Declare | Token::Assign, rest @ ..] if name.starts_with('$') => {
                    nodes.push(Node::Set(name.clone(), expression(rest)?));
                    self.at += 1;
                }
                _ => {
                    nodes.push(Node::Print(expression(tokens)?));
                    self.at += 1;
                }
            }
        }
        Ok(nodes)
    }

    fn conditional(&mut self, condition: &[Token], depth: usize) -> Result<Node, String> {
        let mut cases = Vec::new();
        let mut condition = expression(condition)?;
        loop {
            self.at += 1;
            let body = self.nodes(depth + 1)?;
            cases.push((condition, body));
            match self.action() {
                Some([Token::Word(e), Token::Word(i), rest @ ..]) if e == "else" && i == "if" => {
                    condition = expression(rest)?;
                }
                Some([Token::Word(e)]) if e == "else" => {
                    self.at += 1;
                    let otherwise = self.nodes(depth + 1)?;
                    self.end()?;
                    return Ok(Node::If { cases, otherwise });
                }
                _ => {
                    self.end()?;
                    return Ok(Node::If { cases, otherwise: Vec::new() });
                }
            }
        }
    }

    fn action(&self) -> Option<&[Token]> {
        match self.items.get(self.at)? {
            Item::Action(tokens) => Some(tokens),
            Item::Text(_) => None,
        }
    }

    fn end(&mut self) -> Result<(), String> {
        match self.action() {
            Some([Token::Word(w)]) if w == "end" => {
                self.at += 1;
                Ok(())
            }
            other => Err(format!("{other:?} instead of `end`")),
        }
    }
}

/// A call without parentheses, or one operand.
fn expression(tokens: &[Token]) -> Result<Expr, String> {
    const FUNCTIONS: [(&str, usize); 7] =
        [("eq", 2), ("ne", 2), ("le", 2), ("and", 2), ("not", 1), ("len", 1), ("slice", 2)];
    let (function, mut rest) = match tokens {
        [Token::Word(w), rest @ ..] => match FUNCTIONS.iter().find(|(name, _)| name == w) {
            Some(function) => (Some(function), rest),
            None => (None, tokens),
        },
        _ => (None, tokens),
    };
    let mut operands = Vec::new();
    while !rest.is_empty() {
        let (operand, after) = operand(rest)?;
        operands.push(operand);
        rest = after;
    }
    match function {
        Some((name, arity)) if operands.len() == *arity => Ok(Expr::Call((*name).to_owned(), operands)),
        None if operands.len() == 1 => Ok(operands.remove(0)),
        _ => Err(format!("expression {tokens:?}")),
    }
}

fn operand(tokens: &[Token]) -> Result<(Expr, &[Token]), String> {
    let (first, rest) = tokens.split_first().ok_or("an empty expression")?;
    let operand = match first {
        Token::Text(text) => Expr::Text(text.clone()),
        Token::Int(n) => Expr::Int(*n),
        Token::Word(w) if w == "true" || w == "false" => Expr::Bool(w == "true"),
        Token::Word(w) => match (w.strip_prefix("$."), w.strip_prefix('.')) {
            (Some(field), _) if matches!(field, "System" | "Messages") => Expr::Root(field.to_owned()),
            (None, Some(field)) if matches!(field, "Role" | "Content" | "System" | "Messages") => {
                Expr::Field(field.to_owned())
            }
            (None, None) if w.starts_with('$') => Expr::Variable(w.clone()),
            _ => return Err(format!("name {w:?}")),
        },
        Token::Open => {
            let mut depth = 0usize;
            let close = tokens.iter().position(|t| {
                match t {
                    Token::Open => depth += 1,
                    Token::Close => depth -= 1,
                    _ => {}
                }
                depth == 0
            });
            let close = close.ok_or("a parenthesis without its end")?;
            return Ok((expression(&tokens[1..close])?, &tokens[close + 1..]));
        }
        Token::Close | Token::Comma | Token::Declare | Token::Assign => return Err(format!("operand {first:?}")),
    };
    Ok((operand, rest))
}

struct Run<'a> {
    messages: &'a [Message],
    system: String,
    variables: BTreeMap<String, Value>,
    current: Option<&'a Message>,
    out: String,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node]) {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(expr) => match self.value(expr) {
                    Value::Text(text) => self.out.push_str(&text),
                    Value::Int(n) => self.out.push_str(&n.to_string()),
                    Value::Bool(b) => self.out.push_str(&b.to_string()),
                },
                Node::Set(name, expr) => {
                    let value = self.value(expr);
                    self.variables.insert(name.clone(), value);
                }
                Node::If { cases, otherwise } => {
                    let case = cases.iter().find(|(condition, _)| is_true(&self.value(condition)));
                    self.nodes(case.map_or(otherwise, |(_, body)| body));
                }
                Node::Range(body) => {
                    for (i, message) in self.messages.iter().enumerate() {
                        self.variables.insert("$i".to_owned(), Value::Int(i));
                        self.current = Some(message);
                        self.nodes(body);
                    }
                    self.current = None;
                }
            }
        }
    }

    /// A missing field is the empty text, as Ollama's `missingkey=zero` has it.
    fn value(&self, expr: &Expr) -> Value {
        match expr {
            Expr::Text(text) => Value::Text(text.clone()),
            Expr::Int(n) => Value::Int(*n),
            Expr::Bool(b) => Value::Bool(*b),
            Expr::Variable(name) => self.variables.get(name).cloned().unwrap_or(Value::Text(String::new())),
            Expr::Root(field) => self.root(field),
            Expr::Field(field) => match (self.current, field.as_str()) {
                (Some(message), "Role") => Value::Text(message.role.to_owned()),
                (Some(message), "Content") => Value::Text(message.content.clone()),
                (_, field) => self.root(field),
            },
            Expr::Call(name, operands) => {
                let operand = |i: usize| self.value(&operands[i]);
                match name.as_str() {
                    "eq" => Value::Bool(operand(0) == operand(1)),
                    "ne" => Value::Bool(operand(0) != operand(1)),
                    "le" => match (operand(0), operand(1)) {
                        (Value::Int(a), Value::Int(b)) => Value::Bool(a <= b),
                        _ => Value::Bool(false),
                    },
                    "not" => Value::Bool(!is_true(&operand(0))),
                    "and" => match operand(0) {
                        first if is_true(&first) => operand(1),
                        first => first,
                    },
                    // A list is known by its length alone.
                    "slice" => match (operand(0), operand(1)) {
                        (Value::Int(len), Value::Int(start)) => Value::Int(len.saturating_sub(start)),
                        (list, _) => list,
                    },
                    _ => operand(0),
                }
            }
        }
    }

    fn root(&self, field: &str) -> Value {
        match field {
            "System" => Value::Text(self.system.clone()),
            "Messages" => Value::Int(self.messages.len()),
            _ => Value::Text(String::new()),
        }
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Text(text) => !text.is_empty(),
        Value::Int(n) => *n != 0,
        Value::Bool(b) => *b,
    }
}
