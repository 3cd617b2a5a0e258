//! What only Weir is asked.

use crate::report::Report;
use crate::stage::Stage;

/// Runs all of it.
pub(crate) fn run(_stage: &Stage, _rounds: usize, _only: Option<&str>) -> Report {
    Report::new("Weir alone".into())
}
