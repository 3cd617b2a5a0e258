//! Log lines: to the terminal, or to a file when in the background.

mod budget;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex};

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
