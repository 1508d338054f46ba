//! Signatures with keys, offline: keys, DSSE envelopes in sigstore bundles, OpenSSF Model Signing, and whom to believe.

mod bundle;
mod chain;
mod key;
mod model;
mod trust;

pub use bundle::{BUNDLE_MEDIA_TYPE, Bundle, PAYLOAD_TYPE, base64};
pub use chain::{SignOptions, SignedChain, SignedStep, sign_chain};
pub(crate) use key::MAX_KEY_LEN;
pub use key::{KeyAlgorithm, PrivateKey, PublicKey};
pub(crate) use model::{MAX_SIGNATURE_LEN, MODEL_SIGNING_TYPE};
pub use model::{MODEL_SIGNATURE, ModelCheck, Resource, check_model, model_signature_path, sign_model};
pub(crate) use trust::{About, Verdict};
pub use trust::{Trust, TrustedKey};
