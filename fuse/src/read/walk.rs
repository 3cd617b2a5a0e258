//! Recognises a reader that opens the files of a directory one after the other.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

/// Directories followed at once.
const FOLLOWED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);
/// Opens in order that make a walk.
const ENOUGH: u32 = 2;
/// Most files fetched ahead.
const DEPTH_MAX: usize = 64;
/// An open this many names further still belongs to the walk: several threads share one.
pub const REACH: usize = 16;

/// The walks of a mount, by directory.
pub struct Walks {
    dirs: Mutex<LruCache<u64, Walk>>,
}

struct Walk {
    last: Box<str>,
    streak: u32,
}

impl Default for Walks {
    fn default() -> Self {
        Self { dirs: Mutex::new(LruCache::new(FOLLOWED)) }
    }
}

impl Walks {
    /// Notes that `name` was opened in the directory `dir`. `follows(last)` says whether `name`
    /// is among the [`REACH`] names after `last`. Returns how many files to fetch ahead.
    pub fn opened(&self, dir: u64, name: &str, follows: impl FnOnce(&str) -> bool) -> usize {
        let mut dirs = self.dirs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(walk) = dirs.get_mut(&dir) else {
            dirs.put(dir, Walk { last: name.into(), streak: 0 });
            return 0;
        };
        if name > &*walk.last && follows(&walk.last) {
            walk.streak = walk.streak.saturating_add(1);
            walk.last = name.into();
        } else if name >= &*walk.last {
            *walk = Walk { last: name.into(), streak: 0 };
        }
        if walk.streak < ENOUGH { 0 } else { (4 << walk.streak.min(8)).min(DEPTH_MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_in_order_make_a_walk_and_a_jump_ends_it() {
        let walks = Walks::default();
        let near = |_: &str| true;
        assert_eq!(walks.opened(1, "a", near), 0);
        assert_eq!(walks.opened(1, "b", near), 0);
        assert!(walks.opened(1, "c", near) > 0);
        assert_eq!(walks.opened(2, "d", near), 0);
        // A second thread a little behind does not end the walk.
        assert!(walks.opened(1, "b", near) > 0);
        assert_eq!(walks.opened(1, "z", |_| false), 0);
    }
}
