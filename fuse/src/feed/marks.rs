//! When something was last heard of a name, for all mounts of a process.
//!
//! A table of times by the hash of bucket and key. An event writes into it, whoever shows the name, and a
//! look at a name reads from it: so an event costs the same however many mounts there are, whether somebody
//! knows the name or not, and the memory is what it is from the start. Two names that share a place cost a
//! question more, never one less. A question that is under way when the event comes is seen, too, since
//! its answer is compared by when it was asked.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Change;
use super::lifetime::Marked;

/// Places of the table; 8 bytes each. With 1,000 events a second a name lives some minutes.
const PLACES: usize = 1 << 19;

/// Hash of a bucket and the beginning of a key. No secret: who finds names that share a place makes
/// others be asked about once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathHash(u64);

impl PathHash {
    /// Of a bucket, and no key.
    pub fn of_bucket(name: &str) -> Self {
        Self(0xcbf2_9ce4_8422_2325).then(name).then("\0")
    }

    /// Of the key that goes on like this. Equal however the text is divided (FNV-1a).
    #[must_use]
    pub fn then(self, text: &str) -> Self {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Self(text.bytes().fold(self.0, step))
    }

    fn place(self, of: What) -> usize {
        // The finisher of MurmurHash3: FNV's low bits are poor.
        let mut hash = self.0 ^ (of as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (hash ^ (hash >> 33)) as usize % PLACES
    }
}

/// What is marked.
#[derive(Clone, Copy)]
enum What {
    /// A file of this name, or that there is none.
    Name = 1,
    /// That there is a directory of this name.
    Dir,
    /// The names in a directory, whose path ends in a slash.
    Listing,
    /// The same, by a key deeper below.
    Implied,
}

/// The table.
pub struct Marks {
    started: Instant,
    /// Nanoseconds from the start, and one; 0: never. Made at the first mark.
    places: OnceLock<Box<[AtomicU64]>>,
}

impl Default for Marks {
    fn default() -> Self {
        Self { started: Instant::now(), places: OnceLock::new() }
    }
}

impl Marks {
    /// Marks what a change may have changed: the name, the directory that it is in, and whether those
    /// above exist.
    pub fn mark(&self, change: &Change, now: Instant) {
        let nanos = now.saturating_duration_since(self.started).as_nanos();
        let tick = u64::try_from(nanos).unwrap_or(u64::MAX - 1) + 1;
        let touch = |path: PathHash, what| {
            let places =
                self.places.get_or_init(|| (0..PLACES).map(|_| AtomicU64::new(0)).collect());
            places[path.place(what)].fetch_max(tick, Ordering::Relaxed);
        };
        let touch_dir = |path| {
            touch(path, What::Name);
            if change.gone {
                touch(path, What::Dir);
            }
        };
        // What the key lies in so far, and its path up to here.
        let (mut dir, mut path) =
            (PathHash::of_bucket(&change.bucket), PathHash::of_bucket(&change.bucket));
        let mut rest = &*change.key;
        while let Some((name, behind)) = rest.split_once('/') {
            path = path.then(name);
            touch_dir(path);
            // The marker of a directory says of it what an object does of its name.
            touch(dir, if behind.is_empty() { What::Listing } else { What::Implied });
            path = path.then("/");
            (dir, rest) = (path, behind);
        }
        touch(dir, What::Listing);
        if !rest.is_empty() {
            touch(path.then(rest), What::Name);
        }
    }

    /// What was heard of the name of a file, or of one that is not there.
    pub fn of_name(&self, path: PathHash) -> Marked {
        Marked { own: self.at(path, What::Name), implied: None }
    }

    /// What was heard of a directory, whose path ends without a slash.
    pub fn of_dir(&self, path: PathHash) -> Marked {
        Marked { own: None, implied: self.at(path, What::Dir) }
    }

    /// What was heard of the names in a directory, whose path ends in a slash.
    pub fn of_listing(&self, path: PathHash) -> Marked {
        Marked { own: self.at(path, What::Listing), implied: self.at(path, What::Implied) }
    }

    fn at(&self, path: PathHash, what: What) -> Option<Instant> {
        let tick = self.places.get()?[path.place(what)].load(Ordering::Relaxed);
        Some(self.started + Duration::from_nanos(tick.checked_sub(1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, gone: bool) -> Change {
        Change { bucket: "b".into(), key: key.into(), gone }
    }

    /// What is marked of some paths: names, directories, listings, implied ones.
    fn marked(key: &str, gone: bool) -> String {
        let marks = Marks::default();
        marks.mark(&change(key, gone), Instant::now());
        let root = PathHash::of_bucket("b");
        let mut out = Vec::new();
        for name in ["a", "a/b", "a/b/c", "a/b/d", "x"] {
            let path = root.then(name);
            if marks.of_name(path).own.is_some() {
                out.push(format!("name {name}"));
            }
            if marks.of_dir(path).implied.is_some() {
                out.push(format!("dir {name}"));
            }
        }
        for dir in ["", "a/", "a/b/", "a/b/c/", "x/"] {
            let heard = marks.of_listing(root.then(dir));
            if heard.own.is_some() {
                out.push(format!("list {dir}"));
            }
            if heard.implied.is_some() {
                out.push(format!("imply {dir}"));
            }
        }
        out.join(", ")
    }

    #[test]
    fn an_event_marks_its_name_its_directory_and_whether_those_above_exist() {
        assert_eq!(
            marked("a/b/c", false),
            "name a, name a/b, name a/b/c, imply , imply a/, list a/b/"
        );
        assert_eq!(
            marked("a/b/c", true),
            "name a, dir a, name a/b, dir a/b, name a/b/c, imply , imply a/, list a/b/"
        );
        assert_eq!(marked("x", true), "name x, list ");
        // A marker.
        assert_eq!(marked("a/b/", false), "name a, name a/b, imply , list a/, list a/b/");
    }

    #[test]
    fn a_name_of_another_bucket_is_another_name_and_the_last_mark_counts() {
        let marks = Marks::default();
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        marks.mark(&change("k", false), late);
        marks.mark(&change("k", false), early);
        let own = |bucket: &str| marks.of_name(PathHash::of_bucket(bucket).then("k")).own;
        assert_eq!((own("b"), own("c")), (Some(late), None));
        let whole = PathHash::of_bucket("b").then("über/x");
        assert_eq!(whole, PathHash::of_bucket("b").then("über").then("/").then("x"));
    }
}
