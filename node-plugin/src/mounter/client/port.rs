//! What an engine has of the mounter: its view of processes, and the privileged side of each
//! session's connection.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use weir_fuse::adapter::Witness;
use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::kernel::KernelPort;
use weir_fuse::engine::owner::{FileId, Processes};

use super::{Mounter, unexpected};
use crate::mounter::protocol::{Reply, Request};

/// How long it is waited for backing ids to be gone that were given back.
const SETTLE_PATIENCE: Duration = Duration::from_millis(100);

impl Processes for Mounter {
    fn process_of(&self, may: &MayBlock, thread: u32) -> u32 {
        match self.call(may, &Request::ProcessOf { thread }, &[]) {
            Ok((Reply::Process(process), _)) => process,
            _ => 0,
        }
    }

    fn is_alive(&self, may: &MayBlock, process: u32) -> bool {
        // Who cannot be asked about counts as gone: then the close stores the file.
        self.is_so(may, &Request::IsAlive { process, and_stays: false }).unwrap_or(false)
    }

    fn is_dying(&self, may: &MayBlock, thread: u32) -> bool {
        if thread == 0 {
            return false;
        }
        let question = Request::IsAlive { process: thread, and_stays: true };
        self.is_so(may, &question).is_ok_and(|stays| !stays)
    }

    fn holds(&self, may: &MayBlock, process: u32, file: &FileId<'_>) -> bool {
        let question = Request::Holds {
            process,
            device: file.device.to_owned(),
            ino: file.ino,
            name: file.name.to_owned(),
        };
        self.is_so(may, &question).unwrap_or(false)
    }
}

/// The privileged side of one session's connection.
pub struct SessionPort {
    /// Who does it.
    pub mounter: Arc<Mounter>,
    /// For which session.
    pub session: String,
}

impl KernelPort for SessionPort {
    /// Does not wait for a mounter that is not there: the file is served without it.
    fn open_backing(&self, may: &MayBlock, file: &File) -> io::Result<u32> {
        let request = Request::OpenBacking { session: self.session.clone() };
        match self.mounter.call(may, &request, &[file.as_fd()])? {
            (Reply::Backing(id), _) => Ok(id),
            _ => Err(unexpected()),
        }
    }

    fn close_backing(&self, id: u32) {
        let session = self.session.clone();
        self.mounter.notices.add(Request::CloseBacking { session, id });
    }

    fn expire(&self, parent: u64, name: &str) {
        let (session, name) = (self.session.clone(), name.to_owned());
        self.mounter.notices.add_if_few(Request::Expire { session, parent, name });
    }

    fn settle(&self) {
        self.mounter.notices.settle(SETTLE_PATIENCE);
    }
}

impl Witness for SessionPort {
    /// Does not wait for a mounter that is not there, and that would remember nothing.
    fn trial_begins(&self, may: &MayBlock, trial: u64) {
        let notice = trial_of(&self.session, trial, true);
        if let Err(error) = self.mounter.call_within(may, Duration::ZERO, &notice, &[]) {
            tracing::debug!(session = self.session, %error, "a trial is not witnessed");
        }
    }

    fn trial_ends(&self, trial: u64) {
        self.mounter.notices.add(trial_of(&self.session, trial, false));
    }
}

fn trial_of(session: &str, trial: u64, under_way: bool) -> Request {
    Request::Trial { session: session.to_owned(), number: Some(trial), under_way }
}
