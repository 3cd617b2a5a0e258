//! Sockets in folders in which others may write, too: nothing that they have put there keeps a process
//! from listening.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};

/// Folders that are moved out of the way of one socket, at most: somebody may make another one each
/// time.
const FOLDERS_MAX: usize = 16;

/// Whether somebody listens at `path`.
pub async fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).await.is_ok()
}

/// Makes a listening socket at `path`, for this user alone (mode 0600), or for a group, too (0660), in place
/// of what is there.
///
/// # Errors
/// What the system reports.
pub fn listen(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    make(path, |unnamed| {
        let listener = UnixListener::bind(unnamed)?;
        restrict(unnamed, group)?;
        Ok(listener)
    })
}

/// Has a socket made and gives it its name, in place of whatever has that. `bind` makes it, listening and
/// for whom it is to be, at a path that nobody could foresee.
///
/// # Errors
/// What `bind` and the system report.
pub fn make<T>(path: &Path, bind: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let unnamed = beside(path);
    let made = bind(&unnamed).and_then(|socket| take_name(&unnamed, path).map(|()| socket));
    if made.is_err() {
        let _ = fs::remove_file(&unnamed);
    }
    made
}

/// A path in the same folder, as short as that of a socket must be (unix(7): 107 bytes).
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{:08x}", rand::random::<u32>()))
}

fn take_name(unnamed: &Path, path: &Path) -> io::Result<()> {
    for _ in 0..FOLDERS_MAX {
        match fs::rename(unnamed, path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => move_away(path)?,
            done => return done,
        }
    }
    let text = format!("{}: somebody makes folders there again and again", path.display());
    Err(io::Error::new(io::ErrorKind::IsADirectory, text))
}

/// Moves a folder out of the way, and removes it where nothing is in it.
fn move_away(folder: &Path) -> io::Result<()> {
    let away = beside(folder);
    match fs::rename(folder, &away) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let (folder, to) = (folder.display(), away.display());
    tracing::warn!(%folder, %to, "a folder was where a socket is to be; it is moved away");
    let _ = fs::remove_dir(&away);
    Ok(())
}

/// Gives a socket that was made just now its mode. Who else may write in its folder cannot have
/// something else changed by putting it there.
fn restrict(path: &Path, group: Option<u32>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&socket)?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    if !is_socket || stat.st_uid != rustix::process::geteuid().as_raw() {
        let text = format!("{}: somebody else makes files there", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    if let Some(group) = group {
        let group = Some(Gid::from_raw(group));
        rustix::fs::chownat(&socket, "", None, group, AtFlags::EMPTY_PATH)?;
    }
    let mode = Mode::from_raw_mode(if group.is_some() { 0o660 } else { 0o600 });
    let opened = format!("/proc/self/fd/{}", socket.as_raw_fd());
    Ok(rustix::fs::chmodat(CWD, opened, mode, AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_socket_is_for_whom_it_says_and_nothing_put_in_its_place_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file, link) =
            (dir.path().join("socket"), dir.path().join("file"), dir.path().join("link"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let group = rustix::process::getegid().as_raw();
        for (group, mode) in [(None, 0o600), (Some(group), 0o660)] {
            restrict(&socket, group).unwrap();
            assert_eq!(socket.metadata().unwrap().mode() & 0o777, mode);
        }
        std::fs::write(&file, "precious").unwrap();
        let before = file.metadata().unwrap().mode();
        symlink(&socket, &link).unwrap();
        for other in [&file, &link] {
            let refused = restrict(other, None).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{other:?}");
        }
        assert_eq!(file.metadata().unwrap().mode(), before);
        assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o660);
    }

    /// A connection that is taken here, and not elsewhere.
    async fn is_ours(path: &Path, listener: &UnixListener) -> bool {
        let (connected, accepted) = tokio::join!(UnixStream::connect(path), async {
            tokio::time::timeout(std::time::Duration::from_secs(60), listener.accept()).await
        });
        connected.is_ok() && accepted.is_ok_and(|accepted| accepted.is_ok())
    }

    #[tokio::test]
    async fn whatever_has_the_name_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let put: [(&str, &dyn Fn()); 6] = [
            ("nothing", &|| {}),
            ("a listener", &|| {
                let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
                std::mem::forget(listener);
            }),
            ("a file", &|| fs::write(&path, "x").unwrap()),
            ("a link", &|| symlink("/nowhere", &path).unwrap()),
            ("an empty folder", &|| fs::create_dir(&path).unwrap()),
            ("a folder", &|| fs::create_dir_all(path.join("below")).unwrap()),
        ];
        for (what, put) in put {
            put();
            let listener = listen(&path, None).unwrap();
            assert!(is_served(&path).await && is_ours(&path, &listener).await, "{what}");
            drop(listener);
            fs::remove_file(&path).unwrap();
        }
        assert!(!is_served(&path).await);
        // What was in a folder is not ours to remove.
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].path().join("below").is_dir());
        // Nor does anything stay of one that could not be made.
        make(&path, |unnamed| {
            fs::write(unnamed, "x")?;
            Err::<(), _>(io::Error::other("no"))
        })
        .unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
