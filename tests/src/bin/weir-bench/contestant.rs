//! Those who are compared: Weir, rclone and s3fs, each with its cache on the same disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use weir_fuse::adapter::mount::{mount_table, unmount};
use weir_tests::{minio, mount::cache_dir};

use crate::stage::Stage;
use crate::usage::{Cgroup, Usage};

/// A kind of contestant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
pub(crate) enum Kind {
    /// Weir as it is installed.
    Weir,
    /// Weir without passthrough.
    WeirNoPassthrough,
    /// rclone mount with `--vfs-cache-mode full`.
    Rclone,
    /// s3fs with `use_cache`.
    S3fs,
}

impl Kind {
    /// How the table names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weir => "Weir",
            Self::WeirNoPassthrough => "Weir, passthrough off",
            Self::Rclone => "rclone",
            Self::S3fs => "s3fs",
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Self::Weir | Self::WeirNoPassthrough => weir(),
            Self::Rclone => "rclone".into(),
            Self::S3fs => "s3fs".into(),
        }
    }

    /// Whether a successful close means that S3 holds the file.
    pub(crate) fn is_durable(self) -> bool {
        self != Self::Rclone
    }
}

/// What is mounted, and where.
pub(crate) struct Place {
    /// URL of the server.
    pub(crate) url: String,
    /// The bucket.
    pub(crate) bucket: String,
    /// The mountpoint, which is made.
    pub(crate) mountpoint: PathBuf,
}

/// A mounted contestant.
pub(crate) struct Contestant {
    /// What it is.
    pub(crate) kind: Kind,
    child: Child,
    mountpoint: PathBuf,
    cache: tempfile::TempDir,
    cgroup: Cgroup,
}

impl Contestant {
    /// Mounts; returns with the time until the first listing was there.
    pub(crate) fn mount(stage: &Stage, kind: Kind, flags: &[&str]) -> (Self, Duration) {
        Self::mount_with(stage, kind, flags, cache_dir())
    }

    /// Mounts over a cache that is there.
    pub(crate) fn mount_with(
        stage: &Stage,
        kind: Kind,
        flags: &[&str],
        cache: tempfile::TempDir,
    ) -> (Self, Duration) {
        let (url, bucket) = (stage.url.clone(), stage.bucket.clone());
        let place = Place { url, bucket, mountpoint: stage.path("mnt") };
        Self::mount_at(&place, kind, flags, cache)
    }

    /// Mounts what is there, over a cache.
    pub(crate) fn mount_at(
        place: &Place,
        kind: Kind,
        flags: &[&str],
        cache: tempfile::TempDir,
    ) -> (Self, Duration) {
        let mountpoint = place.mountpoint.clone();
        fs::create_dir_all(&mountpoint).unwrap();
        let cgroup = Cgroup::new(kind.name().split(',').next().unwrap());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c"]);
        command.arg(format!("{} exec \"$@\"", cgroup.enter())).arg("sh");
        program(&mut command, place, kind, cache.path());
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        if std::env::var_os("WEIR_BENCH_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        // What others wrote is not to be in the way, nor that dropped caches took the program's
        // pages along.
        rustix::fs::sync();
        let _ = Command::new(kind.program())
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        while !is_mounted(&mountpoint) {
            assert!(child.try_wait().unwrap().is_none(), "{} ended", kind.name());
            assert!(start.elapsed() < Duration::from_secs(60), "{} does not mount", kind.name());
            std::thread::sleep(Duration::from_micros(500));
        }
        fs::read_dir(&mountpoint).unwrap().count();
        let took = start.elapsed();
        (Self { kind, child, mountpoint, cache, cgroup }, took)
    }

    /// A path in the mount.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// Where its cache is.
    pub(crate) fn cache(&self) -> &Path {
        self.cache.path()
    }

    /// What it used so far.
    pub(crate) fn usage(&self) -> Usage {
        self.cgroup.usage()
    }

    /// What Weir says of itself.
    pub(crate) fn status(&self) -> Option<weir_node::admin::NodeStatus> {
        let all = weir_node::status::all_in(&self.cache().join("run"));
        all.into_iter().map(|(_, node)| node).next()
    }

    /// Waits until what was read is in the cache.
    pub(crate) fn settle(&self) {
        if let Some(mut node) = self.status() {
            for _ in 0..200 {
                if node.cache.used_bytes >= node.counters.fetched_bytes {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
                node = self.status().unwrap();
            }
        }
        rustix::fs::sync();
    }

    /// Unmounts and says what was used.
    pub(crate) fn end(self) -> Usage {
        let (usage, _cache) = self.end_keeping_cache();
        usage
    }

    /// Unmounts; the cache stays.
    pub(crate) fn end_keeping_cache(mut self) -> (Usage, tempfile::TempDir) {
        let until = Instant::now() + Duration::from_secs(60);
        while is_mounted(&self.mountpoint) && Instant::now() < until {
            if unmount(&self.mountpoint, false).is_err() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        while self.child.try_wait().unwrap().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        (self.cgroup.usage(), self.cache)
    }

    /// Ends it as a crash would; the cache stays.
    pub(crate) fn kill(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = unmount(&self.mountpoint, true);
        self.cache
    }
}

fn is_mounted(path: &Path) -> bool {
    mount_table().unwrap_or_default().iter().any(|entry| entry.mountpoint == path)
}

fn weir() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("weir")
}

fn program(command: &mut Command, place: &Place, kind: Kind, cache: &Path) {
    let Place { url, bucket, mountpoint } = place;
    command
        .env("AWS_ACCESS_KEY_ID", minio::USER)
        .env("AWS_SECRET_ACCESS_KEY", minio::PASSWORD)
        .env("AWS_REGION", "us-east-1")
        .env_remove("AWS_CA_BUNDLE");
    match kind {
        Kind::Weir | Kind::WeirNoPassthrough => {
            command
                .arg(weir())
                .args(["mount", &format!("s3://{bucket}")])
                .arg(mountpoint)
                .args(["--foreground", "--endpoint-url", url, "--metadata-ttl", "60"])
                .arg("--cache-dir")
                .arg(cache)
                .env("WEIR_RUN_DIR", cache.join("run"));
            if kind == Kind::WeirNoPassthrough {
                command.args(["--passthrough", "off"]);
            }
        }
        Kind::Rclone => {
            let remote = format!(
                ":s3,provider=Minio,env_auth=true,region=us-east-1,endpoint='{url}':{bucket}"
            );
            command.args(["rclone", "mount", &remote]).arg(mountpoint);
            command.args(["--vfs-cache-mode", "full", "--vfs-write-back", "0s"]);
            command.args(["--config", "/dev/null", "--cache-dir"]).arg(cache);
        }
        Kind::S3fs => {
            let password = cache.join("password");
            fs::write(&password, format!("{}:{}", minio::USER, minio::PASSWORD)).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(&password, mode).unwrap();
            let store = cache.join("store");
            fs::create_dir_all(&store).unwrap();
            command.args(["s3fs", "-f", bucket]).arg(mountpoint);
            command.args(["-o", &format!("url={url},use_path_request_style")]);
            command.args(["-o", &format!("passwd_file={}", password.display())]);
            command.args(["-o", &format!("use_cache={}", store.display())]);
            command.args(["-o", "parallel_count=8,multipart_size=8,max_stat_cache_size=200000"]);
            command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        }
    }
}
