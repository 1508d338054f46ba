//! JSON as Python reads it: integers and floats are different things, however large.

use crate::Error;
use crate::family::Number;
use serde_json::{Map, Value};
use std::path::Path;

/// Bytes of the largest JSON file that is read here (configs; tokenizers have their own limit).
const FILE_LIMIT: u64 = 16 << 20;

/// Reads a file that holds a JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    match read(path)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::NotAnObject { path: path.to_owned(), found: describe(&other) }),
    }
}

/// Reads a JSON file.
pub(crate) fn read(path: &Path) -> Result<Value, Error> {
    read_bounded(path, FILE_LIMIT)
}

/// Reads a JSON file of at most so many bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Value, Error> {
    let text = mlpack_fs::read_to_string_bounded(path, limit)?;
    serde_json::from_str(&text).map_err(|e| Error::Json {
        path: path.to_owned(),
        line: e.line(),
        column: e.column(),
        message: e.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
    })
}

/// Whether Python would read the value as an `int`.
pub(crate) fn is_integer(value: &Value) -> bool {
    matches!(value, Value::Number(n) if integer_text(n))
}

/// The value as a u32, when Python would pack it as one.
pub(crate) fn u32(value: &Value) -> Option<u32> {
    u32::try_from(value.as_number().filter(|n| integer_text(n))?.as_u64()?).ok()
}

/// The value as an i32, when Python would pack it as one.
pub(crate) fn i32(value: &Value) -> Option<i32> {
    i32::try_from(value.as_number().filter(|n| integer_text(n))?.as_i64()?).ok()
}

/// The value as a number for arithmetic.
pub(crate) fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Number(n) if integer_text(n) => Some(Number::Integer(n.as_i64()?)),
        Value::Number(_) => finite(value).map(Number::Float),
        _ => None,
    }
}

/// The number as a double, when it is one.
pub(crate) fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|n| n.is_finite())
}

/// The number as a float, when Python would pack it as one: a finite double that rounds to an infinite float is refused.
pub(crate) fn f32(value: &Value) -> Option<f32> {
    Some(finite(value)? as f32).filter(|n| n.is_finite())
}

/// Python's `bool(value)`.
pub(crate) fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// The value in a few words, for "found:".
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(n) => mlpack_tensor::Escaped(n.as_str()).to_string(),
        Value::String(s) => format!("the string `{}`", mlpack_tensor::Escaped(s)),
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(o) => format!("an object with {} keys", o.len()),
    }
}

fn integer_text(number: &serde_json::Number) -> bool {
    !number.as_str().contains(['.', 'e', 'E'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn integers_and_floats_are_told_apart_by_their_spelling() {
        assert!(is_integer(&value("5")) && is_integer(&value("-123456789012345678901234567890")));
        assert!(!is_integer(&value("5.0")) && !is_integer(&value("1e3")) && !is_integer(&value("true")));
        assert_eq!(u32(&value("4294967295")), Some(u32::MAX));
        assert_eq!(u32(&value("4294967296")), None);
        assert_eq!(u32(&value("5.0")), None);
        assert_eq!(i32(&value("-1")), Some(-1));
    }

    #[test]
    fn numbers_that_do_not_fit_a_float_are_refused() {
        assert_eq!(f32(&value("1e-5")), Some(1e-5));
        assert_eq!(f32(&value("1e39")), None);
        assert_eq!(f32(&value("3")), Some(3.0));
    }
}
