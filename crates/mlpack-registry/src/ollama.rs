//! Ollama's HTTP API, as far as making a model needs it (ollama 0.17.4, `docs/api.md`).

use crate::http::{Content, Failure, Http, Response, io_reason};
use crate::url::Url;
use crate::{Error, Options, Progress};
use mlpack_oci::{Blob, Modelfile, OllamaName, ollama_request};
use serde_json::Value;
use std::time::Duration;

/// Most of an answer that is read.
const ANSWER_LIMIT: u64 = 1 << 20;
/// Ollama says nothing while it copies a model.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A running Ollama.
#[derive(Debug)]
pub struct OllamaApi {
    http: Http,
    base: Url,
}

impl OllamaApi {
    /// The API at an address such as `http://127.0.0.1:11434`. Nothing is sent yet.
    pub fn new(address: &str) -> Result<OllamaApi, Error> {
        let base = Url::parse(address).ok_or_else(|| Error::Protocol {
            operation: "reach Ollama".to_owned(),
            url: address.split('@').next_back().unwrap_or_default().to_owned(),
            expected: "an address such as `http://127.0.0.1:11434`",
            found: "another one".to_owned(),
        })?;
        let options = Options { idle: PATIENCE, ..Options::default() };
        Ok(OllamaApi { http: Http::new(&options)?, base })
    }

    /// Sends the GGUF, unless Ollama has it, and makes a model of it; the bytes that were sent.
    pub fn create(
        &self,
        name: &OllamaName,
        gguf: &Blob,
        modelfile: Option<&Modelfile>,
        progress: Progress<'_>,
    ) -> Result<u64, Error> {
        let blob = format!("/api/blobs/sha256:{}", gguf.digest());
        let mut sent = 0;
        if self.ask("HEAD", &blob, &Content::None)?.status != 200 {
            let content = Content::Blob { blob: gguf, range: 0..gguf.byte_len(), sent: progress };
            let response = self.ask("POST", &blob, &content)?;
            self.check("send the GGUF to Ollama", &blob, "201", response)?;
            sent = gguf.byte_len();
        }
        let body = ollama_request(&name.to_string(), "model.gguf", gguf.digest(), modelfile);
        let response = self.ask("POST", "/api/create", &Content::Bytes(&body))?;
        self.check("make a model in Ollama", "/api/create", "200", response)?;
        Ok(sent)
    }

    fn ask(&self, method: &'static str, path: &str, content: &Content<'_>) -> Result<Response, Error> {
        let url = self.at(path);
        let headers = [("content-type", "application/json")];
        match self.http.send(method, &url, &headers, content) {
            Ok(response) => Ok(response),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Connection(reason)) => Err(Error::Unreachable { url: url.to_string(), reason, tries: 1 }),
        }
    }

    fn at(&self, path: &str) -> Url {
        Url { path_and_query: path.to_owned(), ..self.base.clone() }
    }

    /// An answer is right when its status and its words are: Ollama tells an error also in a 200.
    fn check(&self, operation: &str, path: &str, expected: &'static str, response: Response) -> Result<(), Error> {
        let url = self.at(path).to_string();
        let status = response.status;
        let bytes = response.bytes(ANSWER_LIMIT).map_err(|e| Error::Unreachable {
            url: url.clone(),
            reason: io_reason(&e),
            tries: 1,
        })?;
        let answer: Value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let detail = answer.get("error").and_then(Value::as_str).unwrap_or_default().to_owned();
        match matches!(status, 200 | 201) && detail.is_empty() {
            true => Ok(()),
            false => Err(Error::Status { operation: operation.to_owned(), url, expected, status, detail, tries: 1 }),
        }
    }
}
