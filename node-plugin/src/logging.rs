//! Log lines: to the terminal, or to a file when in the background.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::cli::{LogArgs, LogFormat};
use crate::exit::{Failure, Kind};

/// Starts logging, to `file` or to standard error.
///
/// # Errors
/// When the file cannot be opened.
pub fn start(args: &LogArgs, file: Option<&Path>) -> Result<(), Failure> {
    let writer = match file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let open = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
            let open = open.map_err(|e| {
                Failure::new(Kind::Other, format!("log file {}: {e}", path.display()))
            })?;
            BoxMakeWriter::new(Mutex::new(open))
        }
    };
    start_with(args.log_level, args.log_format, writer);
    Ok(())
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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_ansi(false).with_target(false).try_init(),
    };
    // Only the first start of a process counts.
    let _ = started;
}
