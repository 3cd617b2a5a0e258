//! Looks after the sessions, and tells of changes: an origin that refuses, a cache disk that fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weir_fuse::engine::Engine;

use super::sessions::Sessions;
use crate::kubernetes::events::{Announcer, Note, Severity};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);

/// Looks for as long as the process lives.
pub(super) async fn run(sessions: Arc<Sessions>, engine: Arc<Engine>, announcer: Announcer) {
    let mut problems: HashMap<String, String> = HashMap::new();
    let mut bypassed = engine.metrics.cache_bypassed_bytes.get();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = engine.metrics.cache_bypassed_bytes.get();
        let degraded = (now > bypassed).then_some(now - bypassed);
        bypassed = now;
        let all = sessions.all();
        problems.retain(|id, _| all.iter().any(|served| served.id == *id));
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
            let cache = degraded.map(|bytes| {
                let text = format!(
                    "the cache took no more: {bytes} bytes were read past it; its disk is full or \
                     failing"
                );
                (Severity::Warning, "CacheDegraded", text)
            });
            for (severity, reason, text) in change.into_iter().chain(cache) {
                for about in served.subjects() {
                    let text = text.clone();
                    announcer.say(Note { severity, reason, text, about, tell_pod: true });
                }
            }
        }
    }
}
