//! What the demo is doing: bars on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows one step.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins a step of `total` bytes.
    pub(super) fn bytes(what: &str, total: u64) -> Self {
        Self::begin(what, total, "{msg:34} {bar:30} {binary_bytes}/{binary_total_bytes}")
    }

    /// Begins a step of `total` files.
    pub(super) fn files(what: &str, total: u64) -> Self {
        Self::begin(what, total, "{msg:34} {bar:30} {pos}/{len} files")
    }

    /// Begins a step whose length is not known.
    pub(super) fn wait(what: &str) -> Self {
        let progress = Self::begin(what, 0, "{msg:34} {spinner}");
        if let Some(bar) = &progress.bar {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        progress
    }

    fn begin(what: &str, total: u64, template: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what} ...");
            return Self { bar: None };
        }
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Self { bar: Some(bar) }
    }

    /// Notes progress.
    pub(super) fn add(&self, amount: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(amount);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
