//! The table at the end.

use std::time::Duration;

/// One line of the table.
pub(super) struct Figure {
    /// What was done.
    pub(super) what: &'static str,
    /// How it is counted.
    pub(super) unit: Unit,
    /// Amount and time through Weir.
    pub(super) weir: (u64, Duration),
    /// The same on the raw files, where that makes sense.
    pub(super) raw: Option<(u64, Duration)>,
}

/// How a figure is counted.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// Mebibytes a second.
    Bytes,
    /// Files a second.
    Files,
    /// Milliseconds.
    Time,
}

impl Unit {
    fn rate(self, (amount, time): (u64, Duration)) -> f64 {
        let seconds = time.as_secs_f64().max(1e-9);
        match self {
            Self::Bytes => amount as f64 / seconds / f64::from(1 << 20),
            Self::Files => amount as f64 / seconds,
            Self::Time => seconds * 1000.0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "MiB/s",
            Self::Files => "files/s",
            Self::Time => "ms",
        }
    }
}

/// The table as text.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut out = format!("\n{:38} {:>12} {:>12} {:>9}\n", "", "Weir", "raw disk", "ratio");
    for figure in figures {
        let weir = figure.unit.rate(figure.weir);
        let (raw, ratio) = match figure.raw {
            None => ("-".to_owned(), "-".to_owned()),
            Some(raw) => {
                let raw = figure.unit.rate(raw);
                (format!("{raw:.0}"), format!("{:.2}", weir / raw.max(1e-9)))
            }
        };
        let name = figure.unit.name();
        out.push_str(&format!("{:38} {weir:>12.0} {raw:>12} {ratio:>9}  {name}\n", figure.what));
    }
    out
}
