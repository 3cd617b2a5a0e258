//! What each command gives up before it does anything.

use super::Command;

impl Command {
    /// Whether it runs for long, and may hold keys or tokens meanwhile.
    pub(crate) fn holds_keys(&self) -> bool {
        match self {
            Self::Mount(_) | Self::Lost(_) | Self::Node(_) | Self::Mounter(_) => true,
            Self::Controller(_) | Self::Reconciler(_) | Self::Standby(_) => true,
            Self::Umount(_) | Self::Status(_) | Self::Topology(_) => false,
            Self::Demo(_) | Self::UninstallCheck => false,
        }
    }

    /// Whether it runs on Kubernetes, where no program is to be started. A person who mounts may have a
    /// profile with a program that gives keys; the mounter gives up more, and later.
    pub(crate) fn starts_no_program(&self) -> bool {
        match self {
            Self::Node(_) | Self::Standby(_) | Self::Controller(_) => true,
            Self::Reconciler(_) | Self::UninstallCheck => true,
            Self::Mount(_) | Self::Umount(_) | Self::Status(_) | Self::Lost(_) => false,
            Self::Topology(_) | Self::Demo(_) | Self::Mounter(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    fn starts_no_program(line: &str) -> bool {
        let parsed = Cli::try_parse_from(line.split(' '));
        parsed.unwrap_or_else(|error| panic!("{line}: {error}")).command.starts_no_program()
    }

    #[test]
    fn every_role_of_a_cluster_gives_up_programs() {
        for line in [
            "weir node --node-id n --csi-socket s --mounter-socket m",
            "weir standby --csi-socket s --mounter-socket m",
            "weir controller --csi-socket s",
            "weir reconciler",
            "weir uninstall-check",
        ] {
            assert!(starts_no_program(line), "{line}");
        }
        for line in ["weir mount s3://bucket /mnt", "weir lost list", "weir demo"] {
            assert!(!starts_no_program(line), "{line}");
        }
    }
}
