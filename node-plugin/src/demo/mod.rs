//! `weir demo`: the main job on real input, with figures beside the raw disk's.

mod figures;
mod input;
mod model;
mod progress;
pub mod server;
mod stage;
mod steps;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::assembly;
use crate::cli::DemoArgs;
use crate::exit::{Failure, Kind};

use stage::Stage;

/// How long the threads of an interrupted step may take to notice.
const PATIENCE: Duration = Duration::from_secs(2);

/// Set when the demo is to end: steps in threads of their own look at it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// An error once the demo is interrupted.
fn check_interrupt() -> std::io::Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(std::io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}

/// Runs the command. Whatever happens, nothing is left behind but with `--keep`, and then only
/// until Ctrl-C.
///
/// # Errors
/// Why a step failed, or which step is not possible here.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    check_possible()?;
    if args.endpoint_url.is_some() != args.bucket.is_some() {
        return Err(Failure::new(Kind::Usage, "--endpoint-url and --bucket go together"));
    }
    let runtime = assembly::runtime(0)?;
    let done = runtime.block_on(async {
        let mut stage = Stage::set(args).await?;
        let interrupted = async {
            let _ = tokio::signal::ctrl_c().await;
            INTERRUPTED.store(true, Ordering::Relaxed);
            Failure::new(Kind::Other, "interrupted; cleaned up")
        };
        let done = tokio::select! {
            done = steps::all(&mut stage, args) => done,
            failure = interrupted => Err(failure),
        };
        stage.strike().await;
        done
    });
    runtime.shutdown_timeout(PATIENCE);
    done
}

/// Says at once what would only fail later.
fn check_possible() -> Result<(), Failure> {
    if !std::path::Path::new("/dev/fuse").exists() {
        let text = "no /dev/fuse here: load the fuse module (modprobe fuse), or start the \
                    container with --device /dev/fuse";
        return Err(Failure::new(Kind::Kernel, text));
    }
    if !rustix::process::geteuid().is_root() {
        let text = "the demo mounts a file system and empties the page cache, which needs root: \
                    run it with sudo";
        return Err(Failure::new(Kind::Kernel, text));
    }
    Ok(())
}
