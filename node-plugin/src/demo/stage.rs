//! The stage of the demo: directories, a server, a mount; all of it struck at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_fuse::adapter::mount as fuse_mount;
use weir_fuse::origin::s3::{S3Origin, S3Settings};
use weir_fuse::origin::{Condition, ListRequest, Origin};

use super::server::EmbeddedS3;
use crate::cli::DemoArgs;
use crate::config::s3;
use crate::exit::{Failure, Kind};
use crate::{admin, status};

const BUCKET: &str = "weir-demo";
/// How long the mount may take to answer.
const MOUNT_PATIENCE: Duration = Duration::from_secs(30);
/// How often the removal of the demo's directories is tried.
const REMOVE_TRIES: u32 = 100;

/// Everything that the demo made.
pub(super) struct Stage {
    /// Its directory.
    root: PathBuf,
    server: Option<EmbeddedS3>,
    /// The bucket, for what the demo checks past the mount.
    pub(super) origin: Arc<dyn Origin>,
    url: Option<String>,
    bucket: String,
    region: Option<String>,
    /// Prefix in the bucket that everything is below.
    pub(super) prefix: String,
    mount: Option<Child>,
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(Kind::Other, format!("{what}: {error}"))
}

impl Stage {
    /// Makes directories and server.
    pub(super) async fn set(args: &DemoArgs) -> Result<Self, Failure> {
        let base = args.dir.clone().unwrap_or_else(|| PathBuf::from("/var/tmp"));
        let root = base.join(format!("weir-demo-{}", std::process::id()));
        let made = ["s3", "cache", "mount", "input", "run"]
            .iter()
            .try_for_each(|sub| fs::create_dir_all(root.join(sub)));
        made.map_err(failed("making the demo's directories (--dir names another place)"))?;
        let prefix = format!("weir-demo-{}/", std::process::id());
        if let Some(url) = &args.endpoint_url {
            s3::check_endpoint("--endpoint-url", url)?;
        }
        let mut settings = S3Settings {
            bucket: args.bucket.clone().unwrap_or_else(|| BUCKET.to_owned()),
            endpoint_url: args.endpoint_url.clone(),
            region: args.region.clone(),
            upload_checksums: true,
            ..S3Settings::default()
        };
        let mut server = None;
        if args.endpoint_url.is_none() {
            let started = EmbeddedS3::start(&root.join("s3")).await;
            let started = started.map_err(failed("starting the S3 server"))?;
            fs::create_dir_all(root.join("s3").join(BUCKET))
                .map_err(failed("making the bucket"))?;
            settings.endpoint_url = Some(started.url());
            settings = settings.with_keys(&started.access_key, &started.secret_key);
            server = Some(started);
        }
        let (bucket, url, region) =
            (settings.bucket.clone(), settings.endpoint_url.clone(), settings.region.clone());
        let origin = S3Origin::connect(settings).await;
        let origin = origin.map_err(|error| Failure::of_origin(&error, &bucket, url.as_deref()))?;
        let stage = Self {
            root,
            server,
            origin: Arc::new(origin),
            url,
            bucket,
            region,
            prefix,
            mount: None,
        };
        Ok(stage)
    }

    /// A directory of the demo.
    pub(super) fn path(&self, sub: &str) -> PathBuf {
        self.root.join(sub)
    }

    /// Where the bucket is mounted.
    pub(super) fn mountpoint(&self) -> PathBuf {
        self.path("mount")
    }

    /// What is mounted, for people.
    pub(super) fn source(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    /// The S3 server, for people.
    pub(super) fn server_name(&self) -> String {
        match (&self.server, &self.url) {
            (Some(server), _) => format!("an S3 server of its own (s3s-fs) at {}", server.url()),
            (None, Some(url)) => url.clone(),
            (None, None) => "Amazon S3".to_owned(),
        }
    }

    /// Mounts, in a process of its own; returns when it answers.
    pub(super) async fn mount(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        let program = std::env::current_exe().map_err(failed("finding the program"))?;
        let mut command = Command::new(program);
        command
            .args(["mount", &self.source()])
            .arg(self.mountpoint())
            .arg("--foreground")
            .args(["--log-level", "warn"])
            .arg("--cache-dir")
            .arg(self.path("cache"))
            .env(crate::DIE_WITH_PARENT, "1")
            .env("WEIR_RUN_DIR", self.path("run"))
            .stdin(Stdio::null());
        if let Some(url) = &self.url {
            command.args(["--endpoint-url", url]);
        }
        if let Some(region) = &self.region {
            command.args(["--region", region]);
        }
        if let Some(server) = &self.server {
            command
                .env("AWS_ACCESS_KEY_ID", &server.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &server.secret_key)
                .env_remove("AWS_SESSION_TOKEN")
                .env_remove("AWS_PROFILE");
        }
        self.mount = Some(command.spawn().map_err(failed("starting the mount"))?);
        self.until_mounted().await?;
        Ok(start.elapsed())
    }

    async fn until_mounted(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + MOUNT_PATIENCE;
        while !is_mounted(&self.mountpoint()) {
            let ended = self.mount.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > until {
                self.mount = None;
                return Err(Failure::new(Kind::Other, "the mount did not come up; see above"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Unmounts and waits for the process to end.
    pub(super) async fn unmount(&mut self) {
        let Some(mut child) = self.mount.take() else { return };
        let mountpoint = self.mountpoint();
        if fuse_mount::unmount(&mountpoint, false).is_err() {
            let _ = fuse_mount::unmount(&mountpoint, true);
        }
        for _ in 0..1000 {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // It has had ten seconds.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// What the mount's process tells about itself.
    pub(super) fn status(&self) -> Option<admin::NodeStatus> {
        status::all_in(&self.path("run")).into_iter().map(|(_, node)| node).next()
    }

    /// Removes everything.
    pub(super) async fn strike(mut self) {
        self.unmount().await;
        if self.server.is_none() {
            self.remove_objects().await;
        }
        drop(self.server.take());
        self.remove_directories().await;
    }

    /// A step that was interrupted may still be writing its last file: hence more than one try.
    async fn remove_directories(&self) {
        let mut removed = Ok(());
        for _ in 0..REMOVE_TRIES {
            removed = fs::remove_dir_all(&self.root);
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !self.root.exists() {
                return;
            }
        }
        if let Err(error) = removed {
            eprintln!("weir: {} is left behind: {error}", self.root.display());
        }
    }

    async fn remove_objects(&self) {
        let mut request = ListRequest {
            prefix: self.prefix.clone(),
            delimited: false,
            token: None,
            max_keys: 1000,
        };
        loop {
            let Ok(page) = self.origin.list(&request).await else {
                eprintln!("weir: objects below {} are left behind", self.source());
                return;
            };
            for (key, _) in &page.objects {
                if let Err(error) = self.origin.delete(key, &Condition::Always).await {
                    eprintln!("weir: {key} is left behind: {error}");
                }
            }
            request.token = page.next;
            if request.token.is_none() {
                return;
            }
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fuse_mount::mount_table().unwrap_or_default();
    table.iter().any(|entry| entry.mountpoint == path && entry.fs_type == fuse_mount::FS_TYPE)
}
