//! The run directory, where sockets and logs of running mounts are. It is its owner's alone: who
//! could put a socket or a link there would be asked, or written to, in the place of ours.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::exit::{Failure, Kind};

/// Mode bits that let others than the owner change what is in a folder.
const OTHERS_WRITE: u32 = 0o022;

/// Why there is no run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Nobody says where it is.
    #[error(
        "there is no place for sockets and logs of mounts: XDG_RUNTIME_DIR is not set; set \
         WEIR_RUN_DIR to a folder that is yours alone"
    )]
    Nowhere,
    /// It cannot be made or opened.
    #[error("run directory {dir}: {error}; set WEIR_RUN_DIR to a folder that is yours alone")]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Others could have put there what is taken for ours.
    #[error(
        "run directory {dir} belongs to user {owner} and has mode {mode:o}: others than user {us} \
         could change what is in it; set WEIR_RUN_DIR to a folder that is yours alone"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// User id of this process.
        us: u32,
    },
}

impl From<RunDirError> for Failure {
    fn from(error: RunDirError) -> Self {
        Self::new(Kind::Other, error.to_string())
    }
}

/// Where it is, whether it is there or not: `$WEIR_RUN_DIR`, or `/run/weir` for root, or
/// `$XDG_RUNTIME_DIR/weir`.
fn place(
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> Result<PathBuf, RunDirError> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match (set("WEIR_RUN_DIR"), set("XDG_RUNTIME_DIR")) {
        // Without a slash at its end, after which the kernel would follow a symlink.
        (Some(dir), _) => Ok(dir.components().collect()),
        (None, _) if is_root => Ok("/run/weir".into()),
        (None, Some(base)) => Ok(base.join("weir")),
        (None, None) => Err(RunDirError::Nowhere),
    }
}

fn of_process() -> Result<PathBuf, RunDirError> {
    place(|name| std::env::var_os(name), rustix::process::geteuid().is_root())
}

/// The run directory, made where needed.
///
/// # Errors
/// [`RunDirError`].
pub fn make() -> Result<PathBuf, RunDirError> {
    let dir = of_process()?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|error| RunDirError::Unusable { dir: dir.clone(), error })?;
    check(&dir)?;
    Ok(dir)
}

/// The run directory, if it is there.
///
/// # Errors
/// [`RunDirError`].
pub fn existing() -> Result<Option<PathBuf>, RunDirError> {
    let dir = of_process()?;
    match check(&dir) {
        Ok(()) => Ok(Some(dir)),
        Err(RunDirError::Unusable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Refuses a symlink and a folder that others may write to, and closes one that others may look into.
fn check(dir: &Path) -> Result<(), RunDirError> {
    let unusable = |error| RunDirError::Unusable { dir: dir.to_owned(), error };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    // The flags are bits of a C int.
    let folder = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(dir);
    let folder: File = folder.map_err(unusable)?;
    let metadata = folder.metadata().map_err(unusable)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let us = rustix::process::geteuid().as_raw();
    if (owner != us && owner != 0) || mode & OTHERS_WRITE != 0 {
        return Err(RunDirError::Foreign { dir: dir.to_owned(), owner, mode, us });
    }
    if owner == us && mode != 0o700 {
        folder.set_permissions(Permissions::from_mode(0o700)).map_err(unusable)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn it_is_where_nobody_else_makes_folders() {
        let of = |set: &[(&str, &str)], is_root| {
            let value =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into());
            place(value, is_root).map_err(|error| error.to_string())
        };
        let both = [("WEIR_RUN_DIR", "/a/b/"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(of(&both, false).unwrap().as_os_str(), "/a/b");
        assert_eq!(of(&both[1..], false).unwrap(), Path::new("/run/user/7/weir"));
        assert_eq!(of(&both[1..], true).unwrap(), Path::new("/run/weir"));
        let none = of(&[("XDG_RUNTIME_DIR", "")], false).unwrap_err();
        assert!(none.contains("set WEIR_RUN_DIR to a folder"), "{none}");
    }

    #[test]
    fn a_folder_that_others_could_have_filled_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("run");
        fs::create_dir(&dir).unwrap();
        let mode = |mode| fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        mode(0o755);
        check(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        for open in [0o770, 0o702, 0o1777] {
            mode(open);
            assert!(matches!(check(&dir), Err(RunDirError::Foreign { .. })), "{open:o}");
        }
        mode(0o700);
        let link = temp.path().join("link");
        symlink(&dir, &link).unwrap();
        assert!(matches!(check(&link), Err(RunDirError::Unusable { .. })));
        let slash = place(|_| Some(link.join("").into()), true).unwrap();
        assert!(check(&slash).is_err(), "{slash:?}");
        if rustix::process::geteuid().is_root() {
            chown(&dir, Some(1), None).unwrap();
            assert!(matches!(check(&dir), Err(RunDirError::Foreign { owner: 1, .. })));
        }
    }
}
