//! stub
/// Runs.
pub fn run(_: &crate::cli::DemoArgs) -> Result<(), crate::exit::Failure> { Ok(()) }
