//! Log lines: to the terminal, or to a file when in the background.

mod budget;

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use rustix::fs::OFlags;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::cli::{LogArgs, LogFormat};
use crate::exit::{Failure, Kind};
use budget::{LineBudget, TOLD_EVERY};

/// Of this process.
static BUDGET: LazyLock<LineBudget> = LazyLock::new(LineBudget::default);

/// Starts logging, to `file` or to standard error.
///
/// # Errors
/// When the file cannot be opened.
pub fn start(args: &LogArgs, file: Option<&Path>) -> Result<(), Failure> {
    let writer = match file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = open(path).map_err(|e| {
                Failure::new(Kind::Other, format!("log file {}: {e}", path.display()))
            })?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    start_with(args.log_level, args.log_format, writer);
    Ok(())
}

/// Opens, or makes, a file to append to that is for its owner alone: through no symlink, and waiting
/// for nobody who reads a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    // The flags are bits of a C int.
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Starts logging to standard error, as of a process that a container runtime watches.
pub fn start_plain(level: tracing::Level, format: LogFormat) {
    start_with(level, format, BoxMakeWriter::new(std::io::stderr));
}

fn start_with(level: tracing::Level, format: LogFormat, writer: BoxMakeWriter) {
    let level = level.as_str().to_ascii_lowercase();
    // Other crates speak up only when something is wrong.
    let ours =
        ["weir_csi", "weir_fuse", "weir_node"].map(|name| format!("{name}={level}")).join(",");
    let filter = EnvFilter::new(format!("warn,{ours}"));
    let lines = fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Json => lines.json().boxed(),
        LogFormat::Text => lines.with_ansi(false).with_target(false).boxed(),
    };
    // Only the first start of a process counts.
    let started = tracing_subscriber::registry().with(lines).with(BUDGET.clone()).with(filter);
    let _ = started.try_init();
}

/// Says once in a while that there were more lines than were logged. For ever.
pub async fn tell_what_is_left_out() {
    loop {
        tokio::time::sleep(TOLD_EVERY).await;
        let lines = BUDGET.left_out();
        if lines > 0 {
            tracing::warn!(lines, "left out of the log: there were too many of their kind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use rustix::fs::{FileType, Mode};

    use super::*;

    #[test]
    fn a_log_is_written_to_no_file_that_somebody_else_chose() {
        let dir = tempfile::tempdir().unwrap();
        let (log, precious) = (dir.path().join("log"), dir.path().join("precious"));
        fs::write(&precious, "bytes").unwrap();
        std::os::unix::fs::symlink(&precious, &log).unwrap();
        assert!(open(&log).is_err());
        fs::remove_file(&log).unwrap();
        let (fifo, mode) = (FileType::Fifo, Mode::from_raw_mode(0o666));
        rustix::fs::mknodat(rustix::fs::CWD, &log, fifo, mode, 0).unwrap();
        assert!(open(&log).is_err());
        let _reader = OpenOptions::new().read(true).write(true).open(&log).unwrap();
        assert!(open(&log).unwrap_err().to_string().contains("not a regular file"));
        assert_eq!(fs::read(precious).unwrap(), b"bytes");
    }

    #[test]
    fn a_log_is_appended_to_and_read_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "one\n").unwrap();
        fs::set_permissions(&log, Permissions::from_mode(0o644)).unwrap();
        open(&log).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o600);
    }
}
