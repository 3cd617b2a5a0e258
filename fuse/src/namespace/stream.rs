//! A directory that is too large to be kept: its names are read page by page, as somebody goes
//! through them, and forgotten behind him.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::dir::Dir;
use super::listing::Listing;
use super::memory::{Account, NAME_BYTES};
use super::pages::Pages;
use super::{Namespace, Node};
use crate::model::key::BadName;
use crate::model::version::ObjectInfo;
use crate::origin::{Origin, OriginError};

/// Keys asked for in one request: the most that S3 gives.
pub(super) const PAGE: u16 = 1000;
/// And where memory is short: a descriptor keeps a page.
const SMALL_PAGE: u16 = 100;

/// One name that was read.
#[derive(Clone, Debug)]
pub struct StreamedName {
    /// The name.
    pub name: Box<str>,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// What the listing says of a file; nothing of one that is being written here.
    pub info: Option<ObjectInfo>,
    /// When the origin was asked.
    pub asked: Instant,
}

impl Namespace {
    /// The node of a name that was read so, as the listing told.
    pub fn show_streamed(&self, dir: &Arc<Dir>, name: &StreamedName) -> Option<Node> {
        let told = match (&name.info, name.is_dir) {
            (Some(info), false) => Some(Some(info.clone())),
            (None, true) => Some(None),
            _ => None,
        };
        // The page may be older than what is known of this name.
        let is_news = dir.asked_at(&name.name).is_none_or(|at| at <= name.asked);
        if let Some(told) = told
            && is_news
        {
            dir.merge_one(&name.name, Some(told), name.asked);
        }
        self.present(dir, &name.name)?.ok()
    }
}

/// An open descriptor of such a directory. What others change meanwhile is shown or not, as POSIX
/// has it; nothing is shown twice.
pub struct DirStream {
    dir: Arc<Dir>,
    pages: Pages<Arc<dyn Origin>>,
    /// When the page was asked for that was read last.
    asked: Instant,
    /// What was read last, and how many names came before.
    chunk: Vec<StreamedName>,
    before: u64,
    /// The last key of what was read, without the directory's prefix.
    passed: Option<Box<str>>,
    /// Files that were shown, of whose names a directory may still come: keys are in order.
    shadowing: Vec<Box<str>>,
    account: Account,
}

impl DirStream {
    /// From the start.
    pub(super) fn open(names: &Namespace, dir: Arc<Dir>) -> Self {
        let pages = Pages::of_dir(names.origin.clone(), &dir.prefix(), PAGE);
        Self::new(names, dir, pages, Instant::now())
    }

    /// Goes on behind what was listed since `started`.
    pub(super) fn begun(
        names: &Namespace,
        dir: Arc<Dir>,
        listing: Listing,
        pages: Pages<Arc<dyn Origin>>,
        started: Instant,
    ) -> Self {
        let mut stream = Self::new(names, dir, pages, started);
        stream.take(names, listing);
        stream
    }

    fn new(
        names: &Namespace,
        dir: Arc<Dir>,
        pages: Pages<Arc<dyn Origin>>,
        asked: Instant,
    ) -> Self {
        let account = names.memory.account();
        let (chunk, shadowing) = (Vec::new(), Vec::new());
        Self { dir, pages, asked, chunk, before: 0, passed: None, shadowing, account }
    }

    /// Some of the names from the `at`th on; none behind the last.
    ///
    /// # Errors
    /// What the origin reports; the same place can be read again.
    pub async fn read(
        &mut self,
        names: &Namespace,
        at: u64,
    ) -> Result<&[StreamedName], OriginError> {
        if at < self.before {
            *self = Self::open(names, self.dir.clone());
        }
        loop {
            let end = self.before + self.chunk.len() as u64;
            if at < end {
                return Ok(&self.chunk[(at - self.before) as usize..]);
            }
            self.pages.limit(if names.memory.has_room() { PAGE } else { SMALL_PAGE });
            let asked = Instant::now();
            let page = self.pages.next().await?;
            self.before = end;
            self.chunk.clear();
            let Some(page) = page else {
                self.account.set(0);
                // It may be kept from now on, with some room for more.
                self.dir.set_vast(end * NAME_BYTES > names.memory.dir_max() / 2);
                return Ok(&[]);
            };
            self.asked = asked;
            let mut listing = Listing::default();
            listing.add(&self.dir.prefix(), page, &names.hidden);
            self.take(names, listing);
        }
    }

    /// Takes over what was listed, and what is known better here of the names up to its end.
    fn take(&mut self, names: &Namespace, listing: Listing) {
        let prefix = self.dir.prefix();
        let end = listing.last.filter(|_| self.pages.has_more());
        let here = match (&end, self.pages.has_more()) {
            // A page of nothing, with more behind it.
            (None, true) => Vec::new(),
            _ => self.dir.names_of_here(self.passed.as_deref(), end.as_deref(), self.asked),
        };
        let known: HashSet<_> = here.iter().map(|name| name.name.clone()).collect();
        let removed = self.dir.removed_since(self.asked);
        for (name, info) in listing.entries {
            let is_dir = info.is_none();
            if is_dir && self.shadowing.contains(&name) {
                names.hidden.note(&prefix.key_of(&name), BadName::ShadowedByDirectory);
                continue;
            }
            if !is_dir {
                self.shadowing.push(name.clone());
            }
            if !known.contains(&name) && !removed.contains(&name) {
                self.chunk.push(StreamedName { name, is_dir, info, asked: self.asked });
            }
        }
        self.chunk.extend(here);
        if let Some(end) = end {
            self.shadowing.retain(|name| end.starts_with(&**name));
            self.passed = Some(end);
        }
        self.account.set(self.chunk.len() as u64 * NAME_BYTES);
        names.memory.settle();
    }
}
