//! What the binary `weir` does: its commands, their settings, and how they end.

pub mod admin;
pub mod allocator;
mod assembly;
pub mod cli;
pub mod config;
pub mod controller;
pub mod csi;
pub mod demo;
pub mod exit;
mod http;
mod kubernetes;
pub mod logging;
pub mod lost;
pub mod metrics;
pub mod mount;
pub mod mounter;
pub mod node;
mod privacy;
mod probes;
mod readiness;
pub mod run_dir;
mod seccomp;
pub mod standby;
pub mod status;
pub mod topology;
pub mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::Signal;

use cli::{Cli, Command};
use exit::Failure;

/// Set for a process that is to end with the one that started it.
pub const DIE_WITH_PARENT: &str = "WEIR_DIE_WITH_PARENT";

/// Runs a command line; the first argument is the program's name.
pub fn run(args: Vec<OsString>) -> ExitCode {
    allocator::bound();
    let args = match config::fstab::as_command(args) {
        Ok(args) => args,
        Err(failure) => return failure.report(),
    };
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; clap knows where each goes.
            let _ = error.print();
            return if error.use_stderr() { exit::Kind::Usage.code() } else { ExitCode::SUCCESS };
        }
    };
    if std::env::var_os(DIE_WITH_PARENT).is_some() {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    }
    if cli.command.holds_keys() {
        privacy::keep();
    }
    if cli.command.starts_no_program()
        && let Err(error) = seccomp::give_up_programs()
    {
        let text = format!("giving up the right to start programs: {error}");
        return Failure::new(exit::Kind::Kernel, text).report();
    }
    let done: Result<(), Failure> = match cli.command {
        Command::Mount(mount) => mount::run(*mount, &args),
        Command::Umount(umount) => umount::run(&umount),
        Command::Status(status) => status::run(&status),
        Command::Lost(args) => lost::run(&args),
        Command::Topology(args) => topology::command::run(&args),
        Command::Demo(demo) => demo::run(&demo),
        Command::Controller(args) => controller::run(&args),
        Command::Reconciler(args) => controller::run_reconciler(&args),
        Command::Node(args) => node::run(&args),
        Command::Mounter(args) => mounter::run(&args),
        Command::Standby(args) => standby::run(&args),
        Command::UninstallCheck => controller::uninstall::check(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
