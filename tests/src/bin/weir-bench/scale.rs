//! How far it goes.

use crate::report::Report;
use crate::stage::Stage;

/// Runs all of it.
pub(crate) fn run(_stage: &Stage, _only: Option<&str>) -> Report {
    Report::new("Limits".into())
}
