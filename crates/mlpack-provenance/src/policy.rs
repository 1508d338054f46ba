//! What must hold for an artifact before somebody uses it, as a file says it (docs/provenance.md).

use crate::sign::{MAX_KEY_LEN, PublicKey};
use crate::{Error, Node, NodeKind, State, StepKind, Trace, Trust, TrustedKey};
use mlpack_fs::{Sha256, read_to_string_bounded};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Longest policy file.
const MAX_POLICY_LEN: u64 = 1 << 20;
/// The word among a key's steps for signatures over models.
const MODEL: &str = "model";

/// A policy, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The keys that it trusts.
    pub trust: Trust,
    /// The worst state that the artifact may have.
    state: State,
    /// Whether every step must have it too.
    every_step: bool,
    /// The worst state of a step, where it is not `state`.
    step_states: BTreeMap<StepKind, State>,
    steps: BTreeSet<StepKind>,
    links: BTreeSet<Link>,
    bytes: BTreeSet<Link>,
    min_version: Option<Version>,
    digests: Option<BTreeSet<Sha256>>,
}

/// Something that an artifact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Link {
    Base,
    Adapter,
    Run,
    Dataset,
}

impl Link {
    const fn name(self) -> &'static str {
        match self {
            Link::Base => "base",
            Link::Adapter => "adapter",
            Link::Run => "run",
            Link::Dataset => "dataset",
        }
    }

    fn is(self, node: &Node) -> bool {
        match self {
            Link::Base => {
                // A checkpoint that no step made is a base, also where no adapter was applied to it.
                let role = node.role.as_deref();
                role == Some("base") || (role == Some("model") && node.children.is_empty() && !node.repeated)
            }
            Link::Adapter => node.role.as_deref() == Some("adapter"),
            Link::Run => node.kind == NodeKind::Run,
            Link::Dataset => node.kind == NodeKind::Dataset,
        }
    }
}

/// A version of mlpack's: numbers between dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(Vec<u64>);

impl Version {
    fn parse(text: &str) -> Option<Version> {
        text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>().map(Version)
    }
}

/// One demand of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is demanded.
    pub demand: String,
    /// Whether it is met.
    pub met: bool,
    /// What was found. May hold untrusted text.
    pub found: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePolicy {
    #[serde(default)]
    key: Vec<WireKey>,
    #[serde(default)]
    require: WireRequire,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireKey {
    file: String,
    name: Option<String>,
    steps: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WireRequire {
    state: Option<String>,
    states: BTreeMap<String, String>,
    steps: Vec<String>,
    links: BTreeSet<Link>,
    bytes: BTreeSet<Link>,
    min_version: Option<String>,
    digests: Option<Vec<String>>,
}

impl Policy {
    /// A policy that trusts keys and demands that the artifact is signed by one of them, whether as a model or by the
    /// statement of the step that made it.
    pub fn of_keys(trust: Trust) -> Policy {
        Policy {
            trust,
            state: State::Verified,
            every_step: false,
            step_states: BTreeMap::new(),
            steps: BTreeSet::new(),
            links: BTreeSet::new(),
            bytes: BTreeSet::new(),
            min_version: None,
            digests: None,
        }
    }

    /// Reads a policy and the keys that it names; their paths start at its folder.
    pub fn open(path: &Path) -> Result<Policy, Error> {
        let text = read_to_string_bounded(path, MAX_POLICY_LEN)?;
        let bad = |what: String| Error::BadPolicy { path: path.to_owned(), what };
        let wire: WirePolicy = toml::from_str(&text).map_err(|e| bad(e.to_string().trim_end().to_owned()))?;
        let step = |name: &String| {
            let expected = StepKind::ALL.map(StepKind::name).join(", ");
            StepKind::ALL
                .into_iter()
                .find(|kind| kind.name() == name)
                .ok_or_else(|| bad(format!("no such step: `{name}`\nexpected: {expected}")))
        };
        let state = |name: &String| match name.as_str() {
            "verified" => Ok(State::Verified),
            "untrusted" => Ok(State::Untrusted),
            "unsigned" => Ok(State::Unsigned),
            _ => Err(bad(format!("no such demand: `{name}`\nexpected: verified, untrusted or unsigned"))),
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut policy = Policy::of_keys(Trust::default());
        policy.every_step = true;
        for key in wire.key {
            let file = folder.join(&key.file);
            let public = PublicKey::parse(&read_to_string_bounded(&file, MAX_KEY_LEN)?, &file.display().to_string())?;
            let name = key.name.unwrap_or(key.file);
            let mut trusted = TrustedKey::unlimited(name, public);
            if let Some(steps) = key.steps {
                trusted.models = steps.iter().any(|name| name == MODEL);
                trusted.steps = Some(steps.iter().filter(|name| *name != MODEL).map(step).collect::<Result<_, _>>()?);
            }
            policy.trust.keys.push(trusted);
        }
        policy.state = wire.require.state.as_ref().map_or(Ok(State::Verified), state)?;
        for (name, at_worst) in &wire.require.states {
            policy.step_states.insert(step(name)?, state(at_worst)?);
        }
        policy.steps = wire.require.steps.iter().map(step).collect::<Result<_, _>>()?;
        (policy.links, policy.bytes) = (wire.require.links, wire.require.bytes);
        policy.min_version = match wire.require.min_version {
            None => None,
            Some(text) => {
                let version = Version::parse(&text);
                Some(version.ok_or_else(|| bad(format!("no version: `{text}`\nexpected: numbers between dots")))?)
            }
        };
        if let Some(digests) = wire.require.digests {
            let digest = |text: String| {
                let hex = text.strip_prefix("sha256:").unwrap_or(&text);
                hex.parse().map_err(|e| bad(format!("`{text}` is {e}")))
            };
            policy.digests = Some(digests.into_iter().map(digest).collect::<Result<_, _>>()?);
        }
        Ok(policy)
    }

    /// Every demand, met or not, in a fixed order. The trace must have been made with this policy's keys.
    pub fn judge(&self, trace: &Trace) -> Vec<Finding> {
        let nodes: Vec<&Node> = trace.nodes().collect();
        let mut findings = Vec::new();
        let mut demand = |demand: String, met: bool, found: String| findings.push(Finding { demand, met, found });
        let faults: Vec<&Node> = nodes.iter().copied().filter(|node| node.state == State::Mismatch).collect();
        let found = match faults.first() {
            None => "none".to_owned(),
            Some(node) => format!("{}: {}", node.name, node.note.as_deref().unwrap_or("mismatch")),
        };
        demand("no contradiction anywhere".to_owned(), faults.is_empty(), found);
        if trace.cut {
            demand("the whole graph is walked".to_owned(), false, "a part of it was too large".to_owned());
        }
        demand(
            format!("the artifact is {}", at_worst(self.state)),
            trace.root.state <= self.state,
            trace.root.state.name().to_owned(),
        );
        if let Some(digests) = &self.digests {
            let digest = trace.root.sha256;
            let found = digest.map_or_else(String::new, |digest| digest.to_string());
            demand("its digest is listed".to_owned(), digest.is_some_and(|d| digests.contains(&d)), found);
        }
        let steps = || nodes.iter().copied().filter(|node| node.kind == NodeKind::Step);
        for node in steps() {
            let kind = StepKind::ALL.into_iter().find(|kind| kind.name() == node.name);
            let limit = kind.and_then(|kind| self.step_states.get(&kind)).copied().unwrap_or(self.state);
            let made = node.sha256.map(|digest| format!(" {:.12}", digest.to_string())).unwrap_or_default();
            let found = format!("{}: {}", node.state.name(), node.note.as_deref().unwrap_or_default());
            let met = !self.every_step || node.state <= limit;
            let what = if self.every_step { at_worst(limit) } else { "followed" };
            demand(format!("step {}{made} is {what}", node.name), met, found);
            if let Some(min) = &self.min_version {
                let version = node.facts.iter().find(|(key, _)| key == "mlpack").map(|(_, value)| value.as_str());
                let met = version.and_then(Version::parse).is_some_and(|version| version >= *min);
                let min = min.0.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
                let found = version.unwrap_or("another tool").to_owned();
                demand(format!("step {}{made} is by mlpack {min} or later", node.name), met, found);
            }
        }
        for kind in &self.steps {
            let met = steps().any(|node| node.name == kind.name());
            demand(format!("a step {} is in the chain", kind.name()), met, if met { "yes" } else { "no" }.to_owned());
        }
        for link in &self.links {
            let linked: Vec<&Node> = nodes.iter().copied().filter(|node| link.is(node)).collect();
            let limit = self.link_limit(*link);
            let known = |node: &&Node| {
                let identified = *link == Link::Run && node.state != State::Missing || node.sha256.is_some();
                identified && node.attested.is_some_and(|state| state <= limit)
            };
            let found = match (linked.first(), linked.iter().find(|node| !known(node))) {
                (None, _) => "nothing states one".to_owned(),
                (_, Some(node)) => {
                    format!("{}: {}", node.name, node.note.as_deref().unwrap_or_else(|| node.state.name()))
                }
                (Some(node), None) => node.name.clone(),
            };
            let met = !linked.is_empty() && linked.iter().all(known);
            demand(format!("the {} is stated, {}", link.name(), at_worst(limit)), met, found);
        }
        for link in &self.bytes {
            let linked: Vec<&Node> = nodes.iter().copied().filter(|node| link.is(node)).collect();
            let here = |node: &&Node| match link {
                Link::Run => node.record.is_some(),
                _ => node.checked.is_some() && node.state != State::Mismatch,
            };
            let found = match linked.iter().find(|node| !here(node)) {
                None if linked.is_empty() => "nothing states one".to_owned(),
                None => "found, and they fit".to_owned(),
                Some(node) => format!("{}: {}", node.name, node.note.as_deref().unwrap_or("not here")),
            };
            let met = !linked.is_empty() && linked.iter().all(here);
            demand(format!("the bytes of the {} are here", link.name()), met, found);
        }
        findings
    }

    /// What a link hangs on: runs and datasets on the statement about the training, the others on any.
    fn link_limit(&self, link: Link) -> State {
        match link {
            Link::Run | Link::Dataset => self.step_states.get(&StepKind::Train).copied().unwrap_or(self.state),
            Link::Base | Link::Adapter => self.state,
        }
    }
}

fn at_worst(state: State) -> &'static str {
    match state {
        State::Verified => "signed by a trusted key",
        State::Untrusted => "signed",
        State::Unsigned | State::Claimed | State::Missing | State::Mismatch => "stated",
    }
}

#[cfg(test)]
mod tests;
