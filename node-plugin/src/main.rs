//! `weir`: one binary, several roles.

use std::process::ExitCode;

fn main() -> ExitCode {
    weir_node::run(std::env::args_os().collect())
}
