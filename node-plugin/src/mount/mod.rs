//! `weir mount`.

pub mod background;
pub mod preflight;
pub mod serve;

use std::ffi::OsString;

use crate::cli::MountArgs;
use crate::config::mount::{Environment, MountConfig};
use crate::exit::Failure;
use crate::{logging, run_dir};

/// Runs the command; `args` is the whole command line, for the copy in the background.
///
/// # Errors
/// Why nothing is mounted.
pub fn run(mount: MountArgs, args: &[OsString]) -> Result<(), Failure> {
    let config = MountConfig::new(&mount, &Environment::of_process())?;
    let ready = background::Ready::of_process();
    if !mount.foreground && ready.is_none() {
        return background::start(args);
    }
    let log_file = match (&ready, &mount.log.log_file) {
        (None, file) => file.clone(),
        (Some(_), Some(file)) => Some(file.clone()),
        (Some(_), None) => {
            let dir = run_dir::make()?;
            Some(dir.join(format!("weir-{}.log", std::process::id())))
        }
    };
    logging::start(&mount.log, log_file.as_deref())?;
    serve::run(&config, &mount.log, ready)
}
