//! Whom to believe, and about what.

use super::bundle::Bundle;
use super::key::PublicKey;
use crate::StepKind;
use std::collections::BTreeSet;

/// A key that signatures are believed from.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustedKey {
    /// What messages call it.
    pub name: String,
    /// The key.
    pub key: PublicKey,
    /// The steps that it may state; `None` for every statement and every model signature.
    pub steps: Option<BTreeSet<StepKind>>,
    /// Whether it may sign models besides such steps.
    pub models: bool,
}

impl TrustedKey {
    /// A key that may state anything.
    pub fn unlimited(name: impl Into<String>, key: PublicKey) -> TrustedKey {
        TrustedKey { name: name.into(), key, steps: None, models: true }
    }

    fn may_sign(&self, about: About) -> bool {
        match (&self.steps, about) {
            (None, _) => true,
            (Some(steps), About::Step(kind)) => steps.contains(&kind),
            (Some(_), About::Model) => self.models,
            (Some(_), About::Other) => false,
        }
    }
}

/// What a signature is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Step(StepKind),
    Model,
    Other,
}

impl About {
    fn name(self) -> &'static str {
        match self {
            About::Step(kind) => kind.name(),
            About::Model => "model",
            About::Other => "foreign",
        }
    }
}

/// The keys that are trusted; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trust {
    /// The keys, in the order in which they are tried.
    pub keys: Vec<TrustedKey>,
}

/// What a signature comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is of a key that is trusted for this.
    Trusted(String),
    /// Nothing speaks against it, and nobody trusted stands for it.
    Untrusted(String),
    /// It is not what it says it is.
    Broken(String),
}

impl Trust {
    /// Judges a bundle by its signature first: what it names its key by only helps to say what is wrong.
    pub(crate) fn judge(&self, bundle: &Bundle, about: About) -> Verdict {
        let mut not_for_this = None;
        for trusted in self.keys.iter().filter(|trusted| bundle.verifies(&trusted.key)) {
            let name = &trusted.name;
            if bundle.hint().is_some_and(|hint| !trusted.key.is_named_by(hint)) {
                return Verdict::Broken(format!("signed by `{name}`, but the bundle names another key"));
            }
            if trusted.may_sign(about) {
                return Verdict::Trusted(format!("signed by `{name}`"));
            }
            not_for_this = Some(format!("signed by `{name}`, which is not trusted for {} statements", about.name()));
        }
        if let Some(why) = not_for_this {
            return Verdict::Untrusted(why);
        }
        if bundle.is_by_certificate() {
            return Verdict::Untrusted("signed with a certificate, which mlpack does not verify".to_owned());
        }
        let Some(hint) = bundle.hint() else {
            return Verdict::Untrusted("signed with a key that the bundle does not name".to_owned());
        };
        match self.keys.iter().find(|trusted| trusted.key.is_named_by(hint)) {
            Some(trusted) => Verdict::Broken(format!("not signed by `{}`, which it names", trusted.name)),
            None => Verdict::Untrusted(format!("signed with key `{hint}`, which is not trusted")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::{KeyAlgorithm, PrivateKey};

    #[test]
    fn a_signature_is_judged_by_key_and_by_what_it_is_about() {
        let key = |algorithm| PrivateKey::generate(algorithm).unwrap();
        let (ours, other) = (key(KeyAlgorithm::EcdsaP256), key(KeyAlgorithm::Ed25519));
        let trust = |steps: Option<&[StepKind]>| Trust {
            keys: vec![TrustedKey {
                name: "ours".to_owned(),
                key: ours.public(),
                steps: steps.map(|steps| steps.iter().copied().collect()),
                models: false,
            }],
        };
        let merge = About::Step(StepKind::Merge);
        let bundle = Bundle::sign(b"{}", &ours);
        let trusted = Verdict::Trusted("signed by `ours`".to_owned());
        assert_eq!(trust(None).judge(&bundle, merge), trusted);
        assert_eq!(trust(None).judge(&bundle, About::Other), trusted);
        assert_eq!(trust(Some(&[StepKind::Merge])).judge(&bundle, merge), trusted);
        for (steps, about, name) in [
            (vec![StepKind::Train], merge, "merge"),
            (vec![StepKind::Train], About::Model, "model"),
            (vec![StepKind::Train], About::Other, "foreign"),
        ] {
            let why = format!("signed by `ours`, which is not trusted for {name} statements");
            assert_eq!(trust(Some(&steps)).judge(&bundle, about), Verdict::Untrusted(why));
        }
        let foreign = Bundle::sign(b"{}", &other);
        let why = format!("signed with key `{}`, which is not trusted", other.public().sigstore_hint());
        assert_eq!(trust(None).judge(&foreign, merge), Verdict::Untrusted(why));
    }

    #[test]
    fn an_edited_bundle_is_broken() {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let other = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap().public();
        let trust = Trust { keys: vec![TrustedKey::unlimited("ours", key.public())] };
        let text = String::from_utf8(Bundle::sign(b"{\"a\":1}", &key).bytes().to_vec()).unwrap();
        let judge = |from: &str, to: &str| {
            assert!(text.contains(from));
            let bundle = Bundle::parse(text.replace(from, to).as_bytes(), "b").unwrap();
            trust.judge(&bundle, About::Other)
        };
        // eyJhIjoxfQ== is {"a":1}, eyJhIjoyfQ== is {"a":2}.
        let why = "not signed by `ours`, which it names".to_owned();
        assert_eq!(judge("eyJhIjoxfQ==", "eyJhIjoyfQ=="), Verdict::Broken(why));
        let hint = key.public().sigstore_hint();
        let why = "signed by `ours`, but the bundle names another key".to_owned();
        assert_eq!(judge(&hint, &other.sigstore_hint()), Verdict::Broken(why));
    }
}
