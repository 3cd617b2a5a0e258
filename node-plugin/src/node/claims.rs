//! Which session a target belongs to, from the moment that a publish asks for it: what comes next for
//! the target goes the same way, behind it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Claim {
    session: String,
    volume: String,
    /// Publishes that are not answered yet.
    pending: usize,
}

/// Targets, each with the session that it shows or is to show.
#[derive(Default)]
pub(super) struct Claims {
    by_target: Mutex<HashMap<PathBuf, Claim>>,
}

impl Claims {
    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, Claim>> {
        self.by_target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that a target belongs to.
    pub(super) fn session_at(&self, target: &Path) -> Option<String> {
        self.all().get(target).map(|claim| claim.session.clone())
    }

    /// Claims a target for a publish: for the session that it belongs to already, else for
    /// `session`. Says for which. With `alone`, `None` while the volume has another target.
    pub(super) fn begin(
        &self,
        target: &Path,
        (session, volume): (&str, &str),
        alone: bool,
    ) -> Option<String> {
        let mut all = self.all();
        let elsewhere =
            |(path, claim): (&PathBuf, &Claim)| path != target && claim.volume == volume;
        if alone && all.iter().any(elsewhere) {
            return None;
        }
        let new = || Claim { session: session.into(), volume: volume.into(), pending: 0 };
        let claim = all.entry(target.to_owned()).or_insert_with(new);
        claim.pending += 1;
        Some(claim.session.clone())
    }

    /// Ends what [`Claims::begin`] began. The target stays claimed if it `is_shown`.
    pub(super) fn end(&self, target: &Path, is_shown: bool) {
        let mut all = self.all();
        let Some(claim) = all.get_mut(target) else { return };
        claim.pending = claim.pending.saturating_sub(1);
        if claim.pending == 0 && !is_shown {
            all.remove(target);
        }
    }

    /// Claims a target that shows a session already, also for those who wait for an answer.
    pub(super) fn adopt(&self, target: &Path, session: &str, volume: &str) {
        let mut all = self.all();
        let pending = all.get(target).map_or(0, |claim| claim.pending);
        let claim = Claim { session: session.into(), volume: volume.into(), pending };
        all.insert(target.to_owned(), claim);
    }

    /// Gives a target up that shows nothing any more, unless a publish waits for it.
    pub(super) fn release(&self, target: &Path) {
        let mut all = self.all();
        if all.get(target).is_some_and(|claim| claim.pending == 0) {
            all.remove(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stays_with_its_session_while_anybody_asks_for_it() {
        let (claims, target) = (Claims::default(), Path::new("/t"));
        assert_eq!(claims.begin(target, ("a", "v"), false).unwrap(), "a");
        // Of other settings by now.
        assert_eq!(claims.begin(target, ("b", "v"), false).unwrap(), "a");
        claims.end(target, false);
        claims.release(target);
        assert_eq!(claims.session_at(target).unwrap(), "a");
        claims.end(target, true);
        assert_eq!(claims.session_at(target).unwrap(), "a");
        claims.release(target);
        assert_eq!(claims.session_at(target), None);
        assert_eq!(claims.begin(target, ("b", "v"), false).unwrap(), "b");
        claims.end(target, false);
        assert_eq!(claims.session_at(target), None);
        // Asked for while its session is taken over.
        claims.adopt(target, "a", "v");
        assert_eq!(claims.begin(target, ("b", "v"), false).unwrap(), "a");
        claims.adopt(target, "a", "v");
        claims.release(target);
        assert_eq!(claims.session_at(target).unwrap(), "a");
        claims.end(target, false);
        assert_eq!(claims.session_at(target), None);
    }

    #[test]
    fn who_must_be_alone_waits_until_the_volume_has_no_other_target() {
        let (claims, one, two) = (Claims::default(), Path::new("/1"), Path::new("/2"));
        claims.adopt(one, "a", "v");
        assert_eq!(claims.begin(two, ("a", "v"), true), None);
        assert_eq!(claims.begin(one, ("a", "v"), true).unwrap(), "a");
        assert_eq!(claims.begin(two, ("b", "other"), true).unwrap(), "b");
        claims.end(one, false);
        assert_eq!(claims.begin(two, ("a", "v"), true).unwrap(), "b");
    }
}
