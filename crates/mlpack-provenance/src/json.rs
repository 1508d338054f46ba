//! JSON in two directions: canonical bytes out (RFC 8785, JCS), strict values in (no duplicate keys, bounded depth).

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Largest integer that every JSON reader keeps exact (RFC 8785 section 3.2.2.3, RFC 7493 section 2.2).
const MAX_EXACT_INTEGER: u64 = (1 << 53) - 1;

/// Canonical bytes of a value whose numbers passed [`first_inexact_number`].
pub(crate) fn canonical<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value).expect("maps with string keys and exact integers always serialise")
}

/// Canonical bytes of a value that came from elsewhere; `None` when it has none (a number outside float64).
pub(crate) fn canonical_untrusted(value: &Value) -> Option<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value).ok()
}

/// The place (`a.b[2]`) of the first number that is not an integer within 2^53, if there is one.
pub(crate) fn first_inexact_number(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => None,
        Value::Number(number) => {
            let exact = match (number.as_u64(), number.as_i64()) {
                (Some(n), _) => n <= MAX_EXACT_INTEGER,
                (None, Some(n)) => n.unsigned_abs() <= MAX_EXACT_INTEGER,
                (None, None) => false,
            };
            (!exact).then(String::new)
        }
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, item)| first_inexact_number(item).map(|rest| format!("[{i}]{rest}")))
        }
        Value::Object(map) => map.iter().find_map(|(key, item)| {
            let rest = first_inexact_number(item)?;
            let dot = if rest.is_empty() || rest.starts_with('[') { "" } else { "." };
            Some(format!("{key}{dot}{rest}"))
        }),
    }
}

/// Parses untrusted JSON. Duplicate keys are an error, and so is nesting deeper than 128 (serde_json's limit).
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(bytes).map(|strict| strict.0)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

/// The key under which serde_json, with its `arbitrary_precision` feature, hands a number to a visitor.
const NUMBER_KEY: &str = "$serde_json::private::Number";

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if key == NUMBER_KEY && map.is_empty() {
                let text = access.next_value::<String>()?;
                let number = text.parse::<Number>().map_err(|_| A::Error::custom("not a number"))?;
                return match access.next_key::<String>()? {
                    None => Ok(Value::Number(number)),
                    Some(_) => Err(A::Error::custom("a reserved key")),
                };
            }
            let Strict(value) = access.next_value()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key `{key}`")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_bytes_sort_keys_by_utf16_and_do_not_depend_on_the_input_order() {
        let a = parse(r#"{ "b": 1, "a": [true, null, "é\n"], "😀": 2, "\ufb33": 3 }"#.as_bytes()).unwrap();
        let b = parse(r#"{"\ufb33":3,"😀":2,"a":[true,null,"é\n"],"b":1}"#.as_bytes()).unwrap();
        assert_eq!(canonical(&a), canonical(&b));
        // RFC 8785 section 3.2.3: U+1F600 is the surrogate pair D83D DE00, which sorts before U+FB33.
        assert_eq!(
            String::from_utf8(canonical(&a)).unwrap(),
            "{\"a\":[true,null,\"é\\n\"],\"b\":1,\"😀\":2,\"\u{fb33}\":3}"
        );
    }

    #[test]
    fn numbers_survive_parsing_and_inexact_ones_are_named() {
        let value = parse(br#"{"a":{"b":[1,2,9007199254740991,-5]}}"#).unwrap();
        assert_eq!(first_inexact_number(&value), None);
        assert_eq!(canonical(&value), br#"{"a":{"b":[1,2,9007199254740991,-5]}}"#);
        for (text, place) in [
            (r#"{"a":{"b":[1,0.5]}}"#, "a.b[1]"),
            (r#"{"n":9007199254740992}"#, "n"),
            (r#"[[],{"x":{"y":1e3}}]"#, "[1]x.y"),
        ] {
            assert_eq!(first_inexact_number(&parse(text.as_bytes()).unwrap()).as_deref(), Some(place), "{text}");
        }
        assert_eq!(parse(b"5.711540374303548e-08").unwrap().to_string(), "5.711540374303548e-08");
    }

    #[test]
    fn duplicate_keys_and_deep_nesting_are_errors() {
        let duplicate = parse(br#"{"a":{"x":1,"x":1}}"#).unwrap_err().to_string();
        assert!(duplicate.contains("duplicate key `x`"), "{duplicate}");
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
        assert!(parse(br#"{"a":1} {}"#).is_err(), "trailing bytes");
        assert!(parse(br#"{"$serde_json::private::Number":"1","b":2}"#).is_err());
        assert_eq!(parse(br#"{"a":"b"}"#).unwrap(), json!({"a": "b"}));
    }
}
