//! Changes of names that the kernel sends again, because the engine that was asked first is gone.
//! That engine may have made them: then what is refused now has succeeded.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use super::session::{Entry, Session};
use crate::namespace::dir::Dir;
use crate::namespace::{LookupError, Node, pages};

/// How young a directory must be to be the one that a resent mkdir made, by the clocks of node and
/// origin: nobody waits that long for an engine.
const MADE_WITHIN: Duration = Duration::from_secs(300);

/// Whether a request was sent before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// No engine had it before.
    First,
    /// An engine that is gone had it, and did not answer.
    Again,
}

/// A change that is refused now, and what there is to see of an earlier try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attempt {
    /// Of unlink and rmdir.
    Removal,
    /// Of mkdir: how old the directory is that has the name, where it is empty.
    Mkdir { empty_dir: Option<Duration> },
    /// Of rename.
    Rename { source_exists: bool, target_exists: bool },
}

impl Attempt {
    /// Whether this refusal is what a change meets that was made before.
    fn was_made_before(self, refusal: Errno) -> bool {
        match self {
            Self::Removal => refusal == Errno::NOENT,
            Self::Mkdir { empty_dir } => {
                refusal == Errno::EXIST && empty_dir.is_some_and(|age| age <= MADE_WITHIN)
            }
            Self::Rename { source_exists, target_exists } => {
                refusal == Errno::NOENT && !source_exists && target_exists
            }
        }
    }
}

impl Session {
    /// As [`Session::unlink`].
    ///
    /// # Errors
    /// As [`Session::unlink`], but for what an earlier engine has done.
    pub async fn unlink_sent(
        self: &Arc<Self>,
        delivery: Delivery,
        parent: u64,
        name: &str,
    ) -> Result<(), Errno> {
        settle_removal(delivery, self.unlink(parent, name).await)
    }

    /// As [`Session::rmdir`].
    ///
    /// # Errors
    /// As [`Session::rmdir`], but for what an earlier engine has done.
    pub async fn rmdir_sent(
        self: &Arc<Self>,
        delivery: Delivery,
        parent: u64,
        name: &str,
    ) -> Result<(), Errno> {
        settle_removal(delivery, self.rmdir(parent, name).await)
    }

    /// As [`Session::mkdir`].
    ///
    /// # Errors
    /// As [`Session::mkdir`], but for what an earlier engine has done.
    pub async fn mkdir_sent(
        self: &Arc<Self>,
        delivery: Delivery,
        parent: u64,
        name: &str,
    ) -> Result<Entry, Errno> {
        match self.mkdir(parent, name).await {
            Err(refusal) if delivery == Delivery::Again && refusal == Errno::EXIST => {
                let empty_dir = self.age_of_empty_dir(&self.dir(parent)?, name).await;
                let attempt = Attempt::Mkdir { empty_dir };
                if !attempt.was_made_before(refusal) {
                    return Err(refusal);
                }
                self.lookup(parent, name).await
            }
            done => done,
        }
    }

    /// As [`Session::rename`]; both places are a directory's nodeid and a name in it.
    ///
    /// # Errors
    /// As [`Session::rename`], but for what an earlier engine has done.
    pub async fn rename_sent(
        self: &Arc<Self>,
        delivery: Delivery,
        (parent, name): (u64, &str),
        (new_parent, new_name): (u64, &str),
        no_replace: bool,
    ) -> Result<(), Errno> {
        match self.rename(parent, name, new_parent, new_name, no_replace).await {
            Err(refusal) if delivery == Delivery::Again => {
                let attempt = Attempt::Rename {
                    source_exists: self.may_exist(&self.dir(parent)?, name).await,
                    target_exists: self.exists(&self.dir(new_parent)?, new_name).await,
                };
                if attempt.was_made_before(refusal) { Ok(()) } else { Err(refusal) }
            }
            done => done,
        }
    }

    async fn exists(&self, dir: &Arc<Dir>, name: &str) -> bool {
        self.names.lookup(dir, name).await.is_ok()
    }

    async fn may_exist(&self, dir: &Arc<Dir>, name: &str) -> bool {
        !matches!(self.names.lookup(dir, name).await, Err(LookupError::Absent))
    }

    /// How long ago the directory of this name was made, if there is nothing in it.
    async fn age_of_empty_dir(&self, parent: &Arc<Dir>, name: &str) -> Option<Duration> {
        let Ok(Node::Dir(dir)) = self.names.lookup(parent, name).await else { return None };
        let prefix = dir.prefix();
        if pages::has_below(&*self.names.origin, &prefix, true).await.ok()? {
            return None;
        }
        let marker = self.names.origin.head(prefix.as_str()).await.ok()?;
        // A clock that is ahead makes it younger than it is.
        Some(SystemTime::now().duration_since(marker.mtime).unwrap_or_default())
    }
}

fn settle_removal(delivery: Delivery, done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(refusal)
            if delivery == Delivery::Again && Attempt::Removal.was_made_before(refusal) =>
        {
            Ok(())
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_earlier_engine_can_have_left_is_a_success() {
        let young = Attempt::Mkdir { empty_dir: Some(Duration::from_secs(30)) };
        let old = Attempt::Mkdir { empty_dir: Some(Duration::from_secs(3000)) };
        let full = Attempt::Mkdir { empty_dir: None };
        let renamed =
            |source_exists, target_exists| Attempt::Rename { source_exists, target_exists };
        for (attempt, refusal, was_made) in [
            (Attempt::Removal, Errno::NOENT, true),
            (Attempt::Removal, Errno::NOTEMPTY, false),
            (Attempt::Removal, Errno::ACCESS, false),
            (young, Errno::EXIST, true),
            (young, Errno::ACCESS, false),
            (old, Errno::EXIST, false),
            (full, Errno::EXIST, false),
            (renamed(false, true), Errno::NOENT, true),
            (renamed(true, true), Errno::NOENT, false),
            (renamed(false, false), Errno::NOENT, false),
            (renamed(false, true), Errno::EXIST, false),
        ] {
            assert_eq!(attempt.was_made_before(refusal), was_made, "{attempt:?} {refusal:?}");
        }
    }
}
