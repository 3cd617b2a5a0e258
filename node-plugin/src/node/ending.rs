//! The end of a session that nobody is shown any more: kubelet is told that the volume is away
//! once the bytes are stored, or after a deadline, and then people are told what is not.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weir_fuse::engine::end::UnstoredFile;

use crate::config::size::Size;
use crate::kubernetes::events::{Note, Severity, Subject};

/// How long one call waits: kubelet calls again.
const ONE_CALL: Duration = Duration::from_secs(10);
/// Keys that are named; of more only the number is.
const KEYS_MAX: usize = 10;

/// What is known of an end that has begun.
#[derive(Default)]
pub(super) struct Ending {
    state: Mutex<Option<Begun>>,
}

struct Begun {
    at: Instant,
    /// Who was shown it last.
    subject: Subject,
}

/// How an end goes on.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// It is to be tried again.
    Again,
    /// It is over, with or without the rest.
    Over,
}

impl Ending {
    fn state(&self) -> MutexGuard<'_, Option<Begun>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that nobody is shown it any more, `subject` last.
    pub(super) fn begin(&self, subject: Subject) {
        self.state().get_or_insert(Begun { at: Instant::now(), subject });
    }

    /// Notes that somebody is shown it.
    pub(super) fn cancel(&self) {
        *self.state() = None;
    }

    /// Until when a call may wait, where all of them may wait for `patience`.
    pub(super) fn call_until(&self, patience: Duration) -> Instant {
        let last = self.last(patience);
        last.min(Instant::now() + ONE_CALL)
    }

    /// Whether files that are not stored are waited for any longer. What was given up is not.
    pub(super) fn next(&self, unstored: &[UnstoredFile], patience: Duration) -> Next {
        let hopeful = unstored.iter().any(|file| !file.is_given_up);
        if hopeful && Instant::now() < self.last(patience) { Next::Again } else { Next::Over }
    }

    fn last(&self, patience: Duration) -> Instant {
        self.state().as_ref().map_or_else(Instant::now, |begun| begun.at) + patience
    }

    /// What to say of files that were not stored; `source` is what was mounted.
    pub(super) fn note(&self, source: &str, unstored: &[UnstoredFile]) -> Note {
        Note {
            severity: Severity::Warning,
            reason: "NotStored",
            text: format!(
                "{source}: {}; the bytes are in lost/ of this node's cache directory, where `weir \
                 lost list` shows them: {}",
                count(unstored),
                names(unstored)
            ),
            about: self.state().as_ref().map(|begun| begun.subject.clone()).unwrap_or_default(),
            tell_pod: true,
            once: false,
        }
    }
}

/// How many files, of how many bytes, are not stored.
fn count(unstored: &[UnstoredFile]) -> String {
    let bytes = Size(unstored.iter().map(|file| file.bytes).sum());
    match unstored.len() {
        1 => format!("1 file ({bytes}) is not stored"),
        many => format!("{many} files ({bytes}) are not stored"),
    }
}

/// Their keys, of at most [`KEYS_MAX`] of them.
fn names(unstored: &[UnstoredFile]) -> String {
    let named = unstored.iter().take(KEYS_MAX).map(|file| file.key.as_str());
    let mut text = named.collect::<Vec<_>>().join(", ");
    if unstored.len() > KEYS_MAX {
        text.push_str(&format!(" and {} more", unstored.len() - KEYS_MAX));
    }
    text
}

/// What kubelet is told while files are not stored yet.
pub(super) fn not_yet(source: &str, unstored: &[UnstoredFile]) -> String {
    format!("{source}: {} yet: {}", count(unstored), names(unstored))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize, is_given_up: bool) -> Vec<UnstoredFile> {
        let file = |n| UnstoredFile {
            key: format!("f{n}"),
            bytes: 1 << 20,
            cause: "no route".into(),
            is_given_up,
        };
        (0..count).map(file).collect()
    }

    #[test]
    fn what_can_be_stored_is_waited_for_until_the_deadline() {
        let (ending, long) = (Ending::default(), Duration::from_secs(3600));
        ending.begin(Subject::default());
        assert_eq!(ending.next(&[], long), Next::Over);
        assert_eq!(ending.next(&files(1, false), long), Next::Again);
        assert_eq!(ending.next(&files(1, true), long), Next::Over);
        assert_eq!(ending.next(&files(1, false), Duration::ZERO), Next::Over);
        assert!(ending.call_until(Duration::ZERO) <= Instant::now());
        assert!(ending.call_until(long) <= Instant::now() + ONE_CALL);
    }

    #[test]
    fn who_was_shown_it_last_hears_of_ten_keys_and_a_count() {
        let ending = Ending::default();
        let pod = |name: &str| Subject { pod: name.into(), ..Subject::default() };
        ending.begin(pod("one"));
        ending.cancel();
        ending.begin(pod("two"));
        ending.begin(pod("three"));
        let note = ending.note("s3://b/p", &files(12, true));
        assert_eq!(
            (note.reason, note.severity, note.tell_pod),
            ("NotStored", Severity::Warning, true)
        );
        assert_eq!(note.about, pod("two"));
        for word in ["s3://b/p", "12 files (12.0 MiB)", "lost/", "f0, f1", "f9 and 2 more"] {
            assert!(note.text.contains(word), "{word}: {}", note.text);
        }
        assert!(!note.text.contains("f10"));
        assert!(
            not_yet("s3://b/p", &files(1, false))
                .contains("1 file (1.0 MiB) is not stored yet: f0")
        );
    }
}
