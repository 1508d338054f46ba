//! How often and after which pauses a request is made again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause that we choose.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause that a registry may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// The rules of trying again. The pause is the caller's, so that tests do not sleep.
#[derive(Clone)]
pub(crate) struct Retry {
    /// Tries after the first one, without progress in between.
    pub limit: u32,
    pub pause: Arc<dyn Fn(Duration) + Send + Sync>,
}

impl Retry {
    /// Attempts of one piece of work.
    pub fn attempts(&self) -> Attempts<'_> {
        Attempts { retry: self, failed: 0 }
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Counts failures in a row.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    retry: &'a Retry,
    failed: u32,
}

impl Attempts<'_> {
    /// Whether there is another try after a failure; pauses before it. `asked` is what the registry wants.
    pub fn again(&mut self, asked: Option<Duration>) -> bool {
        if self.failed >= self.retry.limit {
            return false;
        }
        let own = FIRST.saturating_mul(1 << self.failed.min(16)).min(LONGEST);
        (self.retry.pause)(asked.map_or(own, |asked| asked.min(LONGEST_ASKED)));
        self.failed += 1;
        true
    }

    /// Something was achieved: failures before it do not count any more.
    pub fn progress(&mut self) {
        self.failed = 0;
    }

    /// Failures so far, without progress in between.
    pub fn failed(&self) -> u32 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn pauses_double_up_to_a_limit_and_a_registry_may_ask_for_its_own() {
        let pauses = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&pauses);
        let retry = Retry { limit: 8, pause: Arc::new(move |d| seen.lock().unwrap().push(d.as_millis())) };
        let mut attempts = retry.attempts();
        while attempts.again(None) {}
        assert_eq!(*pauses.lock().unwrap(), [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        attempts.progress();
        assert!(attempts.again(Some(Duration::from_secs(7))) && attempts.again(Some(Duration::from_secs(7000))));
        assert_eq!(pauses.lock().unwrap()[8..], [7_000, 300_000]);
    }
}
