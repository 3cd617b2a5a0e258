//! Gates of directories: shared by whoever changes a name or stores a file below one, exclusive
//! for its own rename.
//!
//! All gates that an operation needs are taken at once and in the order of nodeids, which never
//! change, before any file's gate; files' gates are taken in the order of their keys. So nobody
//! waits in a circle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use super::WriteError;
use crate::namespace::dir::Dir;

/// How long a change of names waits for gates. Below every deadline of whoever asks.
pub(super) const PATIENCE: Duration = Duration::from_secs(25);

/// Gates that are held.
#[derive(Default)]
pub(crate) struct DirGates {
    shared: Vec<OwnedRwLockReadGuard<()>>,
    exclusive: Option<OwnedRwLockWriteGuard<()>>,
}

impl DirGates {
    /// The gates of directories and of all above them, shared; that of `moved`, which is renamed,
    /// exclusive.
    ///
    /// # Errors
    /// [`WriteError::Busy`] when they are not free in time.
    pub(super) async fn take(
        dirs: &[&Arc<Dir>],
        moved: Option<&Arc<Dir>>,
    ) -> Result<Self, WriteError> {
        let taken = tokio::time::timeout(PATIENCE, Self::wait(dirs, moved)).await;
        taken.map_err(|_| WriteError::Busy)
    }

    /// As [`DirGates::take`], however long it takes.
    pub(super) async fn wait(dirs: &[&Arc<Dir>], moved: Option<&Arc<Dir>>) -> Self {
        loop {
            let chain = with_parents(dirs);
            let mut gates = Self::default();
            let mut all = chain.clone();
            all.extend(moved.map(|dir| (dir.ino, dir.clone())));
            for (ino, dir) in &all {
                if moved.is_some_and(|moved| moved.ino == *ino) {
                    gates.exclusive = Some(dir.names_gate.clone().write_owned().await);
                } else {
                    gates.shared.push(dir.names_gate.clone().read_owned().await);
                }
            }
            // Somebody may have moved one of them while the others were waited for.
            if with_parents(dirs).keys().eq(chain.keys()) {
                return gates;
            }
        }
    }
}

fn with_parents(dirs: &[&Arc<Dir>]) -> BTreeMap<u64, Arc<Dir>> {
    let mut all = BTreeMap::new();
    for dir in dirs {
        let mut at = (*dir).clone();
        while let Some((parent, _)) = at.place() {
            all.insert(at.ino, std::mem::replace(&mut at, parent));
        }
        all.insert(at.ino, at);
    }
    all
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::key::DirPrefix;
    use crate::namespace::memory::NameMemory;

    fn child(parent: &Arc<Dir>, name: &str, ino: u64) -> Arc<Dir> {
        Dir::below(parent, name, ino)
    }

    /// `None`: they are not free.
    fn now(dirs: &[&Arc<Dir>], moved: Option<&Arc<Dir>>) -> Option<DirGates> {
        DirGates::wait(dirs, moved).now_or_never()
    }

    #[test]
    fn a_rename_waits_for_all_below_and_keeps_others_out() {
        let root = Dir::root(DirPrefix::root(), NameMemory::new(0));
        let (d, e) = (child(&root, "d", 2), child(&root, "e", 3));
        let below = child(&d, "x", 4);
        let storing = now(&[&below], None);
        assert!(now(&[&root, &e], Some(&d)).is_none(), "something is stored below");
        drop(storing);
        let moving = now(&[&root, &e], Some(&d));
        assert!(moving.is_some());
        assert!(now(&[&below], None).is_none(), "its name changes");
        assert!(now(&[&e], None).is_some());
        drop(moving);
        assert!(now(&[&below, &d, &root], None).is_some());
    }
}
