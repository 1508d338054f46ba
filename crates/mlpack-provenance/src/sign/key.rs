//! Keys: ECDSA on P-256 and P-384 with SHA-256 and SHA-384, and Ed25519. Private keys are PEM files in PKCS#8 (RFC 5958),
//! encrypted or not, or in SEC1 (RFC 5915); public keys are PEM files with a SubjectPublicKeyInfo (RFC 5280).
//!
//! Signatures are deterministic (RFC 6979, RFC 8032): the same key and bytes give the same signature.

use crate::Error;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use mlpack_fs::Sha256;
use p256::elliptic_curve::Generate as _;
use pkcs8::der::pem::decode_label;
use pkcs8::der::zeroize::Zeroizing;
use pkcs8::spki::{DecodePublicKey, EncodePublicKey};
use pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use std::fmt;

/// Longest PEM file that can be a key.
pub(crate) const MAX_KEY_LEN: u64 = 64 << 10;

/// What a key signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyAlgorithm {
    /// ECDSA on NIST P-256 with SHA-256: what every sigstore tool verifies.
    EcdsaP256,
    /// ECDSA on NIST P-384 with SHA-384.
    EcdsaP384,
    /// Ed25519. OpenSSF Model Signing has no place for it.
    Ed25519,
}

impl KeyAlgorithm {
    /// Every algorithm.
    pub const ALL: [KeyAlgorithm; 3] = [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Ed25519];

    /// The algorithm in words.
    pub const fn name(self) -> &'static str {
        match self {
            KeyAlgorithm::EcdsaP256 => "ecdsa-p256",
            KeyAlgorithm::EcdsaP384 => "ecdsa-p384",
            KeyAlgorithm::Ed25519 => "ed25519",
        }
    }
}

/// A private key.
pub struct PrivateKey(Secret);

enum Secret {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Ed25519(ed25519_dalek::SigningKey),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.algorithm().name())
    }
}

impl PrivateKey {
    /// A new key from the system's random numbers.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<PrivateKey, Error> {
        let no_random = |source: getrandom::Error| Error::NoRandom { reason: source.to_string() };
        Ok(PrivateKey(match algorithm {
            KeyAlgorithm::EcdsaP256 => Secret::P256(p256::ecdsa::SigningKey::try_generate().map_err(no_random)?),
            KeyAlgorithm::EcdsaP384 => Secret::P384(p384::ecdsa::SigningKey::try_generate().map_err(no_random)?),
            KeyAlgorithm::Ed25519 => {
                let mut seed = Zeroizing::new([0; 32]);
                getrandom::fill(seed.as_mut_slice()).map_err(no_random)?;
                Secret::Ed25519(ed25519_dalek::SigningKey::from_bytes(&seed))
            }
        }))
    }

    /// Whether a PEM text is a private key that needs a passphrase.
    pub fn is_encrypted(pem: &str) -> bool {
        decode_label(pem.as_bytes()) == Ok("ENCRYPTED PRIVATE KEY")
    }

    /// Reads a private key. `origin` is where it comes from, for messages.
    pub fn parse(pem: &str, passphrase: Option<&str>, origin: &str) -> Result<PrivateKey, Error> {
        let bad = |found: String| Error::NotAKey { origin: origin.to_owned(), what: "a private key", found };
        let label = decode_label(pem.as_bytes()).map_err(|_| bad("no PEM text".to_owned()))?;
        match label {
            "PRIVATE KEY" => PrivateKey::from_pkcs8(|| pem).ok_or_else(|| bad("a key of another kind".to_owned())),
            "EC PRIVATE KEY" => {
                let p256 = p256::SecretKey::from_pem(pem).map(|key| Secret::P256(key.into()));
                let secret = p256.or_else(|_| p384::SecretKey::from_pem(pem).map(|key| Secret::P384(key.into())));
                secret.map(PrivateKey).map_err(|_| bad("a key on another curve".to_owned()))
            }
            "ENCRYPTED PRIVATE KEY" => {
                let Some(passphrase) = passphrase else {
                    return Err(Error::NoPassphrase { origin: origin.to_owned() });
                };
                let (_, document) = pkcs8::Document::from_pem(pem).map_err(|_| bad("damaged PEM text".to_owned()))?;
                let info = pkcs8::EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
                    .map_err(|_| bad("a damaged encrypted key".to_owned()))?;
                let opened =
                    info.decrypt(passphrase).map_err(|_| Error::WrongPassphrase { origin: origin.to_owned() })?;
                PrivateKey::from_der(opened.as_bytes()).ok_or_else(|| bad("a key of another kind".to_owned()))
            }
            other => Err(bad(other.to_owned())),
        }
    }

    fn from_pkcs8<'a>(pem: impl Fn() -> &'a str) -> Option<PrivateKey> {
        let (_, document) = pkcs8::SecretDocument::from_pem(pem()).ok()?;
        PrivateKey::from_der(document.as_bytes())
    }

    fn from_der(der: &[u8]) -> Option<PrivateKey> {
        let p256 = || p256::ecdsa::SigningKey::from_pkcs8_der(der).ok().map(Secret::P256);
        let p384 = || p384::ecdsa::SigningKey::from_pkcs8_der(der).ok().map(Secret::P384);
        let ed25519 = || ed25519_dalek::SigningKey::from_pkcs8_der(der).ok().map(Secret::Ed25519);
        p256().or_else(p384).or_else(ed25519).map(PrivateKey)
    }

    /// The key as PKCS#8 PEM; with a passphrase, encrypted with AES-256-CBC under scrypt (PBES2), which OpenSSL reads.
    pub fn to_pem(&self, passphrase: Option<&str>) -> Zeroizing<String> {
        fn write(key: &impl EncodePrivateKey, passphrase: Option<&str>) -> pkcs8::Result<Zeroizing<String>> {
            match passphrase {
                Some(passphrase) => key.to_pkcs8_encrypted_pem(passphrase, LineEnding::LF),
                None => key.to_pkcs8_pem(LineEnding::LF),
            }
        }
        let written = match &self.0 {
            Secret::P256(key) => write(key, passphrase),
            Secret::P384(key) => write(key, passphrase),
            Secret::Ed25519(key) => {
                // Without the public half: OpenSSL does not read the form that has it.
                let alone = ed25519_dalek::pkcs8::KeypairBytes { secret_key: key.to_bytes(), public_key: None };
                write(&alone, passphrase)
            }
        };
        written.expect("a key of a known kind always encodes")
    }

    /// The key that verifies.
    pub fn public(&self) -> PublicKey {
        PublicKey::new(match &self.0 {
            Secret::P256(key) => Public::P256(*key.verifying_key()),
            Secret::P384(key) => Public::P384(*key.verifying_key()),
            Secret::Ed25519(key) => Public::Ed25519(key.verifying_key()),
        })
    }

    /// What the key signs with.
    pub fn algorithm(&self) -> KeyAlgorithm {
        match &self.0 {
            Secret::P256(_) => KeyAlgorithm::EcdsaP256,
            Secret::P384(_) => KeyAlgorithm::EcdsaP384,
            Secret::Ed25519(_) => KeyAlgorithm::Ed25519,
        }
    }

    /// A signature over `message`: ASN.1 DER for ECDSA, 64 bytes for Ed25519.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        use p256::ecdsa::signature::Signer as _;
        match &self.0 {
            Secret::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Secret::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Secret::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
        }
    }
}

/// A public key.
#[derive(Clone, PartialEq)]
pub struct PublicKey {
    key: Public,
    der: Vec<u8>,
    pem: String,
}

#[derive(Clone, PartialEq)]
enum Public {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    Ed25519(ed25519_dalek::VerifyingKey),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm().name(), self.id())
    }
}

impl PublicKey {
    fn new(key: Public) -> PublicKey {
        let document = match &key {
            Public::P256(key) => key.to_public_key_der(),
            Public::P384(key) => key.to_public_key_der(),
            Public::Ed25519(key) => key.to_public_key_der(),
        };
        let document = document.expect("a key of a known kind always encodes");
        let pem = document.to_pem("PUBLIC KEY", LineEnding::LF).expect("a fixed label and DER always encode");
        PublicKey { key, der: document.into_vec(), pem }
    }

    /// Reads a public key; `origin` is where it comes from, for messages.
    pub fn parse(pem: &str, origin: &str) -> Result<PublicKey, Error> {
        let bad = |found: String| Error::NotAKey { origin: origin.to_owned(), what: "a public key", found };
        match decode_label(pem.as_bytes()) {
            Ok("PUBLIC KEY") => {}
            Ok(other) => return Err(bad(other.to_owned())),
            Err(_) => return Err(bad("no PEM text".to_owned())),
        }
        let p256 = || p256::ecdsa::VerifyingKey::from_public_key_pem(pem).ok().map(Public::P256);
        let p384 = || p384::ecdsa::VerifyingKey::from_public_key_pem(pem).ok().map(Public::P384);
        let ed25519 = || ed25519_dalek::VerifyingKey::from_public_key_pem(pem).ok().map(Public::Ed25519);
        let key = p256().or_else(p384).or_else(ed25519).ok_or_else(|| bad("a key of another kind".to_owned()))?;
        Ok(PublicKey::new(key))
    }

    /// The key as PEM.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// sha256 of the key's DER form.
    pub fn id(&self) -> Sha256 {
        Sha256::of(&self.der)
    }

    /// What it verifies.
    pub fn algorithm(&self) -> KeyAlgorithm {
        match &self.key {
            Public::P256(_) => KeyAlgorithm::EcdsaP256,
            Public::P384(_) => KeyAlgorithm::EcdsaP384,
            Public::Ed25519(_) => KeyAlgorithm::Ed25519,
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        use p256::ecdsa::signature::Verifier as _;
        match &self.key {
            Public::P256(key) => {
                p256::ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Public::P384(key) => {
                p384::ecdsa::Signature::from_der(signature).is_ok_and(|s| key.verify(message, &s).is_ok())
            }
            Public::Ed25519(key) => {
                ed25519_dalek::Signature::from_slice(signature).is_ok_and(|s| key.verify_strict(message, &s).is_ok())
            }
        }
    }

    /// How sigstore and cosign name a key in a bundle: base64 of sha256 of the DER form.
    pub(crate) fn sigstore_hint(&self) -> String {
        BASE64_STANDARD.encode(self.id().as_bytes())
    }

    /// How the reference implementation of OpenSSF Model Signing names a key: sha256 of the PEM form, in hexadecimal.
    pub(crate) fn model_signing_hint(&self) -> String {
        Sha256::of(self.pem.as_bytes()).to_string()
    }

    /// Whether a bundle that names its key so means this one.
    pub(crate) fn is_named_by(&self, hint: &str) -> bool {
        hint == self.sigstore_hint() || hint == self.model_signing_hint() || hint == self.id().to_string()
    }
}

#[cfg(test)]
mod tests;
