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

/// A descriptor by its number, so that one thread can close it while a call of another thread has
/// it: what std's types do not allow, and kernels do.
#[derive(Clone, Copy, Debug)]
pub struct Number(std::os::fd::RawFd);

#[allow(unsafe_code, reason = "calls of the kernel by number")]
impl Number {
    /// Takes a descriptor over; it lasts until [`Number::close`].
    pub fn of(file: std::fs::File) -> Self {
        Self(std::os::fd::IntoRawFd::into_raw_fd(file))
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// What pwrite(2) reports, or that it took less.
    pub fn write_at(self, bytes: &[u8], offset: usize) -> std::io::Result<()> {
        // SAFETY: the bytes are there for as long as the call lasts.
        let taken =
            unsafe { libc::pwrite(self.0, bytes.as_ptr().cast(), bytes.len(), offset as i64) };
        match usize::try_from(taken) {
            Ok(taken) if taken == bytes.len() => Ok(()),
            Ok(_) => Err(std::io::ErrorKind::WriteZero.into()),
            Err(_) => Err(std::io::Error::last_os_error()),
        }
    }

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// What ftruncate(2) reports.
    pub fn resize(self, size: usize) -> std::io::Result<()> {
        // SAFETY: it is given numbers alone.
        answer(unsafe { libc::ftruncate(self.0, size as i64) })
    }

    /// Stores the file.
    ///
    /// # Errors
    /// What fsync(2) reports.
    pub fn sync(self) -> std::io::Result<()> {
        // SAFETY: it is given numbers alone.
        answer(unsafe { libc::fsync(self.0) })
    }

    /// Closes it. The number is not to be used again: it may be another file's.
    ///
    /// # Errors
    /// What close(2) reports.
    pub fn close(self) -> std::io::Result<()> {
        // SAFETY: the descriptor is this value's own.
        answer(unsafe { libc::close(self.0) })
    }
}

fn answer(code: libc::c_int) -> std::io::Result<()> {
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
