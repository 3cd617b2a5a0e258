//! Whose connection it is, as far as kernel and kubelet say so: the kernel which process has
//! connected and in which cgroup that is, kubelet which pod it has made that cgroup for, and that this
//! pod declares a volume which only ours declare. Nothing of it is said by the peer.
//!
//! Facts: unix(7), SO_PEERCRED (the process that called connect(2)); cgroups(7), `/proc/pid/cgroup`;
//! kubelet names a pod's cgroup `pod<uid>`, or `...-pod<uid with _ for ->.slice` with systemd
//! (pkg/kubelet/cm), and the folder of a pod's emptyDir before it starts any container
//! (pkg/volume/emptydir).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use super::roots::Roots;
use super::serve::Peer;

/// Most bytes of `/proc/pid/cgroup` that are read: a line for each of some dozen hierarchies.
const CGROUPS_MAX: u64 = 64 << 10;

/// Volumes that pods must declare whose processes connect; without one anybody may who can.
#[derive(Clone, Default)]
pub(super) struct Peers {
    pub(super) engine: Option<String>,
    pub(super) visitor: Option<String>,
}

impl Peers {
    /// Whether this process may say anything at this socket.
    ///
    /// # Errors
    /// `PermissionDenied` that says who it is, and what its pod lacks.
    pub(super) fn check(&self, roots: &Roots, from: &OwnedFd, peer: Peer) -> io::Result<()> {
        let volume = match peer {
            Peer::Engine => &self.engine,
            Peer::Visitor => &self.visitor,
        };
        let Some(volume) = volume else { return Ok(()) };
        let process = rustix::net::sockopt::socket_peercred(from)?;
        let (pid, uid) = (process.pid.as_raw_pid(), process.uid.as_raw());
        let refuse = |why: String| {
            let text = format!("process {pid} (user {uid}) {why}");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        };
        let cgroups = match cgroups_of(pid) {
            // No lack of ours: who connects and ends at once keeps nobody waiting.
            Err(error) if is_gone(&error) => return refuse("is gone".into()),
            read => read?,
        };
        match pod_of(&dashed(&cgroups), |pod| roots.has_pod(pod)) {
            None => refuse("is in no pod of this node".into()),
            Some(pod) if roots.has_empty_dir(pod, volume) => Ok(()),
            Some(pod) => {
                refuse(format!("is in the pod {pod}, which declares no emptyDir {volume:?}"))
            }
        }
    }
}

fn cgroups_of(pid: i32) -> io::Result<String> {
    let file = File::open(format!("/proc/{pid}/cgroup"))?;
    let mut bytes = Vec::new();
    file.take(CGROUPS_MAX).read_to_end(&mut bytes)?;
    // Whoever may make cgroups below his own names them as he likes.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// With uids as the API has them: systemd takes a dash for a level.
fn dashed(cgroups: &str) -> String {
    cgroups.replace('_', "-")
}

fn is_gone(error: &io::Error) -> bool {
    let gone = rustix::io::Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(gone)
}

/// The pod in whose cgroup a process is, of those that kubelet has: in every hierarchy that knows of
/// one the same, and the outermost, since what lies below it the pod may have made.
fn pod_of<'a>(cgroups: &'a str, has_pod: impl Fn(&str) -> bool) -> Option<&'a str> {
    let of_line = |line: &'a str| {
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').filter_map(uid_in).find(|uid| has_pod(uid))
    };
    let mut pods = cgroups.lines().filter_map(of_line);
    let first = pods.next()?;
    pods.all(|pod| pod == first).then_some(first)
}

/// The uid of a pod that the name of a cgroup holds, with dashes.
fn uid_in(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.split_once("-pod")?.1,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!uid.is_empty() && uid.chars().all(is_plain)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-0000-4444-8888-123456789abc";
    const SLICE: &str = "pod0a1b2c3d_0000_4444_8888_123456789abc.slice";

    fn pod(cgroups: &str) -> Option<String> {
        pod_of(&dashed(cgroups), |uid| uid == UID || uid == "f00d").map(str::to_owned)
    }

    #[test]
    fn a_pod_is_found_as_kubelet_names_its_cgroup() {
        for cgroups in [
            format!("0::/kubepods/burstable/pod{UID}/3f2a"),
            format!("0::/kubepods/pod{UID}/3f2a"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{SLICE}/cri-3.scope"
            ),
            format!("0::/kubepods.slice/kubepods-{SLICE}/crio-3f2a.scope/container"),
            // Seen from a cgroup namespace of the mounter's own.
            format!("0::/../../kubepods-besteffort-{SLICE}/cri-containerd-3f2a.scope"),
            // A node that is a pod itself, of which its own kubelet knows nothing.
            format!("0::/kubepods/podb0b/3f2a/kubelet/kubepods/burstable/pod{UID}/1"),
            // Version 1, with hierarchies that kubelet leaves alone.
            format!("9:name=systemd:/kubepods/pod{UID}/3f\n8:pids:/kubepods/pod{UID}/3f\n0::/"),
        ] {
            assert_eq!(pod(&cgroups).as_deref(), Some(UID), "{cgroups}");
        }
    }

    #[test]
    fn no_process_chooses_its_pod() {
        for cgroups in [
            "",
            "0::/",
            "0::/system.slice/containerd.service",
            "0::/user.slice/user-0.slice/session-1.scope",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/kubepods/pod/3f",
            "0::/kubepods/pod../3f",
            "0::/kubepods/burstable/podb0b/3f",
            "nothing",
        ] {
            assert_eq!(pod(cgroups), None, "{cgroups}");
        }
        // It has made one below its own, or is in two.
        let below = format!("0::/kubepods/podf00d/3f/pod{UID}/x");
        assert_eq!(pod(&below).as_deref(), Some("f00d"));
        let two = format!("2:pids:/kubepods/podf00d/3f\n1:cpu:/kubepods/pod{UID}/x");
        assert_eq!(pod(&two), None);
    }

    #[test]
    fn this_process_is_in_no_pod() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::open(&dir.path().join("sessions"), &[dir.path().join("pods")]).unwrap();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let one = one.into();
        let peers = Peers { engine: Some("weir-engine".into()), visitor: None };
        let refused = peers.check(&roots, &one, Peer::Engine).unwrap_err();
        assert!(refused.to_string().contains("is in no pod"), "{refused}");
        peers.check(&roots, &one, Peer::Visitor).unwrap();
    }
}
