//! Requests to an MLflow server. Nothing here is asked unless a command was given the server's address.

use mlpack_provenance::{Answer, MAX_ANSWER_LEN, Request};
use std::time::Duration;
use ureq::Agent;

/// Longest time for one answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks once. Credentials come from the variables that MLflow's own clients read, and go to the asked server alone.
pub fn fetch(request: &Request) -> Result<Answer, String> {
    let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).timeout_global(Some(PATIENCE));
    let agent: Agent = config.build().into();
    let authorization = authorization(|name| std::env::var(name).ok());
    let answer = match &request.body {
        None => {
            let asked = agent.get(&request.url);
            match &authorization {
                Some(value) => asked.header("authorization", value).call(),
                None => asked.call(),
            }
        }
        Some(body) => {
            let asked = agent.post(&request.url).header("content-type", "application/json");
            match &authorization {
                Some(value) => asked.header("authorization", value).send(body),
                None => asked.send(body),
            }
        }
    };
    let mut answer = answer.map_err(|e| e.to_string())?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(MAX_ANSWER_LEN as u64).read_to_vec().map_err(|e| e.to_string())?;
    Ok(Answer { status, body })
}

fn authorization(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    if let Some(token) = variable("MLFLOW_TRACKING_TOKEN") {
        return Some(format!("Bearer {token}"));
    }
    let user = variable("MLFLOW_TRACKING_USERNAME")?;
    let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
    Some(format!("Basic {}", mlpack_provenance::base64(format!("{user}:{password}").as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_variables() {
        let of = |set: &[(&str, &str)]| {
            authorization(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("MLFLOW_TRACKING_TOKEN", "t")]).as_deref(), Some("Bearer t"));
        let basic = [("MLFLOW_TRACKING_USERNAME", "Aladdin"), ("MLFLOW_TRACKING_PASSWORD", "open sesame")];
        // RFC 7617 section 2.
        assert_eq!(of(&basic).as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
    }
}
