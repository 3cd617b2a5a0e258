//! Shell commands, as a person types them.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a script in a directory; it must succeed. Returns what it printed.
#[track_caller]
pub fn sh(dir: &Path, script: &str) -> String {
    let output = try_sh(dir, script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script:?} failed: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script in a directory.
pub fn try_sh(dir: &Path, script: &str) -> Output {
    Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap()
}

/// Closes with the answer of close(2): there a writer learns whether the file is stored.
///
/// # Errors
/// What close(2) reports.
#[allow(unsafe_code, reason = "close(2) with its result, which std does not give")]
pub fn close(file: std::fs::File) -> std::io::Result<()> {
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    // SAFETY: the descriptor was owned here and is not used again.
    match unsafe { libc::close(fd) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
