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
