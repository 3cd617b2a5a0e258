//! Being called by mount(8): `mount.weir SOURCE DIRECTORY -o OPTIONS`, as from /etc/fstab.

use std::ffi::OsString;
use std::path::Path;

use crate::exit::{Failure, Kind};

/// Options that speak to mount(8) or to the service manager, not to us.
const FOREIGN: [&str; 16] = [
    "rw", "auto", "noauto", "defaults", "nofail", "_netdev", "user", "nouser", "users", "suid",
    "nosuid", "dev", "nodev", "exec", "noatime", "relatime",
];

/// Turns a call by mount(8) into a command line of ours; others are left as they are.
///
/// # Errors
/// A usage failure when source or directory are missing.
pub fn as_command(args: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    let program = args.first().map(Path::new).and_then(Path::file_name);
    let called_by_mount =
        program.is_some_and(|name| name == "mount.weir" || name == "mount.fuse.weir");
    if !called_by_mount {
        return Ok(args);
    }
    let mut positional = Vec::new();
    let mut flags = Vec::new();
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.to_str() {
            Some("-o") => {
                let options = rest.next().unwrap_or_default();
                flags.extend(to_flags(&options.to_string_lossy()));
            }
            // Sloppy, no mtab, verbose, fake: nothing that we would do differently.
            Some("-s" | "-n" | "-v" | "-f") => {}
            _ => positional.push(arg),
        }
    }
    if positional.len() != 2 {
        let text = "mount.weir takes a source (s3://BUCKET) and a directory";
        return Err(Failure::new(Kind::Usage, text));
    }
    let mut command: Vec<OsString> = vec!["weir".into(), "mount".into()];
    command.extend(positional);
    command.extend(flags);
    Ok(command)
}

/// Mount options to flags: `key=value`, `key value` or `key`, without leading dashes.
pub fn to_flags(options: &str) -> Vec<OsString> {
    let mut flags = Vec::new();
    for option in options.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        let (key, value) = match option.split_once(['=', ' ']) {
            Some((key, value)) => (key, Some(value.trim())),
            None => (option, None),
        };
        if FOREIGN.contains(&key) || key.starts_with("x-") {
            continue;
        }
        let key = match key {
            "ro" => "read-only".to_owned(),
            other => other.trim_start_matches('-').replace('_', "-"),
        };
        flags.push(format!("--{key}").into());
        flags.extend(value.map(OsString::from));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fstab_becomes_a_command() {
        let args = [
            "/sbin/mount.weir",
            "s3://b/p",
            "/mnt",
            "-o",
            "ro,_netdev,allow_other,region=eu-west-1,x-systemd.automount,metadata-ttl 5",
        ];
        let command = as_command(args.map(OsString::from).to_vec()).unwrap();
        let expected = [
            "weir",
            "mount",
            "s3://b/p",
            "/mnt",
            "--read-only",
            "--allow-other",
            "--region",
            "eu-west-1",
            "--metadata-ttl",
            "5",
        ];
        assert_eq!(command, expected.map(OsString::from));
    }

    #[test]
    fn other_calls_are_left_alone() {
        let args = vec![OsString::from("weir"), "status".into()];
        assert_eq!(as_command(args.clone()).unwrap(), args);
        assert!(as_command(vec!["mount.weir".into(), "s3://b".into()]).is_err());
    }
}
