//! Memory and files of a process that holds keys.

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Nobody else reads them: no core dump is written, no process without CAP_SYS_PTRACE reads memory
/// or environment through `/proc`, whatever its user, and what is made is its user's alone.
pub(crate) fn keep() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = rustix::process::setrlimit(Resource::Core, none) {
        tracing::debug!(%error, "limit of core dumps not set");
    }
    // Fails for no value that is one.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_keys_cannot_be_dumped() {
        // Of this process, all of whose tests can do with it.
        keep();
        assert_eq!(rustix::process::getrlimit(Resource::Core).maximum, Some(0));
        let behavior = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(behavior, DumpableBehavior::NotDumpable);
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
        assert_eq!(before, Mode::RWXG | Mode::RWXO);
    }
}
