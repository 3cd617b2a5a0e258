//! `weir umount`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weir_fuse::adapter::mount::{self, FS_TYPE};

use crate::admin::NodeStatus;
use crate::cli::UmountArgs;
use crate::exit::{Failure, Kind};
use crate::status;

/// How long the serving process may take to store what is left and end.
const PATIENCE: Duration = Duration::from_secs(120);
/// Symlinks followed one after the other: as many as Linux follows.
const LINKS_MAX: usize = 40;

/// Runs the command: unmounts, then waits until the process that served the mount has ended.
///
/// # Errors
/// When nothing of ours is mounted there, or it is in use.
pub fn run(args: &UmountArgs) -> Result<(), Failure> {
    let path = absolute(&args.mountpoint);
    let table =
        mount::mount_table().map_err(|e| Failure::new(Kind::Other, format!("mount table: {e}")))?;
    if !table.iter().any(|entry| entry.mountpoint == path && entry.fs_type == FS_TYPE) {
        let text = format!("{}: no mount of Weir is there", path.display());
        return Err(Failure::new(Kind::Mountpoint, text));
    }
    let serves = |(_, node): &(PathBuf, NodeStatus)| {
        node.mounts.iter().any(|mount| mount.mountpoint == path)
    };
    let server = status::all().map(|all| all.into_iter().find(serves));
    mount::unmount(&path, args.lazy).map_err(|error| {
        let text = match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => format!(
                "{}: in use; close what is open there (fuser -vm {0} shows it), or use --lazy",
                path.display()
            ),
            _ => format!("{}: {error}", path.display()),
        };
        Failure::new(Kind::Mountpoint, text)
    })?;
    match server {
        Ok(Some((socket, _))) if !args.lazy => wait_for_end(&socket),
        Err(error) if !args.lazy => {
            let text = format!(
                "unmounted; whether all that was written is stored is not known: {}",
                error.text
            );
            Err(Failure::new(Kind::Other, text))
        }
        _ => Ok(()),
    }
}

/// A path as the mount table has it, without asking the mount itself, which may be dead: of what is
/// no symlink, readlink(2) asks no file system.
fn absolute(path: &Path) -> PathBuf {
    let mut path = below_its_parent(path);
    for _ in 0..LINKS_MAX {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = below_its_parent(&path.parent().unwrap_or(Path::new("/")).join(target));
    }
    path
}

fn below_its_parent(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn wait_for_end(socket: &Path) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while socket.exists() && status::all()?.iter().any(|(path, _)| path == socket) {
        if Instant::now() > until {
            let text = "unmounted, but the process that served it still stores what was written; \
                        see its log";
            return Err(Failure::new(Kind::Other, text));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_mountpoint_is_found_behind_symlinks() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink(root.join("link"), root.join("other")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for form in ["real", "real/", "link", "link/", "other"] {
            assert_eq!(absolute(&root.join(form)), root.join("real"), "{form}");
        }
        assert_eq!(absolute(&root.join("loop")), root.join("loop"));
        assert_eq!(absolute(Path::new("/")), Path::new("/"));
    }
}
