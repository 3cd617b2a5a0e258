//! Whose bytes of a region were not what the object's tag says. Where tags are MD5s of the bytes, as
//! most stores make them of objects that came in one piece, a region's bytes are compared with them.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard};

use lru::LruCache;
use md5::{Digest, Md5};

use crate::model::version::ETag;
use crate::sync::unpoisoned;

/// Keys that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// What is known of a bucket's bytes at a region.
pub(super) struct Doubts {
    state: Mutex<State>,
}

struct State {
    /// Whether tags that look like an MD5 are none.
    tags_are_opaque: bool,
    suspects: LruCache<Box<str>, Suspect>,
}

/// A version of which the region gave other bytes than its tag says.
struct Suspect {
    etag: ETag,
    /// Whether the origin's own bytes are those that it says.
    is_guilty: bool,
}

/// Whether the region is asked for a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It is.
    Open,
    /// It is not; the origin's own bytes are to be compared with the tag, too.
    Suspected,
    /// It is not.
    Guilty,
}

/// What a comparison comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// The bytes are the version's.
    Right,
    /// They are not: the region is not asked for the key any more.
    Wrong,
    /// The origin's own bytes are what the tag says, and the region's were not.
    Guilty,
    /// The origin's own bytes are not what the tag says, either: it is no MD5.
    Opaque,
}

impl Default for Doubts {
    fn default() -> Self {
        let state = State { tags_are_opaque: false, suspects: LruCache::new(REMEMBERED) };
        Self { state: Mutex::new(state) }
    }
}

impl Doubts {
    /// Whether bytes can be compared with this tag.
    pub(super) fn can_judge(&self, etag: &ETag) -> bool {
        etag.md5().is_some() && !self.state().tags_are_opaque
    }

    /// Whether the region is asked for a key.
    pub(super) fn standing(&self, key: &str) -> Standing {
        match self.state().suspects.get(key) {
            None => Standing::Open,
            Some(Suspect { is_guilty: false, .. }) => Standing::Suspected,
            Some(Suspect { is_guilty: true, .. }) => Standing::Guilty,
        }
    }

    /// Takes notice of whether all bytes of a version are what its tag says.
    pub(super) fn judge(&self, key: &str, etag: &ETag, is_right: bool) -> Finding {
        let mut state = self.state();
        if state.tags_are_opaque {
            return Finding::Right;
        }
        let suspect = state.suspects.get_mut(key).filter(|suspect| suspect.etag == *etag);
        match (is_right, suspect) {
            (true, Some(suspect)) if !suspect.is_guilty => {
                suspect.is_guilty = true;
                Finding::Guilty
            }
            (true, _) => Finding::Right,
            // The region was not asked any more.
            (false, Some(_)) => {
                state.tags_are_opaque = true;
                state.suspects.clear();
                Finding::Opaque
            }
            (false, None) => {
                state.suspects.put(key.into(), Suspect { etag: etag.clone(), is_guilty: false });
                Finding::Wrong
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

/// Whether these are all bytes of a version with this tag, as far as that says.
pub(super) fn are_of(etag: &ETag, bytes: &[u8]) -> bool {
    etag.md5().is_none_or(|md5| *Md5::digest(bytes) == md5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "900150983cd24fb0d6963f7d28e17f72";

    fn tag(text: &str) -> ETag {
        ETag::new(text).unwrap()
    }

    #[test]
    fn a_key_whose_bytes_were_wrong_is_the_origins_alone_whose_bytes_are_compared_once() {
        let (doubts, etag) = (Doubts::default(), tag(TAG));
        assert!(are_of(&etag, b"abc") && !are_of(&etag, b"abd"));
        assert!(doubts.can_judge(&etag) && !doubts.can_judge(&tag(&format!("{TAG}-2"))));
        assert_eq!(doubts.judge("l", &etag, true), Finding::Right);
        assert_eq!(doubts.judge("k", &etag, false), Finding::Wrong);
        assert_eq!(
            (doubts.standing("k"), doubts.standing("l")),
            (Standing::Suspected, Standing::Open)
        );
        assert_eq!(doubts.judge("k", &etag, true), Finding::Guilty);
        assert_eq!(doubts.standing("k"), Standing::Guilty);
        assert_eq!(doubts.judge("k", &etag, true), Finding::Right);
        for n in 0..REMEMBERED.get() {
            doubts.judge(&n.to_string(), &etag, false);
        }
        assert_eq!(doubts.state().suspects.len(), REMEMBERED.get());
    }

    /// Servers that encrypt with keys of others, and some that are none of Amazon's.
    #[test]
    fn tags_that_the_origins_own_bytes_do_not_have_are_no_md5s() {
        let (doubts, etag) = (Doubts::default(), tag(TAG));
        for key in ["k", "l"] {
            assert_eq!(doubts.judge(key, &etag, false), Finding::Wrong);
        }
        assert_eq!(doubts.judge("k", &etag, false), Finding::Opaque);
        assert_eq!((doubts.standing("k"), doubts.standing("l")), (Standing::Open, Standing::Open));
        assert!(!doubts.can_judge(&etag));
        assert_eq!(doubts.judge("l", &etag, false), Finding::Right);
    }

    #[test]
    fn what_was_found_of_one_version_says_nothing_of_the_tag_of_the_next() {
        let doubts = Doubts::default();
        assert_eq!(doubts.judge("k", &tag(TAG), false), Finding::Wrong);
        let next = tag("00000000000000000000000000000000");
        assert_eq!(doubts.judge("k", &next, false), Finding::Wrong);
        assert_eq!(doubts.judge("k", &next, true), Finding::Guilty);
    }
}
