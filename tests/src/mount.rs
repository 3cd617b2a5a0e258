//! A mount of the real binary, in a process of its own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use weir_fuse::adapter::mount::{mount_table, unmount};
use weir_node::admin::NodeStatus;
use weir_node::status;

use crate::bucket::Bucket;
use crate::eventually;

/// The binary under test, built beside this test.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // Tests are in a folder beside it; the bench is beside it.
    let mut near = own.ancestors().skip(1).take(2).map(|folder| folder.join("weir"));
    near.find(|program| program.is_file())
        .expect("weir is not built: cargo build --workspace --all-targets")
}

/// A directory for a cache, on a disk.
pub fn cache_dir() -> TempDir {
    tempfile::Builder::new().prefix("weir-cache-").tempdir_in("/var/tmp").unwrap()
}

/// `weir` with a bucket's credentials and nothing else of this process's AWS settings.
pub fn weir(bucket: &Bucket) -> Command {
    let mut command = Command::new(program());
    command
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_SESSION_TOKEN")
        .env("AWS_ACCESS_KEY_ID", &bucket.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &bucket.secret_key)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null());
    command
}

/// How to mount.
#[derive(Clone, Default)]
pub struct Options {
    /// What comes after the bucket in the S3 URL.
    pub prefix: String,
    /// More flags.
    pub flags: Vec<String>,
    /// A cache directory that outlives the mount.
    pub cache: Option<PathBuf>,
    /// A file that its log is added to, in place of this process's standard error.
    pub log: Option<PathBuf>,
}

impl Options {
    /// These flags, separated by spaces.
    pub fn flags(flags: &str) -> Self {
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        Self { flags, ..Self::default() }
    }

    /// With a cache directory that outlives the mount.
    #[must_use]
    pub fn cache(mut self, cache: &Path) -> Self {
        self.cache = Some(cache.to_owned());
        self
    }

    /// With its log in this file.
    #[must_use]
    pub fn log(mut self, log: &Path) -> Self {
        self.log = Some(log.to_owned());
        self
    }

    /// With one more flag, or its value.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// With a prefix.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }
}

/// A mounted bucket. Unmounted, and its process ended, when dropped.
pub struct Mount {
    child: Option<Child>,
    dir: TempDir,
    metrics: Option<SocketAddr>,
    _cache: Option<TempDir>,
}

fn nodes_in(run: &Path) -> Vec<NodeStatus> {
    status::all_in(run).into_iter().map(|(_, node)| node).collect()
}

impl Mount {
    /// Mounts with default settings.
    pub fn new(bucket: &Bucket) -> Self {
        Self::with(bucket, &Options::default())
    }

    /// Mounts with these flags.
    pub fn flags(bucket: &Bucket, flags: &str) -> Self {
        Self::with(bucket, &Options::flags(flags))
    }

    /// Mounts.
    pub fn with(bucket: &Bucket, options: &Options) -> Self {
        let dir = tempfile::Builder::new().prefix("weir-mount-").tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let own_cache = options.cache.is_none().then(cache_dir);
        let cache = options.cache.clone().or(own_cache.as_ref().map(|c| c.path().to_owned()));
        let mut command = weir(bucket);
        command
            .arg("mount")
            .arg(format!("s3://{}/{}", bucket.name, options.prefix))
            .arg(dir.path().join("mnt"))
            .args(["--foreground", "--endpoint-url", &bucket.url])
            .args(["--metrics-listen", "127.0.0.1:0"])
            .arg("--cache-dir")
            .arg(cache.unwrap())
            .args(&options.flags)
            .env("WEIR_RUN_DIR", dir.path().join("run"))
            // A test that dies takes its mount along.
            .env(weir_node::DIE_WITH_PARENT, "1");
        // The disk on which tests run may be nearly full.
        if !options.flags.iter().any(|flag| flag == "--cache-min-free") {
            command.args(["--cache-min-free", "0"]);
        }
        if let Some(log) = &options.log {
            let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
            command.stderr(log);
        }
        let child = command.spawn().unwrap();
        let mut mount = Self { child: Some(child), dir, metrics: None, _cache: own_cache };
        let path = mount.path();
        eventually("the mount comes up", || {
            let ended = mount.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the mount ended: {ended:?}");
            is_mounted(&path)
        });
        eventually("the mount serves metrics", || {
            let ended = mount.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the mount ended: {ended:?}");
            mount.metrics = mount.nodes().pop().and_then(|node| node.metrics);
            mount.metrics.is_some()
        });
        mount
    }

    /// The mountpoint.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path in the mount.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Process id of the mount.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What the process tells about itself.
    pub fn status(&self) -> NodeStatus {
        self.asker()()
    }

    /// Asks for that, again and again.
    pub fn asker(&self) -> impl Fn() -> NodeStatus + use<> {
        let run = self.dir.path().join("run");
        move || nodes_in(&run).pop().expect("the mount has an admin socket")
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        nodes_in(&self.dir.path().join("run"))
    }

    /// Bytes fetched from the bucket so far.
    pub fn fetched(&self) -> u64 {
        self.status().counters.fetched_bytes
    }

    /// A page of the metrics server.
    pub fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics.unwrap()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// All metrics, by name with labels.
    pub fn metrics(&self) -> HashMap<String, f64> {
        let text = self.http("/metrics");
        let lines = text.lines().filter(|line| line.starts_with("weir_"));
        let pair = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        lines.filter_map(pair).collect()
    }

    /// How many S3 requests of a kind were made, whatever became of them.
    pub fn requests(&self, op: &str) -> u64 {
        let prefix = format!("weir_s3_request_duration_seconds_count{{op=\"{op}\"");
        let metrics = self.metrics();
        metrics.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, n)| *n as u64).sum()
    }

    /// How many opens were served in a mode.
    pub fn opens(&self, mode: &str) -> u64 {
        let name = format!("weir_fuse_opens_total{{mode=\"{mode}\"}}");
        self.metrics().get(&name).map_or(0, |n| *n as u64)
    }

    /// The most memory that the process has had, in MiB.
    pub fn peak_mib(&self) -> u64 {
        peak_mib(self.pid())
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal)
            .unwrap();
    }

    /// Unmounts as a person does, and waits for the process to end.
    pub fn unmount(mut self) {
        // A process that another test starts has all descriptors of this one until its exec.
        eventually("nobody uses the mount", || unmount(&self.path(), false).is_ok());
        let mut child = self.child.take().unwrap();
        eventually("the process ends after the unmount", || child.try_wait().unwrap().is_some());
        assert!(child.wait().unwrap().success());
    }

    /// Kills the process, as a crash would, and clears the dead mount away.
    pub fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        unmount(&self.path(), true).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::CONT);
            let _ = unmount(&self.path(), true);
            for _ in 0..500 {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The most memory that a process has had, in MiB.
pub fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Whether something of ours is mounted at this path.
pub fn is_mounted(path: &Path) -> bool {
    mount_table().unwrap().iter().any(|e| e.mountpoint == path && e.fs_type == "fuse.weir")
}

/// Runs `weir` to its end.
pub fn run(bucket: &Bucket, args: &[&str]) -> Output {
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    weir(bucket).args(args).output().unwrap()
}
