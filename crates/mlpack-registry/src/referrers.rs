//! What refers to a manifest: the registry's own list, or the fallback tag where it has none (distribution-spec v1.1,
//! "Listing Referrers" and "Referrers Tag Schema").

use crate::client::Call;
use crate::http::{Content, io_reason};
use crate::{Error, Repository};
use mlpack_fs::Sha256;
use mlpack_oci::{PackedDocument, media};
use serde_json::{Value, json};

/// Largest list of referrers read.
const LIST_LIMIT: u64 = 4 << 20;

/// The tag under which a registry without the API has the list.
fn fallback_tag(subject: &Sha256) -> String {
    format!("sha256-{subject}")
}

impl Repository<'_> {
    /// The descriptors of what refers to a manifest, as JSON.
    pub fn referrers(&self, subject: &Sha256) -> Result<Vec<Value>, Error> {
        let scope = self.pull_scope();
        let call = Call {
            method: "GET",
            url: self.url(&format!("referrers/sha256:{subject}")),
            scope: &scope,
            operation: &format!("list what refers to sha256:{subject} in `{self}`"),
            headers: &[("accept", media::IMAGE_INDEX)],
            content: Content::None,
        };
        let (response, url) =
            self.client.send(&call, "200 or 404", |status| matches!(status, 200 | 400 | 404 | 405))?;
        if response.status != 200 {
            response.drain();
            return match self.document_named(&fallback_tag(subject), None) {
                Ok(document) => Ok(entries(&document.bytes)),
                Err(error) if error.is_not_found() => Ok(Vec::new()),
                Err(error) => Err(error),
            };
        }
        match response.bytes(LIST_LIMIT) {
            Ok(Some(bytes)) => Ok(entries(&bytes)),
            Ok(None) => {
                let (operation, url) = (call.operation.to_owned(), url.to_string());
                Err(Error::TooLarge { operation, url, limit: LIST_LIMIT })
            }
            Err(e) => Err(self.client.unreachable(&url, io_reason(&e), 1)),
        }
    }
}

fn entries(bytes: &[u8]) -> Vec<Value> {
    let index: Value = serde_json::from_slice(bytes).unwrap_or_default();
    index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Adds a referrer to the list under the fallback tag.
pub(crate) fn add_to_fallback(
    repository: &Repository<'_>,
    subject: &Sha256,
    referrer: &PackedDocument,
) -> Result<(), Error> {
    let tag = fallback_tag(subject);
    let mut list = match repository.document_named(&tag, None) {
        Ok(document) => entries(&document.bytes),
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error),
    };
    let digest = crate::push::spelled(&referrer.digest);
    if list.iter().any(|entry| entry.get("digest").and_then(Value::as_str) == Some(digest.as_str())) {
        return Ok(());
    }
    list.push(descriptor(referrer));
    let index = json!({"schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": list});
    let bytes = serde_json::to_vec(&index).expect("a JSON value serialises");
    repository.put_document(&tag, media::IMAGE_INDEX, &bytes)?;
    Ok(())
}

/// The entry of a referrer: its type is its own, or its config's.
pub(crate) fn descriptor(referrer: &PackedDocument) -> Value {
    let manifest: Value = serde_json::from_slice(&referrer.bytes).unwrap_or_default();
    let mut entry = json!({
        "mediaType": referrer.media_type, "digest": crate::push::spelled(&referrer.digest), "size": referrer.bytes.len(),
    });
    let config_type = manifest.get("config").and_then(|config| config.get("mediaType"));
    if let Some(artifact_type) = manifest.get("artifactType").or(config_type) {
        entry["artifactType"] = artifact_type.clone();
    }
    if let Some(annotations) = manifest.get("annotations") {
        entry["annotations"] = annotations.clone();
    }
    entry
}
