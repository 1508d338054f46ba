//! What registries take in one request: known ones from a table, all others from what they answer.
//!
//! The table is from bug trackers of other clients: ghcr.io answers 416 to a PATCH over 4 MiB; Google's registries and
//! Amazon's take one PUT only (the latter answers 201 to the first PATCH); Cloudflare cuts bodies at 100 MB.

use serde::{Deserialize, Serialize};

/// The least chunk that is ever tried.
pub(crate) const LEAST_CHUNK: u64 = 64 << 10;
/// The chunk of a registry that nothing is known about.
pub(crate) const DEFAULT_CHUNK: u64 = 32 << 20;

/// How blobs are sent to one registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Limits {
    /// Bytes of one PATCH, at most.
    pub chunk: u64,
    /// Whether a blob goes in one PUT.
    pub monolithic: bool,
}

impl Limits {
    /// What is known about a host beforehand.
    pub fn of_host(host: &str) -> Limits {
        let is = |domain: &str| host == domain || host.ends_with(&format!(".{domain}"));
        let monolithic = is("pkg.dev") || is("gcr.io") || is("amazonaws.com");
        let chunk = if is("ghcr.io") { 4 << 20 } else { DEFAULT_CHUNK };
        Limits { chunk, monolithic }
    }

    /// A chunk was too large: the next size to try, or one PUT when no smaller one makes sense.
    pub fn shrink(&mut self, refused: u64) {
        match refused / 2 {
            smaller if smaller >= LEAST_CHUNK => self.chunk = self.chunk.min(smaller),
            _ => self.monolithic = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_registries_have_their_limits_and_others_shrink_to_theirs() {
        assert_eq!(Limits::of_host("ghcr.io").chunk, 4 << 20);
        assert!(Limits::of_host("europe-docker.pkg.dev").monolithic);
        assert!(Limits::of_host("1.dkr.ecr.eu-west-1.amazonaws.com").monolithic);
        assert!(!Limits::of_host("notgcr.io").monolithic);
        let mut limits = Limits::of_host("localhost");
        limits.shrink(32 << 20);
        assert_eq!(limits.chunk, 16 << 20);
        limits.shrink(100 << 10);
        assert!(limits.monolithic);
    }
}
