//! The pages of a listing, one after the other. A page may be empty and have a successor, as
//! between many delete markers of a versioned bucket: only the last page, or a name, tells.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;

use crate::model::key::DirPrefix;
use crate::origin::{ListPage, ListRequest, Origin, OriginError};

/// Empty pages in a row that are followed. S3 passes over a thousand keys a page, so that this is
/// ten million removed ones.
const EMPTY_MAX: u32 = 10_000;

/// A listing that is read page by page. `O` leads to the origin.
pub struct Pages<O> {
    origin: O,
    /// What to ask next; `None` behind the last page.
    request: Option<ListRequest>,
    empty: u32,
    /// Hashes of the tokens that were followed.
    followed: HashSet<u64>,
}

impl<O: Deref<Target: Origin>> Pages<O> {
    /// What lies in the directory that shows `prefix`, at most `max_keys` names a page.
    pub fn of_dir(origin: O, prefix: &DirPrefix, max_keys: u16) -> Self {
        Self::new(origin, prefix, true, max_keys)
    }

    /// All keys below `prefix`, at most `max_keys` a page.
    pub fn of_tree(origin: O, prefix: &DirPrefix, max_keys: u16) -> Self {
        Self::new(origin, prefix, false, max_keys)
    }

    fn new(origin: O, prefix: &DirPrefix, delimited: bool, max_keys: u16) -> Self {
        let prefix = prefix.as_str().to_owned();
        let request = ListRequest { prefix, delimited, token: None, max_keys };
        Self { origin, request: Some(request), empty: 0, followed: HashSet::new() }
    }

    /// The next page; `None` behind the last.
    ///
    /// # Errors
    /// What the origin reports; [`OriginError::NotS3`] for a listing that does not go on.
    pub async fn next(&mut self) -> Result<Option<ListPage>, OriginError> {
        let Some(request) = &mut self.request else { return Ok(None) };
        let mut page = self.origin.list(request).await?;
        let is_empty = page.objects.is_empty() && page.prefixes.is_empty() && page.undecodable == 0;
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        match page.next.take() {
            None => self.request = None,
            Some(token) if !self.followed.insert(hash(&token)) => {
                return Err(OriginError::NotS3("a page of a listing that leads back to it".into()));
            }
            Some(_) if self.empty >= EMPTY_MAX => {
                let told = format!("a listing of {EMPTY_MAX} empty pages and more");
                return Err(OriginError::NotS3(told));
            }
            token => request.token = token,
        }
        Ok(Some(page))
    }

    /// From now on at most so many names a page.
    pub fn limit(&mut self, max_keys: u16) {
        if let Some(request) = &mut self.request {
            request.max_keys = max_keys;
        }
    }

    /// Whether the page before was not the last.
    pub fn has_more(&self) -> bool {
        self.request.is_some()
    }
}

fn hash(token: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    token.hash(&mut hasher);
    hasher.finish()
}

/// Whether the origin has anything in the directory that shows `prefix`. With `but_marker` the
/// directory's own marker object does not count.
///
/// # Errors
/// As [`Pages::next`].
pub async fn has_below(
    origin: &dyn Origin,
    prefix: &DirPrefix,
    but_marker: bool,
) -> Result<bool, OriginError> {
    let mut pages = Pages::of_dir(origin, prefix, 2);
    while let Some(page) = pages.next().await? {
        let counts = |key: &str| !(but_marker && key == prefix.as_str());
        // What is not UTF-8 cannot be shown, and is there.
        if page.undecodable > 0
            || !page.prefixes.is_empty()
            || page.objects.iter().any(|(key, _)| counts(key))
        {
            return Ok(true);
        }
    }
    Ok(false)
}
