//! What a directory's names take of the memory for names: they are counted, and given up for
//! others'; and what is still to be known of a directory that is too large to be kept.

use std::collections::HashSet;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;

use super::change::CHANGED_KEPT;
use super::{Dir, DirState, Kind};
use crate::namespace::memory::{DIR_BYTES, NAME_BYTES};
use crate::namespace::stream::StreamedName;

impl DirState {
    /// Counts what is kept.
    pub(super) fn count(&mut self) {
        let absent = self.absent.as_ref().map_or(0, LruCache::len);
        let names = self.entries.len() + self.removed.len() + absent;
        self.account.set(names as u64 * NAME_BYTES + self.dirs.len() as u64 * DIR_BYTES);
    }
}

impl Dir {
    /// Changes what is known, which then counts.
    pub(super) fn update<R>(&self, change: impl FnOnce(&mut DirState) -> R) -> R {
        let mut state = self.state();
        let done = change(&mut state);
        state.count();
        let is_new = state.account.is_used() && !std::mem::replace(&mut state.watched, true);
        drop(state);
        if is_new {
            self.memory.watch(self.me.clone());
        }
        self.memory.settle();
        done
    }

    /// Notes whether it is too large to be kept here.
    pub(in crate::namespace) fn set_vast(&self, vast: bool) {
        let mut state = self.state();
        state.vast = vast;
        state.singly |= vast;
    }

    /// Whether it is too large to be kept here.
    pub(in crate::namespace) fn is_vast(&self) -> bool {
        self.state().vast
    }

    /// Names with keys behind `after` up to `end` (both without the prefix) of which a listing that
    /// was asked for at `asked` does not tell, or not as they are: written here, or changed since.
    pub(in crate::namespace) fn names_of_here(
        &self,
        after: Option<&str>,
        end: Option<&str>,
        asked: Instant,
    ) -> Vec<StreamedName> {
        let state = self.state();
        let after = after.unwrap_or_default();
        // A directory's key has a slash that its name lacks: it may come behind what its name begins.
        let cuts = after.char_indices().map(|(at, _)| &after[..at]).skip(1).chain([after]);
        let begun = cuts.filter_map(|name| state.entries.get_key_value(name));
        // A server that gives pages in another order is not to be trusted with a range.
        let range = (Excluded(after), Included(end.unwrap_or(after).max(after)));
        let range = if end.is_some() { range } else { (Excluded(after), Unbounded) };
        let all = begun.chain(state.entries.range::<str, _>(range));
        let here = all.filter(|(name, entry)| {
            let is_dir = matches!(entry.kind, Kind::Dir);
            let key = format!("{name}{}", if is_dir { "/" } else { "" });
            entry.outlives(asked) && *key > *after && end.is_none_or(|end| *key <= *end)
        });
        let here = here.map(|(name, entry)| StreamedName {
            name: name.clone(),
            is_dir: matches!(entry.kind, Kind::Dir),
            info: None,
            asked,
        });
        here.collect()
    }

    /// Names that were removed here since then.
    pub(in crate::namespace) fn removed_since(&self, since: Instant) -> HashSet<Box<str>> {
        let state = self.state();
        let removed = state.removed.iter().filter(|(_, at)| **at >= since);
        removed.map(|(name, _)| name.clone()).collect()
    }

    /// When somebody asked for a name last.
    pub(in crate::namespace) fn used_at(&self) -> Instant {
        self.state().used
    }

    /// How often names were given up: where it is as before, what was learnt is still known.
    pub(in crate::namespace) fn given_up(&self) -> u64 {
        self.state().given_up
    }

    /// Forgets what the origin can be asked for again. Says whether something is left.
    pub(in crate::namespace) fn give_names_up(&self) -> bool {
        let mut state = self.state();
        let since = Instant::now().checked_sub(CHANGED_KEPT);
        let DirState { entries, dirs, .. } = &mut *state;
        // One that nobody else holds: neither the kernel, nor what lies in it.
        dirs.retain(|_, dir| Arc::strong_count(dir) > 1);
        // In another something may be written that the origin knows nothing of.
        entries.retain(|name, entry| match entry.kind {
            Kind::Dir if dirs.contains_key(name) => true,
            _ => since.is_none_or(|since| entry.outlives(since)),
        });
        state.removed.retain(|_, at| at.elapsed() < CHANGED_KEPT);
        state.absent = None;
        state.listed = None;
        state.snapshot = None;
        state.kernel_cache.forget();
        state.given_up += 1;
        state.count();
        state.watched = state.account.is_used();
        state.watched
    }
}
