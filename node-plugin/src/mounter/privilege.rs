//! Giving up what is not needed.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Keeps CAP_SYS_ADMIN and drops every other capability of this thread and of those it starts;
/// none can be had again.
///
/// # Errors
/// What capset reports, as EPERM where CAP_SYS_ADMIN is not there.
pub(super) fn keep_only_sys_admin() -> io::Result<()> {
    let kept = CapabilitySet::SYS_ADMIN;
    let mut sets = capabilities(None)?;
    if !sets.permitted.contains(kept) {
        let text = "CAP_SYS_ADMIN is missing: the container must be privileged";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    for capability in CapabilitySet::all().difference(kept).iter() {
        // One that this kernel does not know is not there.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    sets.effective = kept;
    sets.permitted = kept;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}
