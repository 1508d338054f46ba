//! Arithmetic of descriptions: numbers computed from config fields as the converter's Python computes them.

use serde::Deserialize;

/// A product, an integer quotient, a field, a number, `int(…)`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Expression {
    Integer(i64),
    Float(f64),
    /// A config field; `rope.NAME` is one of the rope parameters.
    Field(String),
    /// Python's `a * b`.
    Product(Box<Expression>, Box<Expression>),
    /// Python's `a // b`, of integers.
    Quotient(Box<Expression>, Box<Expression>),
    /// Python's `a + b`.
    Sum(Box<Expression>, Box<Expression>),
    /// Python's `a - b`.
    Difference(Box<Expression>, Box<Expression>),
    /// Python's `int(a)`.
    Truncated(Box<Expression>),
}

/// What an expression gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Integer(i64),
    Float(f64),
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// This field is missing, null or not a number.
    Field(String),
    /// A division by zero, or a number that does not fit.
    Arithmetic,
}

/// Parentheses within parentheses that are read.
const DEPTH_LIMIT: usize = 8;

impl Expression {
    /// Reads `4 * n_embd`, `int(rotary_pct * (hidden_size / num_attention_heads))`, …
    pub fn parse(text: &str) -> Option<Expression> {
        let mut parser = Parser { rest: text, depth: 0 };
        let expression = parser.sum()?;
        parser.rest.trim().is_empty().then_some(expression)
    }

    /// The value, with the fields that `field` finds.
    pub fn value(&self, field: &dyn Fn(&str) -> Option<Number>) -> Result<Number, NoValue> {
        let both = |a: &Expression, b: &Expression| Ok::<_, NoValue>((a.value(field)?, b.value(field)?));
        Ok(match self {
            Expression::Integer(n) => Number::Integer(*n),
            Expression::Float(n) => Number::Float(*n),
            Expression::Field(name) => field(name).ok_or_else(|| NoValue::Field(name.clone()))?,
            Expression::Product(a, b) => match both(a, b)? {
                (Number::Integer(a), Number::Integer(b)) => {
                    Number::Integer(a.checked_mul(b).ok_or(NoValue::Arithmetic)?)
                }
                (a, b) => Number::Float(a.float() * b.float()),
            },
            Expression::Sum(a, b) => match both(a, b)? {
                (Number::Integer(a), Number::Integer(b)) => {
                    Number::Integer(a.checked_add(b).ok_or(NoValue::Arithmetic)?)
                }
                (a, b) => Number::Float(a.float() + b.float()),
            },
            Expression::Difference(a, b) => match both(a, b)? {
                (Number::Integer(a), Number::Integer(b)) => {
                    Number::Integer(a.checked_sub(b).ok_or(NoValue::Arithmetic)?)
                }
                (a, b) => Number::Float(a.float() - b.float()),
            },
            Expression::Quotient(a, b) => match both(a, b)? {
                (Number::Integer(a), Number::Integer(b)) => Number::Integer(floor_div(a, b)?),
                _ => return Err(NoValue::Arithmetic),
            },
            Expression::Truncated(a) => match a.value(field)? {
                Number::Float(a) if a.abs() < 9e15 => Number::Integer(a.trunc() as i64),
                Number::Float(_) => return Err(NoValue::Arithmetic),
                integer => integer,
            },
        })
    }

    /// Whether it is one field and nothing else.
    pub fn as_field(&self) -> Option<&str> {
        match self {
            Expression::Field(name) => Some(name),
            _ => None,
        }
    }
}

impl TryFrom<String> for Expression {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Expression, &'static str> {
        Expression::parse(&text).ok_or("expected a field, a number, `a * b`, `a / b`, `a + b`, `a - b` or `int(…)`")
    }
}

impl Number {
    fn float(self) -> f64 {
        match self {
            Number::Integer(n) => n as f64,
            Number::Float(n) => n,
        }
    }
}

fn floor_div(a: i64, b: i64) -> Result<i64, NoValue> {
    let quotient = a.checked_div(b).ok_or(NoValue::Arithmetic)?;
    Ok(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Option<Expression> {
        let mut left = self.product()?;
        loop {
            left = if self.take('+') {
                Expression::Sum(Box::new(left), Box::new(self.product()?))
            } else if self.take('-') {
                Expression::Difference(Box::new(left), Box::new(self.product()?))
            } else {
                return Some(left);
            };
        }
    }

    fn product(&mut self) -> Option<Expression> {
        let mut left = self.factor()?;
        loop {
            left = if self.take('*') {
                Expression::Product(Box::new(left), Box::new(self.factor()?))
            } else if self.take('/') {
                Expression::Quotient(Box::new(left), Box::new(self.factor()?))
            } else {
                return Some(left);
            };
        }
    }

    fn factor(&mut self) -> Option<Expression> {
        if self.take('(') {
            return self.inner();
        }
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return match word.contains('.') {
                true => word.parse().ok().map(Expression::Float),
                false => word.parse().ok().map(Expression::Integer),
            };
        }
        if word == "int" && self.take('(') {
            return Some(Expression::Truncated(Box::new(self.inner()?)));
        }
        (!word.is_empty()).then(|| Expression::Field(word.to_owned()))
    }

    /// What is in parentheses of which the first is taken.
    fn inner(&mut self) -> Option<Expression> {
        self.depth += 1;
        let inner = (self.depth <= DEPTH_LIMIT).then(|| self.sum()).flatten()?;
        self.depth -= 1;
        self.take(')').then_some(inner)
    }

    fn take(&mut self, symbol: char) -> bool {
        match self.rest.trim_start().strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<Number, NoValue> {
        let field = |name: &str| match name {
            "n" => Some(Number::Integer(10)),
            "rope.part" => Some(Number::Float(0.25)),
            _ => None,
        };
        Expression::parse(text).expect(text).value(&field)
    }

    #[test]
    fn numbers_are_computed_as_python_does() {
        assert_eq!(value("4 * n"), Ok(Number::Integer(40)));
        assert_eq!(value("n / 3"), Ok(Number::Integer(3)));
        assert_eq!(value("int(rope.part * n) / 2"), Ok(Number::Integer(1)));
        assert_eq!(value("int(rope.part * (n / 2))"), Ok(Number::Integer(1)));
        assert_eq!(value("n * 0.5 + 1"), Ok(Number::Float(6.0)));
        assert_eq!(value("n + 2 * n"), Ok(Number::Integer(30)));
        assert_eq!(value("n - 3 - 2 * 4"), Ok(Number::Integer(-1)));
        assert_eq!(value("n - rope.part"), Ok(Number::Float(9.75)));
    }

    #[test]
    fn what_has_no_value_says_why() {
        assert_eq!(value("m * n"), Err(NoValue::Field("m".to_owned())));
        assert_eq!(value("n / 0"), Err(NoValue::Arithmetic));
        assert_eq!(value("9223372036854775807 * n"), Err(NoValue::Arithmetic));
        assert_eq!(value("rope.part / 2"), Err(NoValue::Arithmetic));
    }

    #[test]
    fn other_text_is_not_an_expression() {
        for text in ["", "a -", "a b", "(a", "int(a", "a)", "3x", "*a", &"(".repeat(1000)] {
            assert_eq!(Expression::parse(text), None, "{text}");
        }
    }
}
