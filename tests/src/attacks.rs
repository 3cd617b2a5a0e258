//! What somebody tries who has broken into the node plugin, as far as his container goes: at the
//! mounter's socket, at the kernel, and at the files of the host.

use std::ffi::{CString, c_long};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_fuse::adapter::Witness;
use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::kernel::KernelPort;
use weir_fuse::engine::owner::{FileId, Processes};
use weir_node::mounter::client::{Mounter, NewEntry, SessionPort};
use weir_node::mounter::protocol::{Bind, Mount};

/// One of them, and what came of it: what it got, or why not.
pub struct Attack {
    /// What was tried.
    pub name: String,
    /// What came of it.
    pub outcome: Result<(), String>,
}

impl Attack {
    fn new(name: impl Into<String>, outcome: io::Result<()>) -> Self {
        Self { name: name.into(), outcome: outcome.map_err(|error| error.to_string()) }
    }
}

/// Names that no session may have.
const NO_SESSIONS: [&str; 7] = ["", "..", "../x", "a/b", "AB", "s\0", "fefe fefe"];

/// Every request with what is not the node's, at the mounter's socket for engines. `targets` are
/// paths of the host that are none of its volumes', `files` files that are none of its cache's.
pub fn on_mounter(socket: &Path, targets: &[PathBuf], files: &[PathBuf]) -> Vec<Attack> {
    let may = &MayBlock::own_thread();
    let mounter = Mounter::new(socket, "hostile".to_owned());
    let mut made = Vec::new();
    // One that he may have, and those that are there.
    let own = Mount { session: "ab".into(), source: "s3://x/".into(), selinux_context: None };
    let (device, _) = mounter.mount(may, own).unwrap();
    let sessions = mounter.sessions(may).unwrap();
    for target in targets {
        for session in &sessions {
            for (read_only, replace) in [(false, false), (true, false), (false, true)] {
                let (session, target) = (session.clone(), target.clone());
                let bind = Bind { session, target, read_only, replace };
                let name = format!("show {} at {}", bind.session, bind.target.display());
                made.push(Attack::new(name, mounter.bind(may, bind)));
            }
        }
        // Either it is refused, or there is nothing of Weir's to take away: whoever looks at the
        // host afterwards sees which.
        let _ = mounter.unbind(may, target);
    }
    let long = "f".repeat(5000);
    for session in NO_SESSIONS.into_iter().chain([long.as_str()]) {
        let mount = Mount {
            session: session.to_owned(),
            source: "s3://x/".to_owned(),
            selinux_context: None,
        };
        let about = |what: &str| format!("{what} the session {session:.20?}");
        made.push(Attack::new(about("mount"), mounter.mount(may, mount).map(|_| ())));
        made.push(Attack::new(about("take"), mounter.take(may, session).map(|_| ())));
        let entry = NewEntry { session, generation: 1, record: b"{}", keys: None, device: &device };
        made.push(Attack::new(about("keep"), mounter.deposit(may, &entry)));
        for target in targets.iter().take(1) {
            let (session, target) = (session.to_owned(), target.clone());
            let bind = Bind { session, target, read_only: false, replace: false };
            made.push(Attack::new(about("show"), mounter.bind(may, bind)));
        }
        // Success where there is none.
        let _ = (mounter.targets(may, session), mounter.unmount(may, session));
        let _ = (mounter.end(may, session), mounter.acquit(may, session));
    }
    made.extend(with_options(may, &mounter));
    made.extend(with_descriptors(may, &mounter, files));
    made.extend(about_processes(may, &mounter));
    mounter.end(may, "ab").unwrap();
    made
}

/// Options of a mount beside those that the mounter gives.
fn with_options(may: &MayBlock, mounter: &Mounter) -> Vec<Attack> {
    let contexts = ["s0\",max_read=1,x=\"", "s0,allow_other", "s0\"", "s0\n", "s0\\", "s 0"];
    let mount = |context: &&str| {
        let mount = Mount {
            session: "cd".to_owned(),
            source: "s3://x/".to_owned(),
            selinux_context: Some((*context).to_owned()),
        };
        Attack::new(format!("mount as {context:?}"), mounter.mount(may, mount).map(|_| ()))
    };
    contexts.iter().map(mount).collect()
}

/// Descriptors that are none of FUSE's, and files that are none of the cache's.
fn with_descriptors(may: &MayBlock, mounter: &Arc<Mounter>, files: &[PathBuf]) -> Vec<Attack> {
    let mut made = Vec::new();
    let (socket, _other) = UnixStream::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    for (what, device) in [("a socket", socket.into()), ("/dev/null", OwnedFd::from(null))] {
        for session in ["ab", "ef"] {
            let entry =
                NewEntry { session, generation: 1, record: b"{}", keys: None, device: &device };
            let name = format!("keep {what} as the device of {session}");
            made.push(Attack::new(name, mounter.deposit(may, &entry)));
        }
    }
    let port = SessionPort { mounter: mounter.clone(), session: "ab".to_owned() };
    for path in files {
        let Ok(file) = File::open(path) else { continue };
        let name = format!("have the kernel read {}", path.display());
        made.push(Attack::new(name, port.open_backing(may, &file).map(|_| ())));
    }
    made
}

/// What processes have open that is of no session, and trials of sessions that are not there.
fn about_processes(may: &MayBlock, mounter: &Arc<Mounter>) -> Vec<Attack> {
    let told = |name: String, told: bool| {
        Attack::new(name, told.then_some(()).ok_or(io::Error::other("it is not told")))
    };
    let mut made = Vec::new();
    let (own, long) = (std::process::id(), "f".repeat(50_000));
    let open = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let meta = open.metadata().unwrap();
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let device = format!("{major}:{minor}");
    let device = device.as_str();
    for (device, name) in [(device, "null"), (device, "../null"), ("", ""), (&*long, "null")] {
        let file = FileId { device, ino: meta.ino(), name };
        let asked = format!("ask for {name:?} of the host's, on {device:.20}");
        made.push(told(asked, mounter.holds(may, own, &file)));
    }
    for nobody in [0, u32::MAX, 1 << 31] {
        made.push(told(format!("whose thread {nobody} is"), mounter.process_of(may, nobody) != 0));
        made.push(told(format!("whether {nobody} is there"), mounter.is_alive(may, nobody)));
    }
    for session in NO_SESSIONS {
        let port = SessionPort { mounter: mounter.clone(), session: session.to_owned() };
        // Nothing is told: whoever looks at what is in custody afterwards sees that nothing is new.
        port.trial_begins(may, u64::MAX);
        let _ = mounter.acquit(may, session);
    }
    made
}

/// What the kernel lets nobody do who has no capability. `folder` may be written to.
#[allow(unsafe_code, reason = "system calls that no library makes")]
pub fn on_kernel(folder: &Path) -> Vec<Attack> {
    let text = |text: &Path| CString::new(text.as_os_str().as_encoded_bytes()).unwrap();
    let (at, none) = (text(folder), CString::new("tmpfs").unwrap());
    let [disk, memory, theirs] = ["disk", "memory", "theirs"].map(|name| text(&folder.join(name)));
    fs::write(folder.join("theirs"), "bytes").unwrap();
    let namespace = File::open("/proc/1/ns/mnt").ok();
    let namespace = namespace.as_ref().map_or(-1, std::os::fd::AsRawFd::as_raw_fd);
    let zero = std::ptr::null::<u8>();
    // SAFETY: every pointer is to a string that lives until the end of this function, or null where
    // the kernel looks at rights first.
    let asked: [(&str, c_long); 17] = unsafe {
        use libc::*;
        [
            ("mount", syscall(SYS_mount, none.as_ptr(), at.as_ptr(), none.as_ptr(), 0, zero)),
            ("umount", syscall(SYS_umount2, at.as_ptr(), MNT_DETACH)),
            ("unshare", syscall(SYS_unshare, CLONE_NEWNS)),
            ("setns", syscall(SYS_setns, namespace, CLONE_NEWNS)),
            ("mknod of a disk", syscall(SYS_mknod, disk.as_ptr(), S_IFBLK | 0o600, 0x800)),
            ("mknod of memory", syscall(SYS_mknod, memory.as_ptr(), S_IFCHR | 0o600, 0x101)),
            ("chroot", syscall(SYS_chroot, at.as_ptr())),
            ("chown", syscall(SYS_chown, theirs.as_ptr(), 1000, 1000)),
            ("init_module", syscall(SYS_init_module, zero, 0, zero)),
            ("kexec_load", syscall(SYS_kexec_load, 0, 0, zero, 0)),
            ("reboot", syscall(SYS_reboot, 0xfee1_dead_u32, 0x2812_1969, 0, zero)),
            ("sethostname", syscall(SYS_sethostname, none.as_ptr(), 5)),
            ("swapon", syscall(SYS_swapon, theirs.as_ptr(), 0)),
            ("setgroups", syscall(SYS_setgroups, 0, zero)),
            ("fanotify_init", syscall(SYS_fanotify_init, FAN_CLASS_CONTENT, 0)),
            ("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, zero, 0)),
            ("a packet socket", syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0)),
        ]
    };
    // All were refused before the first is looked at: the last errno is not of each.
    let outcome = |result: c_long| match result {
        -1 => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        _ => Ok(()),
    };
    asked.into_iter().map(|(name, result)| Attack::new(name, outcome(result))).collect()
}

/// Files of the host that he might write to: of the kernel's and on what is mounted into his
/// container, but for the folders that are `own`.
pub fn on_files(own: &[&Path]) -> Vec<Attack> {
    let mut made = Vec::new();
    let of_the_kernel = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/cgroup.procs",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/vda",
    ];
    for path in of_the_kernel {
        let opened = OpenOptions::new().write(true).open(path).map(|_| ());
        made.push(Attack::new(format!("write {path}"), opened));
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = table.lines().filter_map(|line| line.split(' ').nth(4));
    // The runtime's own, of this container alone.
    let of_the_container = |at: &Path| {
        ["/dev", "/proc", "/sys"].iter().any(|own| at.starts_with(own)) || own.contains(&at)
    };
    for at in mounted.map(Path::new).filter(|at| at.is_dir() && !of_the_container(at)) {
        let put = File::create_new(at.join("weir-was-here")).map(|_| ());
        made.push(Attack::new(format!("write in {}", at.display()), put));
    }
    made
}
