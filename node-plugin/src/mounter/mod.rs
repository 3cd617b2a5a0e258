//! `weir mounter`: the one privileged process of a node. It mounts, shows and unmounts volumes where
//! kubelet has made a place for them, registers files of the cache for passthrough, and keeps every
//! FUSE connection in custody, so that none ends with the process that serves it. No network, no S3,
//! no async runtime.

mod backing;
pub mod client;
mod custody;
mod filter;
mod ids;
mod locks;
mod mounts;
mod notices;
mod peers;
mod privilege;
mod process;
pub mod protocol;
mod roots;
pub mod sealed;
mod serve;
mod slots;
pub mod wire;

#[cfg(test)]
mod fuzz;

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Resource;

use crate::cli::node::MounterArgs;
use crate::exit::{Failure, Kind};
use crate::{assembly, logging};

/// Runs the command; returns only when it cannot start.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &MounterArgs) -> Result<(), Failure> {
    logging::start_plain(args.log_level, args.log_format);
    assembly::raise_file_limit();
    let failed =
        |what: &str, error: std::io::Error| Failure::new(Kind::Other, format!("{what}: {error}"));
    let roots = roots::Roots::open(&args.sessions_dir, &args.target_root)
        .map_err(|e| failed("folders of the mounter", e))?;
    let backing = backing::Backing::new(&args.cache_dir);
    for folder in backing.missing() {
        tracing::warn!(folder = %folder.display(), "no such cache folder: no passthrough from there");
    }
    let listen = |socket: &std::path::Path, group| {
        wire::listen(socket, group).map_err(|e| failed(&format!("socket {}", socket.display()), e))
    };
    let engines = listen(&args.socket, None)?;
    let visitors = listen(&args.visitor_socket, args.visitor_group)?;
    // Before any thread is started: each has its own.
    privilege::keep_only_sys_admin().map_err(|e| failed("dropping capabilities", e))?;
    let descriptors = rustix::process::getrlimit(Resource::Nofile).current;
    // No limit is more than anybody has.
    let sessions_max = custody::sessions_max(descriptors.unwrap_or(u64::MAX));
    let custody = custody::Custody::new(Duration::from_secs(args.orphan_timeout), sessions_max);
    let peers =
        peers::Peers { engine: args.engine_volume.clone(), visitor: args.visitor_volume.clone() };
    let mounts = mounts::Mounts { roots, custody, backing, locks: Default::default(), peers };
    filter::install().map_err(|e| failed("giving up calls of the kernel", e))?;
    tracing::info!(socket = %args.socket.display(), sessions_max, "mounter ready");
    serve::run(engines, visitors, Arc::new(mounts)).map_err(|e| failed("serving", e))
}
