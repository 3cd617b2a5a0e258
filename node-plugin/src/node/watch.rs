//! Looks after the sessions, and tells of changes: an origin that refuses, a cache disk that fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_fuse::engine::Engine;

use super::sessions::Sessions;
use crate::kubernetes::events::{Announcer, Note, Severity};
use crate::kubernetes::weirnode::human;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);

/// A volume of which nothing was fetched for so long is warm.
const QUIET: Duration = Duration::from_secs(10);
/// Less than so much is not worth an Event.
const WARMED_MIN: u64 = 16 << 20;

/// What is being fetched of a volume.
#[derive(Default)]
struct Warming {
    /// Bytes fetched at the last look.
    fetched: u64,
    /// When it began, with how many bytes, and when the last of them came.
    active: Option<(Instant, u64, Instant)>,
}

impl Warming {
    /// Notes how many bytes were fetched so far; says how many came in which time, once no more
    /// come.
    fn look(&mut self, fetched: u64, now: Instant) -> Option<(u64, Duration)> {
        let before = std::mem::replace(&mut self.fetched, fetched);
        if fetched > before {
            let begun = now.checked_sub(EVERY).unwrap_or(now);
            let (begun, from, _) = self.active.unwrap_or((begun, before, now));
            self.active = Some((begun, from, now));
            return None;
        }
        let (begun, from, last) = self.active?;
        if now.saturating_duration_since(last) < QUIET {
            return None;
        }
        self.active = None;
        (fetched - from >= WARMED_MIN).then_some((fetched - from, last - begun))
    }
}

/// How many bytes were read past the cache is in the metrics: in the text it would make each look
/// at a lasting cause a new one.
fn cache_degraded() -> (Severity, &'static str, String) {
    let text = "the cache took no more, and files were read past it; its disk is full or failing";
    (Severity::Warning, "CacheDegraded", text.to_owned())
}

/// Looks for as long as the process lives.
pub(super) async fn run(sessions: Arc<Sessions>, engine: Arc<Engine>, announcer: Announcer) {
    let mut problems: HashMap<String, String> = HashMap::new();
    let mut warming: HashMap<String, Warming> = HashMap::new();
    let mut bypassed = engine.metrics.cache_bypassed_bytes.get();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = engine.metrics.cache_bypassed_bytes.get();
        let is_degraded = now > bypassed;
        bypassed = now;
        let all = sessions.all();
        problems.retain(|id, _| all.iter().any(|served| served.id == *id));
        warming.retain(|id, _| all.iter().any(|served| served.id == *id));
        for served in all {
            let problem = served.problem();
            let before = problems.get(&served.id);
            let change = match (&problem, before) {
                (Some(problem), None) => Some((
                    Severity::Warning,
                    "OriginUnavailable",
                    format!("{}: {problem}", served.source()),
                )),
                (None, Some(_)) => Some((
                    Severity::Normal,
                    "OriginAnswers",
                    format!("{}: answers again", served.source()),
                )),
                _ => None,
            };
            match problem {
                Some(problem) => problems.insert(served.id.clone(), problem),
                None => problems.remove(&served.id),
            };
            let cache = is_degraded.then(cache_degraded);
            let warmed = warming.entry(served.id.clone()).or_default();
            let warmed = warmed.look(served.fetched_bytes(), Instant::now());
            let warmed = warmed.map(|(bytes, took)| {
                let (bytes, seconds) = (human(bytes), took.as_secs());
                let text = format!("{}: {bytes} fetched in {seconds} s", served.source());
                (Severity::Normal, "CacheWarmed", text)
            });
            for (severity, reason, text) in change.into_iter().chain(cache).chain(warmed) {
                for about in served.subjects() {
                    let text = text.clone();
                    let (tell_pod, once) = (true, false);
                    announcer.say(Note { severity, reason, text, about, tell_pod, once });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_in_the_same_words() {
        let (_, _, text) = cache_degraded();
        assert!(!text.contains(|c: char| c.is_ascii_digit()), "{text}");
    }

    #[test]
    fn a_volume_is_warm_when_nothing_comes_any_more() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(100 + seconds);
        let mut warming = Warming::default();
        assert_eq!(warming.look(0, at(0)), None);
        assert_eq!(warming.look(30 << 20, at(2)), None);
        assert_eq!(warming.look(40 << 20, at(4)), None);
        assert_eq!(warming.look(40 << 20, at(10)), None);
        assert_eq!(warming.look(40 << 20, at(14)), Some((40 << 20, Duration::from_secs(4))));
        assert_eq!(warming.look(40 << 20, at(30)), None);
        // Too little to be told.
        assert_eq!(warming.look(41 << 20, at(32)), None);
        assert_eq!(warming.look(41 << 20, at(50)), None);
    }
}
