//! `weir mounter`: the one privileged process of a node. It mounts, binds and unmounts below the
//! folders it was given, registers backing files, and keeps every FUSE connection in custody, so
//! that none ends with the process that serves it. No network, no S3, no async runtime.

pub mod client;
mod custody;
mod privilege;
mod process;
pub mod protocol;
mod roots;
mod serve;
pub mod wire;

use std::time::Duration;

use crate::cli::MounterArgs;
use crate::exit::{Failure, Kind};
use crate::logging;

/// Runs the command; returns only when it cannot go on.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &MounterArgs) -> Result<(), Failure> {
    logging::start_plain(args.log_level, args.log_format);
    let failed =
        |what: &str, error: std::io::Error| Failure::new(Kind::Other, format!("{what}: {error}"));
    let roots = roots::Roots::open(&args.sessions_dir, &args.target_root)
        .map_err(|e| failed("folders of the mounter", e))?;
    // Before any thread is started: each has its own.
    privilege::keep_only_sys_admin().map_err(|e| failed("dropping capabilities", e))?;
    let listener = wire::listen(&args.socket)
        .map_err(|e| failed(&format!("socket {}", args.socket.display()), e))?;
    let custody = custody::Custody::new(Duration::from_secs(args.orphan_timeout));
    tracing::info!(socket = %args.socket.display(), "mounter ready");
    serve::run(&listener, roots, custody).map_err(|e| failed("serving", e))
}
