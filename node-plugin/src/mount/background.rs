//! Going into the background: the command starts itself once more and waits for its word.
//!
//! No fork: the copy is a process of its own from the start, so no thread or lock is inherited.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::exit::{Failure, Kind};

/// Tells the copy that somebody waits for its word on standard output.
const VARIABLE: &str = "WEIR_READY_ON_STDOUT";
/// The word.
const READY: &str = "ready\n";

/// The duty to tell the waiting command that the mount answers.
pub struct Ready(());

impl Ready {
    /// Whether somebody waits for this process.
    pub fn of_process() -> Option<Self> {
        std::env::var_os(VARIABLE).map(|_| {
            // Out of the terminal's session, so that its Ctrl-C and hang-up do not reach us.
            let _ = rustix::process::setsid();
            Self(())
        })
    }

    /// Says that the mount answers, and lets go of standard output and error.
    pub fn tell(self) {
        let mut out = std::io::stdout();
        let told = out.write_all(READY.as_bytes()).and_then(|()| out.flush());
        if let Err(error) = told {
            tracing::warn!(%error, "nobody waits for the mount any more");
        }
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }
}

/// Starts the copy and waits until it is ready or has failed.
///
/// # Errors
/// What the copy says.
pub fn start(args: &[OsString]) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(Kind::Other, format!("background start: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(args.iter().skip(1))
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take() {
        let mut buffer = [0; 64];
        while !said.ends_with('\n') {
            match out.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => said.push_str(&String::from_utf8_lossy(&buffer[..read])),
            }
        }
    }
    if said == READY {
        return Ok(());
    }
    // It has printed its reason to our standard error; its code is ours.
    let status = child.wait().map_err(failed)?;
    std::process::exit(status.code().unwrap_or(Kind::Other as i32));
}
