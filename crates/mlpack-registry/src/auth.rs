//! Who we are to a registry: none, Basic, or a Bearer token of the service that it names (distribution `auth/token.md`).

use crate::http::{Content, Failure, Http, Response};
use crate::url::{Url, encode};
use crate::{Credentials, Error};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Largest answer of a token service.
const TOKEN_LIMIT: u64 = 1 << 20;

/// The state of being known to one registry.
#[derive(Debug)]
pub(crate) struct Auth {
    credentials: Option<Credentials>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    basic: bool,
    tokens: BTreeMap<String, String>,
    secrets: Vec<String>,
}

impl Auth {
    pub fn new(credentials: Option<Credentials>) -> Auth {
        let secrets = credentials.iter().flat_map(Credentials::secrets).collect();
        Auth { credentials, state: Mutex::new(State { secrets, ..State::default() }) }
    }

    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The `Authorization` header for a scope, as far as it is known what the registry wants.
    pub fn header(&self, scope: &str) -> Option<String> {
        let state = self.state.lock().expect("no thread panics holding the lock");
        match (state.tokens.get(scope), &self.credentials) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(Credentials::Password { user, password })) if state.basic => Some(basic(user, password)),
            _ => None,
        }
    }

    /// Takes secrets out of a text that a server wrote.
    pub fn redact(&self, text: &str) -> String {
        let state = self.state.lock().expect("no thread panics holding the lock");
        let mut text = text.to_owned();
        for secret in state.secrets.iter().filter(|secret| secret.len() > 2) {
            text = text.replace(secret, "[…]");
        }
        text
    }

    /// Answers a 401 to a request that had the header `used`: gets a token, or turns to Basic. `false` when there is nothing
    /// more to try.
    pub fn answer(
        &self,
        http: &Http,
        base: &Url,
        challenge: &Response,
        scope: &str,
        used: Option<&str>,
    ) -> Result<bool, Failure> {
        for value in challenge.headers.get_all("www-authenticate").iter().filter_map(|v| v.to_str().ok()) {
            for (scheme, parameters) in challenges(value) {
                if let (true, Some(Credentials::Password { user, password })) =
                    (scheme.eq_ignore_ascii_case("basic"), &self.credentials)
                {
                    self.state.lock().expect("no thread panics holding the lock").basic = true;
                    return Ok(used != Some(&basic(user, password)));
                }
                if scheme.eq_ignore_ascii_case("bearer") {
                    let token = self.fetch(http, base, &parameters, scope)?;
                    let mut state = self.state.lock().expect("no thread panics holding the lock");
                    if let Some(token) = token {
                        state.secrets.push(token.clone());
                        state.tokens.insert(scope.to_owned(), token);
                        return Ok(true);
                    }
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// A token for the scope, or `None` when the service refuses.
    fn fetch(
        &self,
        http: &Http,
        base: &Url,
        parameters: &BTreeMap<String, String>,
        scope: &str,
    ) -> Result<Option<String>, Failure> {
        let malformed = |found: &str| Error::Protocol {
            operation: "authenticate".to_owned(),
            url: base.to_string(),
            expected: "a Bearer challenge with the address of a token service",
            found: found.to_owned(),
        };
        let realm = parameters.get("realm").and_then(|realm| Url::parse(realm)).ok_or_else(|| malformed("none"))?;
        if self.credentials.is_some()
            && realm.scheme != "https"
            && !realm.same_origin(base)
            && realm.host() != base.host()
        {
            return Err(Error::InsecureRealm { host: base.authority.clone(), realm: realm.to_string() }.into());
        }
        let service = parameters.get("service");
        let answer = if let Some(Credentials::IdentityToken(token)) = &self.credentials {
            let mut form = format!("grant_type=refresh_token&client_id=mlpack&refresh_token={}", encode(token));
            for (name, value) in [("service", service.map(String::as_str)), ("scope", Some(scope))] {
                if let Some(value) = value {
                    form.push_str(&format!("&{name}={}", encode(value)));
                }
            }
            let headers = [("content-type", "application/x-www-form-urlencoded")];
            http.send("POST", &realm, &headers, &Content::Bytes(form.as_bytes()))?
        } else {
            let mut url = realm.clone();
            if let Some(service) = service {
                url = url.with_parameter("service", service);
            }
            // One parameter for each part: a token may reach over several repositories.
            for part in scope.split(' ') {
                url = url.with_parameter("scope", part);
            }
            let authorization = match &self.credentials {
                Some(Credentials::Password { user, password }) => Some(basic(user, password)),
                _ => None,
            };
            let headers: Vec<(&str, &str)> = authorization.iter().map(|v| ("authorization", v.as_str())).collect();
            http.send("GET", &url, &headers, &Content::None)?
        };
        match answer.status {
            200 => {}
            401 | 403 => {
                answer.drain();
                return Ok(None);
            }
            429 | 500.. => return Err(Failure::Connection(format!("the token service answers {}", answer.status))),
            status => return Err(malformed(&format!("status {status} of the token service")).into()),
        }
        let bytes = answer.bytes(TOKEN_LIMIT).map_err(|e| Failure::Connection(crate::http::io_reason(&e)))?;
        let value: Option<Value> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let token =
            value.as_ref().and_then(|v| v.get("token").or_else(|| v.get("access_token"))).and_then(Value::as_str);
        let usable = |t: &&str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        match token.filter(usable) {
            Some(token) => Ok(Some(token.to_owned())),
            None => Err(malformed("no token in the answer of the token service").into()),
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The challenges of a `WWW-Authenticate` header (RFC 9110, 11.6.1): schemes with their parameters.
fn challenges(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter(value);
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.insert(word.to_ascii_lowercase(), value);
                }
                after
            }
            None => {
                if !word.is_empty() {
                    found.push((word.to_owned(), BTreeMap::new()));
                }
                after
            }
        };
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_quoted_commas_and_several_schemes() {
        let found = challenges(
            r#"Negotiate, Bearer realm="https://a/token?x=1",service="s \"q\"", scope="repository:a/b:pull,push", Basic realm=x"#,
        );
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Negotiate", "Bearer", "Basic"]);
        assert_eq!(found[1].1["realm"], "https://a/token?x=1");
        assert_eq!(found[1].1["service"], "s \"q\"");
        assert_eq!(found[1].1["scope"], "repository:a/b:pull,push");
        assert_eq!(found[2].1["realm"], "x");
        for hostile in ["", ",,,", "=", "\"", "a=\"", "Bearer realm=\"\\"] {
            challenges(hostile);
        }
    }

    #[test]
    fn secrets_are_taken_out_of_other_peoples_words() {
        let credentials = Credentials::Password { user: "u".to_owned(), password: "s3cret".to_owned() };
        let auth = Auth::new(Some(credentials));
        assert_eq!(auth.redact("bad s3cret, dTpzM2NyZXQ="), "bad […], […]");
    }
}
