//! Sigstore bundle v0.3 with a public key around a DSSE envelope (protobuf-specs `sigstore_bundle.proto`,
//! secure-systems-lab/dsse `protocol.md`):
//!
//! ```text
//! { mediaType, verificationMaterial: { publicKey: { hint } },
//!   dsseEnvelope: { payload: base64, payloadType, signatures: [{ sig: base64 }] } }
//! signed bytes: "DSSEv1" SP len(payloadType) SP payloadType SP len(payload) SP payload
//! ```

use super::key::{PrivateKey, PublicKey};
use crate::{Error, json};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use mlpack_fs::Sha256;
use serde_json::{Value, json};

/// `mediaType` of the bundles that mlpack writes; their type as a blob of a registry too.
pub const BUNDLE_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// How versions 0.1 to 0.3 were also written.
const OLD_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle+json;version=0.";
/// `payloadType` of a statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The fields that a bundle with a DSSE envelope may have, by place.
const FIELDS: [(&str, &[&str]); 5] = [
    ("", &["mediaType", "verificationMaterial", "dsseEnvelope"]),
    (
        "/verificationMaterial",
        &["publicKey", "x509CertificateChain", "certificate", "tlogEntries", "timestampVerificationData"],
    ),
    ("/verificationMaterial/publicKey", &["hint"]),
    ("/dsseEnvelope", &["payload", "payloadType", "signatures"]),
    ("/dsseEnvelope/signatures/0", &["sig", "keyid"]),
];

/// Signed bytes with their signature and what names the key. Nothing in it is believed for being there.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    bytes: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    hint: Option<String>,
    by_certificate: bool,
}

/// How a bundle names its key. Verifiers do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HintStyle {
    /// sigstore, cosign.
    Sigstore,
    /// model_signing 1.1.1, which refuses every other.
    ModelSigning,
}

impl Bundle {
    /// Signs a statement's bytes. The same key and bytes give the same bundle.
    pub fn sign(statement: &[u8], key: &PrivateKey) -> Bundle {
        Bundle::sign_as(statement, key, HintStyle::Sigstore)
    }

    pub(crate) fn sign_as(payload: &[u8], key: &PrivateKey, style: HintStyle) -> Bundle {
        let signature = key.sign(&pre_auth_encoding(payload));
        let hint = match style {
            HintStyle::Sigstore => key.public().sigstore_hint(),
            HintStyle::ModelSigning => key.public().model_signing_hint(),
        };
        let value = json!({
            "mediaType": BUNDLE_MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": BASE64_STANDARD.encode(&signature)}],
            },
        });
        let bytes = json::canonical(&value);
        Bundle { bytes, payload: payload.to_vec(), signature, hint: Some(hint), by_certificate: false }
    }

    /// Reads a bundle. Unknown fields are refused, as sigstore's own readers do: what they mean is not known.
    pub fn parse(bytes: &[u8], origin: &str) -> Result<Bundle, Error> {
        let value = json::parse(bytes).map_err(|source| Error::Json { origin: origin.to_owned(), source })?;
        Bundle::from_value(&value, bytes, origin)
    }

    pub(crate) fn from_value(value: &Value, bytes: &[u8], origin: &str) -> Result<Bundle, Error> {
        let broken = |field, rule: &'static str, found: String| Error::NotABundle {
            origin: origin.to_owned(),
            field,
            rule,
            found,
        };
        for (place, known) in FIELDS {
            let fields = value.pointer(place).and_then(Value::as_object);
            if let Some(other) =
                fields.into_iter().flatten().map(|(key, _)| key).find(|key| !known.contains(&key.as_str()))
            {
                return Err(broken("of the bundle", "a field of a sigstore bundle", other.clone()));
            }
        }
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let media_type = text("/mediaType").unwrap_or("nothing");
        if media_type != BUNDLE_MEDIA_TYPE && !media_type.starts_with(OLD_MEDIA_TYPE) {
            return Err(broken("mediaType", "a sigstore bundle of version 0.1 to 0.3", media_type.to_owned()));
        }
        let payload_type = text("/dsseEnvelope/payloadType").unwrap_or("nothing");
        if payload_type != PAYLOAD_TYPE {
            return Err(broken("dsseEnvelope.payloadType", PAYLOAD_TYPE, payload_type.to_owned()));
        }
        let signatures = value.pointer("/dsseEnvelope/signatures").and_then(Value::as_array);
        let [signature] = signatures.map(Vec::as_slice).unwrap_or_default() else {
            let found = signatures.map_or(0, Vec::len).to_string();
            return Err(broken("dsseEnvelope.signatures", "exactly one signature", found));
        };
        let base64 = |field, text: Option<&str>| {
            let text = text.ok_or_else(|| broken(field, "base64 text", "nothing".to_owned()))?;
            BASE64_STANDARD.decode(text).map_err(|_| broken(field, "base64 text", "other text".to_owned()))
        };
        let payload = base64("dsseEnvelope.payload", text("/dsseEnvelope/payload"))?;
        let signature = base64("dsseEnvelope.signatures.sig", signature.get("sig").and_then(Value::as_str))?;
        let material = value.get("verificationMaterial");
        let has = |key: &str| material.is_some_and(|m| m.get(key).is_some());
        let hint = text("/verificationMaterial/publicKey/hint").filter(|hint| !hint.is_empty()).map(str::to_owned);
        let by_certificate = has("x509CertificateChain") || has("certificate");
        Ok(Bundle { bytes: bytes.to_vec(), payload, signature, hint, by_certificate })
    }

    /// The exact bytes; for a bundle of mlpack's, canonical JSON without a line break.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// sha256 of the bundle's bytes: its name in a store.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&self.bytes)
    }

    /// The signed statement's exact bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the bundle names its key by, where it does.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether a certificate stands where a key would. Certificates are not verified by mlpack.
    pub fn is_by_certificate(&self) -> bool {
        self.by_certificate
    }

    /// Whether the signature is this key's. What the bundle names its key by does not matter.
    pub fn verifies(&self, key: &PublicKey) -> bool {
        key.verifies(&pre_auth_encoding(&self.payload), &self.signature)
    }
}

/// Standard base64 with padding (RFC 4648 section 4).
pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The bytes that a DSSE signature is over.
fn pre_auth_encoding(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::KeyAlgorithm;
    use std::path::Path;

    fn fixture(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/provenance").join(name);
        mlpack_fs::read_bounded(&path, 1 << 20).unwrap()
    }

    fn fixture_key() -> PublicKey {
        PublicKey::parse(&String::from_utf8(fixture("pub.pem")).unwrap(), "pub.pem").unwrap()
    }

    #[test]
    fn bundles_of_other_tools_verify_and_a_flipped_bit_does_not() {
        let key = fixture_key();
        for (name, verifies) in
            [("model.sig", true), ("single.sig", true), ("slsa.sigstore.json", true), ("slsa.bad.json", false)]
        {
            let bundle = Bundle::parse(&fixture(name), name).unwrap();
            assert_eq!(bundle.verifies(&key), verifies, "{name}");
            assert!(key.is_named_by(bundle.hint().unwrap()), "{name}");
        }
        let certified = Bundle::parse(&fixture("cert.sig"), "cert.sig").unwrap();
        assert!(certified.is_by_certificate() && certified.hint().is_none());
    }

    #[test]
    fn the_same_key_and_bytes_give_the_same_bundle() {
        for algorithm in KeyAlgorithm::ALL {
            let key = PrivateKey::generate(algorithm).unwrap();
            let bundle = Bundle::sign(b"{}", &key);
            assert_eq!(bundle, Bundle::sign(b"{}", &key));
            let read = Bundle::parse(bundle.bytes(), "b").unwrap();
            assert_eq!(read, bundle);
            assert!(read.verifies(&key.public()));
        }
    }

    #[test]
    fn each_broken_rule_is_named() {
        let good: Value = serde_json::from_slice(&fixture("slsa.sigstore.json")).unwrap();
        for (pointer, value, expected) in [
            ("/mediaType", json!("text/plain"), "field `mediaType`"),
            ("/dsseEnvelope/payloadType", json!("application/json"), "found:    application/json"),
            ("/dsseEnvelope/signatures", json!([]), "found:    0"),
            ("/dsseEnvelope/signatures", json!([{"sig": ""}, {"sig": ""}, {"sig": ""}]), "found:    3"),
            ("/dsseEnvelope/payload", json!("é"), "field `dsseEnvelope.payload`"),
            ("/unknown", json!(1), "found:    unknown"),
            ("/dsseEnvelope/signatures/0/sig", json!(7), "field `dsseEnvelope.signatures.sig`"),
        ] {
            let mut bundle = good.clone();
            match bundle.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => bundle["unknown"] = value,
            }
            let error = Bundle::parse(&json::canonical(&bundle), "b.json").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("`b.json`"), "{pointer}: {error}");
        }
    }
}
