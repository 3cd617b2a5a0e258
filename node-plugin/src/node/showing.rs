//! Showing a session at a target, and what was there before.

use std::io;
use std::sync::Arc;

use weir_fuse::blocking::MayBlock;

use super::session::Served;
use crate::mounter::client::Mounter;
use crate::mounter::protocol::Bind;

/// Whether a target had a mount already that has ended: a pod may hold it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Before {
    Nothing,
    /// A mount of another session, or of this one in an earlier life.
    Ended,
}

/// Shows it, in place of what an earlier mount has left there: that would be hidden, not gone.
///
/// # Errors
/// What the mounter reports. NotConnected says that it is mounted no more.
pub(super) fn show(
    may: &MayBlock,
    mounter: &Mounter,
    known: &Arc<Served>,
    bind: &Bind,
) -> io::Result<Before> {
    let mut bound = mounter.bind(may, bind.clone());
    if is(&bound, io::ErrorKind::NotFound) {
        // It has just started, and was not told of this session yet.
        known.keep_now(may, mounter)?;
        bound = mounter.bind(may, bind.clone());
    }
    if !is(&bound, io::ErrorKind::AlreadyExists) {
        return bound.map(|()| Before::Nothing);
    }
    // One whose answer was lost, or that was not noted, shows this session.
    let shows_it = mounter.targets(may, &bind.session)?.contains(&bind.target);
    mounter.bind(may, Bind { replace: true, ..bind.clone() })?;
    Ok(if shows_it { Before::Nothing } else { Before::Ended })
}

fn is(done: &io::Result<()>, kind: io::ErrorKind) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == kind)
}
