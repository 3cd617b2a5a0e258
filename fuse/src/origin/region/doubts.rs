//! Whose bytes of a region were not what the object's tag says. Where tags are MD5s of the bytes, as
//! most stores make them of objects that came in one piece, a region's bytes are compared with them.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard};

use lru::LruCache;
use md5::{Digest, Md5};

use crate::model::version::ETag;
use crate::origin::Compared;
use crate::sync::unpoisoned;

/// Keys that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Keys whose tags are found to be no MD5s, while none of the bucket is, after which no tag of it counts as
/// one: objects are encrypted one by one, or all of a bucket are.
const OPAQUE_KEYS: u32 = 3;

/// What is known of a bucket's bytes at a region.
pub(super) struct Doubts {
    state: Mutex<State>,
}

struct State {
    tags: Tags,
    suspects: LruCache<Box<str>, Suspect>,
}

/// What tags of the bucket are that look like an MD5.
enum Tags {
    /// Not known; so many of them are none.
    Unknown(u32),
    /// At least one is.
    Md5s,
    /// None is.
    Opaque,
}

/// A version of which the region gave other bytes than its tag says.
struct Suspect {
    etag: ETag,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The origin's own bytes were not compared yet.
    Open,
    /// They are those that the tag says.
    Guilty,
    /// They are not, either: the tag says nothing of bytes.
    Opaque,
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
        let state = State { tags: Tags::Unknown(0), suspects: LruCache::new(REMEMBERED) };
        Self { state: Mutex::new(state) }
    }
}

impl Doubts {
    /// Whether bytes of a key can be compared with this tag.
    pub(super) fn can_judge(&self, key: &str, etag: &ETag) -> bool {
        let mut state = self.state();
        let is_opaque = |suspect: &Suspect| suspect.is(etag) && suspect.verdict == Verdict::Opaque;
        etag.md5().is_some()
            && !matches!(state.tags, Tags::Opaque)
            && !state.suspects.get(key).is_some_and(is_opaque)
    }

    /// Whether the region is asked for a key.
    pub(super) fn standing(&self, key: &str) -> Standing {
        match self.state().suspects.get(key).map(|suspect| suspect.verdict) {
            None | Some(Verdict::Opaque) => Standing::Open,
            Some(Verdict::Open) => Standing::Suspected,
            Some(Verdict::Guilty) => Standing::Guilty,
        }
    }

    /// Takes notice of what came of comparing all bytes of a version with its tag.
    pub(super) fn judge(&self, key: &str, etag: &ETag, compared: Compared) -> Finding {
        let mut state = self.state();
        let state = &mut *state;
        if matches!(state.tags, Tags::Opaque) {
            return Finding::Right;
        }
        let suspect = state.suspects.get_mut(key).filter(|suspect| suspect.is(etag));
        match (compared, suspect) {
            (Compared::Equal, suspect) => {
                state.tags = Tags::Md5s;
                match suspect {
                    Some(suspect) if suspect.verdict == Verdict::Open => {
                        suspect.verdict = Verdict::Guilty;
                        Finding::Guilty
                    }
                    _ => Finding::Right,
                }
            }
            (Compared::Different { .. }, Some(Suspect { verdict: Verdict::Opaque, .. })) => {
                Finding::Right
            }
            (Compared::Different { of_origin: true }, Some(suspect)) => {
                suspect.verdict = Verdict::Opaque;
                if let Tags::Unknown(opaque) = &mut state.tags {
                    *opaque += 1;
                    if *opaque >= OPAQUE_KEYS {
                        state.tags = Tags::Opaque;
                    }
                }
                Finding::Opaque
            }
            (Compared::Different { .. }, Some(_)) => Finding::Wrong,
            (Compared::Different { .. }, None) => {
                let suspect = Suspect { etag: etag.clone(), verdict: Verdict::Open };
                state.suspects.put(key.into(), suspect);
                Finding::Wrong
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

impl Suspect {
    fn is(&self, etag: &ETag) -> bool {
        self.etag == *etag
    }
}

/// What comes of comparing these bytes with a version's tag, as far as that says anything.
pub(super) fn compared(etag: &ETag, bytes: &[u8], of_origin: bool) -> Compared {
    match etag.md5().is_none_or(|md5| *Md5::digest(bytes) == md5) {
        true => Compared::Equal,
        false => Compared::Different { of_origin },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "900150983cd24fb0d6963f7d28e17f72";
    const WRONG: Compared = Compared::Different { of_origin: false };
    const WRONG_OF_ORIGIN: Compared = Compared::Different { of_origin: true };

    fn tag(text: &str) -> ETag {
        ETag::new(text).unwrap()
    }

    #[test]
    fn a_key_whose_bytes_were_wrong_is_the_origins_alone_whose_bytes_are_compared_once() {
        let (doubts, etag) = (Doubts::default(), tag(TAG));
        assert_eq!(compared(&etag, b"abc", true), Compared::Equal);
        assert_eq!(compared(&etag, b"abd", true), WRONG_OF_ORIGIN);
        assert!(doubts.can_judge("k", &etag) && !doubts.can_judge("k", &tag(&format!("{TAG}-2"))));
        assert_eq!(doubts.judge("l", &etag, Compared::Equal), Finding::Right);
        assert_eq!(doubts.judge("k", &etag, WRONG), Finding::Wrong);
        assert_eq!(
            (doubts.standing("k"), doubts.standing("l")),
            (Standing::Suspected, Standing::Open)
        );
        // Of somebody who had them of the region, too.
        assert_eq!(doubts.judge("k", &etag, WRONG), Finding::Wrong);
        assert_eq!(doubts.judge("k", &etag, Compared::Equal), Finding::Guilty);
        assert_eq!(doubts.standing("k"), Standing::Guilty);
        assert_eq!(doubts.judge("k", &etag, Compared::Equal), Finding::Right);
        for n in 0..REMEMBERED.get() {
            doubts.judge(&n.to_string(), &etag, WRONG);
        }
        assert_eq!(doubts.state().suspects.len(), REMEMBERED.get());
    }

    /// Servers that encrypt with keys of others, and some that are none of Amazon's.
    #[test]
    fn tags_that_the_origins_own_bytes_do_not_have_are_no_md5s() {
        let (doubts, etag) = (Doubts::default(), tag(TAG));
        for n in 0..OPAQUE_KEYS {
            let key = n.to_string();
            assert!(doubts.can_judge("other", &etag));
            assert_eq!(doubts.judge(&key, &etag, WRONG), Finding::Wrong);
            assert_eq!(doubts.judge(&key, &etag, WRONG_OF_ORIGIN), Finding::Opaque);
            assert_eq!(doubts.standing(&key), Standing::Open);
            assert!(!doubts.can_judge(&key, &etag), "it was compared");
            assert_eq!(doubts.judge(&key, &etag, WRONG), Finding::Right);
        }
        assert!(!doubts.can_judge("other", &etag));
        assert_eq!(doubts.judge("other", &etag, WRONG), Finding::Right);
    }

    #[test]
    fn objects_whose_tags_are_no_md5s_hide_no_wrong_bytes_of_others() {
        let (doubts, etag) = (Doubts::default(), tag(TAG));
        assert_eq!(doubts.judge("guilty", &etag, WRONG), Finding::Wrong);
        assert_eq!(doubts.judge("guilty", &etag, Compared::Equal), Finding::Guilty);
        for n in 0..2 * OPAQUE_KEYS {
            doubts.judge(&n.to_string(), &etag, WRONG);
            assert_eq!(doubts.judge(&n.to_string(), &etag, WRONG_OF_ORIGIN), Finding::Opaque);
        }
        assert!(doubts.can_judge("other", &etag));
        assert_eq!(doubts.standing("guilty"), Standing::Guilty);
        assert_eq!(doubts.judge("other", &etag, WRONG), Finding::Wrong);
    }

    #[test]
    fn what_was_found_of_one_version_says_nothing_of_the_tag_of_the_next() {
        let doubts = Doubts::default();
        assert_eq!(doubts.judge("k", &tag(TAG), WRONG), Finding::Wrong);
        let next = tag("00000000000000000000000000000000");
        assert_eq!(doubts.judge("k", &next, WRONG_OF_ORIGIN), Finding::Wrong);
        assert_eq!(doubts.judge("k", &next, Compared::Equal), Finding::Guilty);
    }
}
