//! Asking the origin about names, once for all who wait.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::Namespace;
use super::dir::kernel_cache::Snapshot;
use super::dir::{Ask, Dir};
use super::listing::Listing;
use super::memory::NAME_BYTES;
use super::pages::{self, Pages};
use super::stream::{DirStream, PAGE};
use crate::model::blocks::OBJECT_MAX;
use crate::model::key::BadName;
use crate::origin::OriginError;

/// How often a name is asked for whose answer is given up before it is looked at.
const ASKED_MAX: u32 = 8;

/// The names of a directory.
pub enum DirNames {
    /// All of them, as they were at one time.
    Whole(Snapshot),
    /// To be read page by page: there are too many.
    Streamed(Box<DirStream>),
}

/// What came of listing a directory.
enum Listed {
    /// Its names are known.
    Whole,
    /// There is more than the one page that was to be read.
    Longer,
    /// There are more names than can be kept.
    Vast(Box<DirStream>),
}

/// How a name is asked for.
#[derive(Clone, Copy)]
pub(super) enum Question {
    /// In the cheapest way that its directory allows.
    Cheap,
    /// By HEAD, for what listings do not tell.
    Head,
}

impl Namespace {
    /// Asks about a name, and tells what `look` makes of the answer, before that can be given up
    /// for others' names.
    pub(super) async fn ask<T>(
        &self,
        dir: &Arc<Dir>,
        name: &str,
        question: Question,
        look: impl Fn() -> T,
    ) -> Result<T, OriginError> {
        for _ in 0..ASKED_MAX {
            let before = dir.given_up();
            match question {
                Question::Cheap => self.refresh(dir, name).await?,
                Question::Head => {
                    let done = self.ask_single(dir, name).await;
                    self.or_remembered(done, dir, name).await?;
                }
            }
            let seen = look();
            if dir.given_up() == before {
                return Ok(seen);
            }
        }
        Err(OriginError::Unavailable("memory for names is short".into()))
    }

    /// Asks about one name, in the cheapest way that this directory allows.
    async fn refresh(&self, dir: &Arc<Dir>, name: &str) -> Result<(), OriginError> {
        let asked = Instant::now();
        if self.health.is_down() && self.remembers(dir, name).await {
            return Ok(());
        }
        // What was given up would be again.
        let is_answered = || dir.is_answered(name, &self.freshness(Instant::now()));
        if dir.given_up() == 0 && self.load_kept(dir, false).await && is_answered() {
            return Ok(());
        }
        let listed = match dir.how_to_ask() {
            Ask::List => self.list(dir, asked, is_answered, false).await,
            Ask::FirstPage => self.list(dir, asked, is_answered, true).await,
            Ask::Single => Ok(Listed::Longer),
        };
        let done = match listed {
            Ok(Listed::Whole) => Ok(()),
            Ok(Listed::Longer | Listed::Vast(_)) => self.ask_single(dir, name).await,
            // Who may not list the directory may still know names in it.
            Err(error) if error.is_refusal() => {
                self.note_refusal(dir, &error);
                dir.ask_singly();
                self.ask_single(dir, name).await
            }
            Err(error) => Err(error),
        };
        self.or_remembered(done, dir, name).await
    }

    /// The names of a directory, asking the origin where what is known is too old.
    ///
    /// # Errors
    /// What the origin reports, unless an older listing is known.
    pub async fn read_dir(&self, dir: &Arc<Dir>) -> Result<DirNames, OriginError> {
        let asked = Instant::now();
        let recent = |at| self.freshness(asked).is_listed(dir, at);
        if let Some(names) = self.listed_or_kept(dir, false, recent).await {
            return Ok(self.whole(dir, names));
        }
        if self.health.is_down()
            && let Some(names) = self.listed_or_kept(dir, true, |_| true).await
        {
            return Ok(self.whole(dir, names));
        }
        if dir.is_vast() {
            return Ok(self.stream(dir));
        }
        let is_listed = || {
            let begun = dir.listed_at();
            begun.is_some_and(|at| self.freshness(Instant::now()).is_listed(dir, at))
        };
        match self.list(dir, asked, is_listed, false).await {
            Ok(Listed::Vast(stream)) => Ok(DirNames::Streamed(stream)),
            Ok(Listed::Whole | Listed::Longer) => Ok(match dir.listed_names(|_| true) {
                Some(names) => self.whole(dir, names),
                // Given up for others' names since.
                None => self.stream(dir),
            }),
            Err(error) if error.is_outage() => {
                self.note_outage(&error);
                let remembered = self.listed_or_kept(dir, true, |_| true).await;
                remembered.map(|names| self.whole(dir, names)).ok_or(error)
            }
            Err(error) => {
                self.note_refusal(dir, &error);
                Err(error)
            }
        }
    }

    /// The names of a listing that is known, or of the one that is kept, if it is as recent as asked.
    async fn listed_or_kept(
        &self,
        dir: &Arc<Dir>,
        any_age: bool,
        recent: impl Fn(Instant) -> bool + Copy,
    ) -> Option<Snapshot> {
        if let Some(names) = dir.listed_names(recent) {
            return Some(names);
        }
        self.load_kept(dir, any_age).await;
        dir.listed_names(recent)
    }

    /// These names, if there is room for them.
    fn whole(&self, dir: &Arc<Dir>, names: Snapshot) -> DirNames {
        match self.memory.has_room() {
            true => DirNames::Whole(names),
            false => self.stream(dir),
        }
    }

    fn stream(&self, dir: &Arc<Dir>) -> DirNames {
        DirNames::Streamed(Box::new(DirStream::open(self, dir.clone())))
    }

    /// Like [`Namespace::read_dir`], if nothing must be waited for.
    pub fn read_dir_now(&self, dir: &Arc<Dir>) -> Option<Snapshot> {
        let freshness = self.freshness(Instant::now());
        dir.listed_names(|at| freshness.is_listed(dir, at)).filter(|_| self.memory.has_room())
    }

    /// Lists the directory, unless somebody did since `asked`, or it is `known` what was to be found out.
    /// With `one_page` it gives up where there are more.
    async fn list(
        &self,
        dir: &Arc<Dir>,
        asked: Instant,
        known: impl Fn() -> bool,
        one_page: bool,
    ) -> Result<Listed, OriginError> {
        let _gate = dir.gate.lock().await;
        if dir.listed_at().is_some_and(|at| at >= asked) || known() {
            return Ok(Listed::Whole);
        }
        let started = Instant::now();
        let fetched = SystemTime::now();
        let prefix = dir.prefix();
        let mut listing = Listing::default();
        let mut account = self.memory.account();
        let mut pages = Pages::of_dir(self.origin.clone(), &prefix, PAGE);
        while let Some(page) = pages.next().await? {
            if one_page && pages.has_more() {
                dir.ask_singly();
                return Ok(Listed::Longer);
            }
            listing.add(&prefix, page, &self.hidden);
            if !account.set_with_room(listing.entries.len() as u64 * NAME_BYTES) {
                dir.set_vast(true);
                let stream = DirStream::begun(self, dir.clone(), listing, pages, started);
                return Ok(Listed::Vast(Box::new(stream)));
            }
        }
        drop(account);
        self.took_over(dir, listing, started, fetched);
        Ok(Listed::Whole)
    }

    fn took_over(&self, dir: &Arc<Dir>, listing: Listing, started: Instant, fetched: SystemTime) {
        self.note_answer();
        self.keep(dir, &listing, fetched);
        dir.merge(listing, started);
    }

    /// Asks for an object and for a directory of this name at once. Either may be refused to
    /// these credentials where the other is not: what is found counts.
    async fn ask_single(&self, dir: &Arc<Dir>, name: &str) -> Result<(), OriginError> {
        let started = Instant::now();
        let prefix = dir.prefix();
        let (key, child) = (prefix.key_of(name), prefix.child(name));
        let below = pages::has_below(&*self.origin, &child, false);
        let answer = match tokio::join!(self.origin.head(&key), below) {
            (object, Ok(true)) => {
                match object {
                    Ok(_) => self.hidden.note(&key, BadName::ShadowedByDirectory),
                    Err(OriginError::NotFound) => {}
                    Err(refused) if refused.is_refusal() => {}
                    Err(error) => return Err(error),
                }
                Some(None)
            }
            (Ok(info), Ok(false) | Err(_)) if info.size > OBJECT_MAX => {
                self.hidden.note(&key, BadName::Size);
                let text = format!("the endpoint says that it has {} bytes", info.size);
                return Err(OriginError::TooLarge(text));
            }
            (Ok(info), Ok(false)) => Some(Some(info)),
            (Ok(info), Err(refused)) if refused.is_refusal() => Some(Some(info)),
            (Err(OriginError::NotFound), Ok(false)) => None,
            (_, Err(error)) | (Err(error), _) => return Err(error),
        };
        self.note_answer();
        dir.merge_one(name, answer, started);
        Ok(())
    }

    /// In an outage, what is remembered stands in for the answer.
    async fn or_remembered(
        &self,
        done: Result<(), OriginError>,
        dir: &Arc<Dir>,
        name: &str,
    ) -> Result<(), OriginError> {
        match done {
            Err(error) if error.is_outage() => {
                self.note_outage(&error);
                if self.remembers(dir, name).await { Ok(()) } else { Err(error) }
            }
            // What is refused of one name says nothing about the directory.
            Err(error) if error.is_about_account() => {
                self.note_refusal(dir, &error);
                Err(error)
            }
            other => other,
        }
    }

    async fn remembers(&self, dir: &Arc<Dir>, name: &str) -> bool {
        dir.has(name) || dir.listed_at().is_some() || self.load_kept(dir, true).await
    }

    fn note_outage(&self, error: &OriginError) {
        if self.health.failed() {
            tracing::warn!(session = self.session(), %error, "origin does not answer; showing what is remembered");
        }
    }

    fn note_answer(&self) {
        if self.health.answered() {
            tracing::info!(session = self.session(), "origin answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::blocking::MAY;
    use crate::cache::{CacheSettings, NodeCache};
    use crate::metrics::Metrics;
    use crate::namespace::NamespaceSettings;
    use crate::namespace::hidden::HiddenKeys;
    use crate::namespace::memory::NameMemory;
    use crate::origin::memory::MemoryOrigin;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_that_is_given_up_before_it_is_looked_at_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = CacheSettings::one(folder.path(), u64::MAX, 0);
        let cache = NodeCache::open(MAY, &settings, metrics.clone()).unwrap();
        let origin = Arc::new(MemoryOrigin::new("bucket"));
        origin.insert("a", "x");
        let hidden = HiddenKeys::new(metrics);
        let memory = NameMemory::new(0);
        let names =
            Namespace::new(origin, cache, memory, hidden, NamespaceSettings::default(), None);
        let dir = names.root().clone();
        for question in [Question::Cheap, Question::Head] {
            let lost = Cell::new(0);
            let look = || {
                if lost.replace(lost.get() + 1) < 3 {
                    dir.give_names_up();
                }
                names.present(&dir, "a").is_some()
            };
            assert!(names.ask(&dir, "a", question, look).await.unwrap());
            assert_eq!(lost.get(), 4);
        }
        let given_up = || {
            dir.give_names_up();
        };
        let never = names.ask(&dir, "a", Question::Cheap, given_up).await;
        assert!(matches!(never, Err(OriginError::Unavailable(_))), "{never:?}");
    }
}
