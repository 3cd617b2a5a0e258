//! Backing ids that the kernel has given out. Each is kernel memory that nobody accounts for, as long as
//! anybody has the connection open: they are counted by themselves, whatever an engine says of them, and
//! go back when their session is forgotten, so that none begins anew with those that it has.
//!
//! Facts (fs/fuse/backing.c): an id is of one connection, none is given out twice at once, and it takes
//! CAP_SYS_ADMIN to open or close one. So only the mounter closes them, and what is closed here was open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::kernel::KernelPort;

/// Files that are registered for one session at once.
const OF_ONE_MAX: usize = 1 << 16;
/// Files that are registered for all sessions at once: some 2 KiB of the kernel's memory each.
const OF_ALL_MAX: usize = 1 << 18;

/// How many there are of all sessions.
#[derive(Clone, Default)]
pub(super) struct Total(Arc<AtomicUsize>);

/// One that is counted.
struct Counted(Total);

impl Total {
    fn one_more(&self) -> io::Result<Counted> {
        let more = |count| (count < OF_ALL_MAX).then_some(count + 1);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Counted(self.clone())),
            Err(_) => Err(full(OF_ALL_MAX, "by all volumes of this node")),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn full(max: usize, by: &str) -> io::Error {
    io::Error::other(format!("{max} backing files are registered already {by}"))
}

/// Those of one session.
pub(super) struct Ids {
    total: Total,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    given: HashMap<u32, Counted>,
    /// Being registered.
    under_way: usize,
    /// The session is forgotten.
    is_over: bool,
}

impl Ids {
    pub(super) fn new(total: &Total) -> Arc<Self> {
        Arc::new(Self { total: total.clone(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a file by the connection of the session.
    ///
    /// # Errors
    /// What the kernel reports, and where there are too many of them.
    pub(super) fn open(&self, port: &impl KernelPort, file: &File) -> io::Result<u32> {
        let counted = self.begin()?;
        let opened = port.open_backing(&MayBlock::own_thread(), file);
        let mut state = self.state();
        state.under_way -= 1;
        let id = opened?;
        if state.is_over {
            drop(state);
            port.close_backing(id);
            return Err(io::Error::other("the session was unmounted meanwhile"));
        }
        state.given.insert(id, counted);
        Ok(id)
    }

    fn begin(&self) -> io::Result<Counted> {
        let mut state = self.state();
        if state.given.len() + state.under_way >= OF_ONE_MAX {
            return Err(full(OF_ONE_MAX, "by this volume"));
        }
        let counted = self.total.one_more()?;
        state.under_way += 1;
        Ok(counted)
    }

    /// Closes an id. One that is not known may be of a mounter before this one, and the kernel says
    /// whether it is any.
    pub(super) fn close(&self, port: &impl KernelPort, id: u32) {
        let counted = self.state().given.remove(&id);
        port.close_backing(id);
        drop(counted);
    }

    /// Closes all, and each that is still being registered: the session is forgotten.
    pub(super) fn close_all(&self, port: &impl KernelPort) {
        let given = {
            let mut state = self.state();
            state.is_over = true;
            std::mem::take(&mut state.given)
        };
        for (id, counted) in given {
            port.close_backing(id);
            drop(counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A kernel that knows which ids are open.
    #[derive(Default)]
    struct Kernel(Mutex<(u32, HashSet<u32>)>);

    impl Kernel {
        fn open(&self) -> usize {
            self.0.lock().unwrap().1.len()
        }
    }

    impl KernelPort for Kernel {
        fn open_backing(&self, _: &MayBlock, _: &File) -> io::Result<u32> {
            let mut kernel = self.0.lock().unwrap();
            kernel.0 += 1;
            let id = kernel.0;
            kernel.1.insert(id);
            Ok(id)
        }

        fn close_backing(&self, id: u32) {
            self.0.lock().unwrap().1.remove(&id);
        }
    }

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn an_engine_has_no_more_of_them_whatever_it_says_that_it_closes() {
        let (kernel, file, total) = (Kernel::default(), file(), Total::default());
        let ids = Ids::new(&total);
        for _ in 0..OF_ONE_MAX {
            ids.open(&kernel, &file).unwrap();
        }
        for invented in [0, OF_ONE_MAX as u32 + 1, u32::MAX] {
            ids.close(&kernel, invented);
            let refused = ids.open(&kernel, &file).unwrap_err();
            assert!(refused.to_string().contains("65536 backing files"), "{refused}");
        }
        // One that was is closed once.
        for closed in [7, 7, 7] {
            ids.close(&kernel, closed);
        }
        ids.open(&kernel, &file).unwrap();
        assert!(ids.open(&kernel, &file).is_err());
        assert_eq!(kernel.open(), OF_ONE_MAX);
    }

    #[test]
    fn a_session_that_is_forgotten_leaves_none_and_all_together_have_a_bounded_number() {
        let (kernel, file, total) = (Kernel::default(), file(), Total::default());
        for _ in 0..2 {
            let sessions: Vec<_> =
                (0..OF_ALL_MAX / OF_ONE_MAX + 1).map(|_| Ids::new(&total)).collect();
            for ids in &sessions {
                while ids.open(&kernel, &file).is_ok() {}
            }
            assert_eq!(kernel.open(), OF_ALL_MAX);
            sessions.iter().for_each(|ids| ids.close_all(&kernel));
            assert_eq!(kernel.open(), 0);
            // Nor does one that was under way then.
            assert!(sessions[0].open(&kernel, &file).is_err());
            assert_eq!(kernel.open(), 0);
        }
    }
}
