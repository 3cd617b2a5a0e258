//! Whether what is known is recent enough, and nothing was heard of it since.

use std::time::{Duration, Instant};

use super::Namespace;
use super::dir::Dir;
use crate::feed::hearing::BucketHearing;
use crate::feed::lifetime::{Lifetime, Marked};
use crate::feed::marks::PathHash;

/// How long answers are taken as true at a time.
pub struct Freshness<'a> {
    now: Instant,
    positive: Lifetime,
    negative: Lifetime,
    hearing: Option<&'a BucketHearing>,
}

/// What was heard of a name.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    name: Marked,
    dir: Marked,
}

impl Namespace {
    /// As of now.
    pub(super) fn freshness(&self, now: Instant) -> Freshness<'_> {
        let hearing = self.hearing.as_ref();
        let lifetime = |short: Duration| match hearing {
            None => Lifetime::plain(short),
            Some(hearing) => hearing.lifetime(short, now),
        };
        let positive = lifetime(self.ttl());
        let negative = Lifetime { short: self.settings.negative_ttl.duration(), ..positive };
        Freshness { now, positive, negative, hearing }
    }
}

impl Freshness<'_> {
    /// When it is.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// What was heard of a name.
    pub(super) fn heard(&self, dir: &Dir, name: &str) -> Heard {
        let Some(hearing) = self.hearing else { return Heard::default() };
        let path = self.path(hearing, dir).then(name);
        Heard { name: hearing.of_name(path), dir: hearing.of_dir(path) }
    }

    fn path(&self, hearing: &BucketHearing, dir: &Dir) -> PathHash {
        dir.path_hash(hearing.root())
    }

    /// How long it is still true that this is a file, as it was told then.
    pub(super) fn file_left(&self, asked: Instant, heard: Heard) -> Duration {
        self.positive.left(asked, heard.name, self.now)
    }

    /// How long it is still true that this is a directory.
    pub(super) fn dir_left(&self, asked: Instant, heard: Heard) -> Duration {
        self.positive.left(asked, heard.dir, self.now)
    }

    /// Whether it is still true that there is no such name.
    pub(super) fn is_absent(&self, asked: Instant, heard: Heard) -> bool {
        self.negative.is_fresh(asked, heard.name, self.now)
    }

    /// Whether a listing that was begun then still tells the names of a directory.
    pub(super) fn is_listed(&self, dir: &Dir, begun: Instant) -> bool {
        let marked = self.hearing.map(|hearing| hearing.of_listing(self.path(hearing, dir)));
        self.positive.is_fresh(begun, marked.unwrap_or_default(), self.now)
    }
}
