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

/// Seconds of a date as HTTP writes it (RFC 9110, 5.6.7, `IMF-fixdate`) since the beginning of 1970.
pub(crate) fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.trim().split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let (hour, minute, second): (u64, u64, u64) = (hour.parse().ok()?, minute.parse().ok()?, second.parse().ok()?);
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // A year that begins in March ends with the day that some years have more.
    let (from_march, year) = ((month + 10) % 12, if month < 2 { year - 1 } else { year });
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (from_march * 153 + 2) / 5 + day - 1;
    const OF_1970: u64 = 719_468;
    Some((days - OF_1970) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn dates_of_http_are_seconds() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Thu, 31 Dec 2026 23:59:60 GMT", Some(1_798_761_600)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1969 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("120", None),
        ] {
            assert_eq!(http_date(text), seconds, "{text}");
        }
    }

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
