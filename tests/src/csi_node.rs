//! The processes of a Kubernetes node, without Kubernetes: `weir mounter`, `weir node` and `weir
//! controller`, and what kubelet and the provisioner would call.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Gid, Uid};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use weir_csi::proto::node_client::NodeClient;
use weir_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use weir_csi::proto::{
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, VolumeCapability,
};
use weir_fuse::adapter::mount::{mount_table, unmount};
use weir_node::mounter::client::Mounter;

use crate::bucket::Bucket;
use crate::mount::{cache_dir, program};
use crate::sts::SessionKeys;
use crate::{PATIENCE, eventually, runtime};

/// A role of the binary, running.
pub struct Role(Child);

impl Role {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let command = command
            .env(weir_node::DIE_WITH_PARENT, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Self(command.spawn().unwrap())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as kubelet ends a pod.
    pub fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        eventually("it ends after SIGTERM", || self.0.try_wait().unwrap().is_some());
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the node is set up.
#[derive(Clone, Default)]
pub struct Setup {
    /// More flags of `weir node`.
    pub node_flags: Vec<String>,
    /// More flags of `weir mounter`.
    pub mounter_flags: Vec<String>,
    /// More of the environment of `weir node` and `weir controller`.
    pub environment: Vec<(String, String)>,
}

/// A node with its two processes, and a controller if it was started.
pub struct CsiNode {
    node: Mutex<Option<Role>>,
    mounter: Mutex<Option<Role>>,
    controller: Option<Role>,
    standby: Option<Role>,
    dir: TempDir,
    cache: TempDir,
    setup: Setup,
    environment: Vec<(String, String)>,
}

impl CsiNode {
    /// Starts mounter and node, whose own credentials are the bucket's.
    pub fn new(bucket: &Bucket) -> Self {
        Self::with(bucket, Setup::default())
    }

    /// Starts them.
    pub fn with(bucket: &Bucket, mut setup: Setup) -> Self {
        setup.node_flags.push(format!("--endpoint-url={}", bucket.url));
        let environment = [
            ("AWS_ACCESS_KEY_ID", bucket.access_key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", &bucket.secret_key),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let environment = [environment.to_vec(), setup.environment.clone()].concat();
        let this = Self {
            node: Mutex::default(),
            mounter: Mutex::default(),
            controller: None,
            standby: None,
            dir: tempfile::Builder::new().prefix("weir-csi-").tempdir().unwrap(),
            cache: cache_dir(),
            setup,
            environment,
        };
        this.start_mounter();
        this.start_node();
        this
    }

    /// A path in the folder of this node.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The cache directory of this node.
    pub fn cache_dir(&self) -> PathBuf {
        self.cache.path().to_owned()
    }

    /// The socket of the node service.
    pub fn socket(&self) -> PathBuf {
        self.join("csi.sock")
    }

    /// The mounter's socket for a standby.
    pub fn visitor_socket(&self) -> PathBuf {
        self.join("visitor/mounter.sock")
    }

    /// The socket of the controller service.
    pub fn controller_socket(&self) -> PathBuf {
        self.join("controller.sock")
    }

    /// The folder for targets.
    pub fn pods(&self) -> PathBuf {
        self.join("pods")
    }

    /// Everything that its processes logged.
    pub fn logs(&self) -> String {
        fs::read_to_string(self.join("log")).unwrap_or_default()
    }

    /// Starts a standby, which serves metrics and probes.
    pub fn start_standby(&mut self) {
        self.standby(&mut Command::new(program()));
    }

    /// Starts a standby as a user who is not root, and of this group.
    pub fn start_standby_as(&mut self, user: u32, group: u32) {
        // That user need not reach the folder that the program is in.
        let program = fs::File::open(program()).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.uid(user).gid(group).arg0("weir");
        self.standby(&mut command);
    }

    fn standby(&mut self, command: &mut Command) {
        command
            .arg("standby")
            .arg("--csi-socket")
            .arg(self.socket())
            .arg("--mounter-socket")
            .arg(self.visitor_socket())
            .args(["--metrics-listen=127.0.0.1:0", "--health-listen=127.0.0.1:0"]);
        self.standby = Some(Role::start(command, &self.join("standby-log")));
    }

    /// Process id of the standby.
    pub fn standby_pid(&self) -> u32 {
        self.standby.as_ref().unwrap().pid()
    }

    /// Everything that the standby logged.
    pub fn standby_logs(&self) -> String {
        fs::read_to_string(self.join("standby-log")).unwrap_or_default()
    }

    /// Starts a mounter.
    pub fn start_mounter(&self) {
        let mut command = Command::new(program());
        command
            .arg("mounter")
            .arg("--socket")
            .arg(self.join("mounter.sock"))
            .arg("--visitor-socket")
            .arg(self.visitor_socket())
            .arg("--cache-dir")
            .arg(self.cache.path())
            .arg("--sessions-dir")
            .arg(self.join("sessions"))
            .arg("--target-root")
            .arg(self.pods())
            .args(&self.setup.mounter_flags);
        *self.mounter.lock().unwrap() = Some(Role::start(&mut command, &self.join("log")));
    }

    /// Starts a node, and waits until it answers.
    pub fn start_node(&self) {
        let mut command = Command::new(program());
        command
            .arg("node")
            .args(["--node-id", "node1"])
            .arg("--csi-socket")
            .arg(self.socket())
            .arg("--mounter-socket")
            .arg(self.join("mounter.sock"))
            .arg("--cache-dir")
            .arg(self.cache.path())
            // The disk on which tests run may be nearly full.
            .args(["--cache-min-free", "0"])
            .args(["--log-level", "trace"])
            .args(&self.setup.node_flags)
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_SESSION_TOKEN")
            .envs(self.environment.iter().cloned());
        let mut role = Role::start(&mut command, &self.join("log"));
        let socket = self.socket();
        eventually("the node answers", || {
            let ended = role.0.try_wait().unwrap();
            assert!(ended.is_none(), "the node ended: {ended:?}\n{}", self.logs());
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        *self.node.lock().unwrap() = Some(role);
    }

    /// Starts a controller, and waits until it answers.
    pub fn start_controller(&mut self) {
        let mut command = Command::new(program());
        let endpoint = self.setup.node_flags.iter().find(|f| f.starts_with("--endpoint-url"));
        command
            .arg("controller")
            .arg("--csi-socket")
            .arg(self.controller_socket())
            .args(endpoint)
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_SESSION_TOKEN")
            .envs(self.environment.iter().cloned());
        self.controller = Some(Role::start(&mut command, &self.join("log")));
        let socket = self.controller_socket();
        eventually("the controller answers", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Takes the node's process out, to end it.
    pub fn take_node(&self) -> Role {
        self.node.lock().unwrap().take().unwrap()
    }

    /// Takes the mounter's process out, to end it.
    pub fn take_mounter(&self) -> Role {
        self.mounter.lock().unwrap().take().unwrap()
    }

    /// Gives flags to the next run of the node, after those that it has.
    pub fn set_node_flags(&mut self, flags: Vec<String>) {
        self.setup.node_flags.retain(|flag| !flag.starts_with("--endpoint-url"));
        self.setup.node_flags.extend(flags);
    }

    /// Gives flags to the next run of the mounter, after those that it has.
    pub fn add_mounter_flags(&mut self, flags: &[&str]) {
        self.setup.mounter_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Process id of the mounter.
    pub fn mounter_pid(&self) -> u32 {
        self.mounter.lock().unwrap().as_ref().unwrap().pid()
    }

    /// Process id of the node.
    pub fn node_pid(&self) -> u32 {
        self.node.lock().unwrap().as_ref().unwrap().pid()
    }

    /// Process id of the controller.
    pub fn controller_pid(&self) -> u32 {
        self.controller.as_ref().unwrap().pid()
    }

    fn client(&self) -> Result<NodeClient<Channel>, Status> {
        let absent = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        runtime().block_on(try_channel(self.socket())).map(NodeClient::new).map_err(absent)
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let call = async { tokio::time::timeout(PATIENCE, call).await };
        runtime().block_on(call).expect("a call hangs")
    }

    /// NodePublishVolume.
    ///
    /// # Errors
    /// What the node answers.
    pub fn publish(&self, volume: &TestVolume) -> Result<PathBuf, Status> {
        let mut client = self.client()?;
        let target = self.target(&volume.pod);
        self.prepare(&target);
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: target.to_str().unwrap().to_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume {
                    fs_type: String::new(),
                    mount_flags: volume.options.clone(),
                    volume_mount_group: volume.group.map(|g| g.to_string()).unwrap_or_default(),
                })),
                access_mode: Some(AccessMode {
                    mode: access_mode::Mode::MultiNodeMultiWriter as i32,
                }),
            }),
            readonly: volume.read_only,
            secrets: volume.secrets.clone(),
            volume_context: volume.attributes.clone(),
            ..Default::default()
        };
        self.wait(client.node_publish_volume(request))?;
        Ok(target)
    }

    /// Makes what kubelet makes before it has a volume published.
    pub fn prepare(&self, target: &Path) {
        let folder = target.parent().unwrap();
        fs::create_dir_all(folder).unwrap();
        let data = r#"{"driverName": "s3.csi.weir.dev", "specVolID": "data"}"#;
        fs::write(folder.join("vol_data.json"), data).unwrap();
    }

    /// Where a pod's volume is shown.
    pub fn target(&self, pod: &str) -> PathBuf {
        self.pods().join(pod).join("volumes/kubernetes.io~csi/data/mount")
    }

    /// NodeUnpublishVolume.
    ///
    /// # Errors
    /// What the node answers.
    pub fn unpublish(&self, volume: &TestVolume) -> Result<(), Status> {
        let mut client = self.client()?;
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: self.target(&volume.pod).to_str().unwrap().to_owned(),
        };
        self.wait(client.node_unpublish_volume(request)).map(|_| ())
    }

    /// NodeGetVolumeStats.
    ///
    /// # Errors
    /// What the node answers.
    pub fn stats(&self, volume: &TestVolume) -> Result<NodeGetVolumeStatsResponse, Status> {
        let mut client = self.client()?;
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: self.target(&volume.pod).to_str().unwrap().to_owned(),
            ..Default::default()
        };
        Ok(self.wait(client.node_get_volume_stats(request))?.into_inner())
    }

    /// The node's socket, as a process of this user and group has it.
    pub fn channel_of(&self, user: u32, group: u32) -> Channel {
        let socket = self.socket();
        let connected = std::thread::spawn(move || {
            use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
            // Of this thread alone.
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            std::os::unix::net::UnixStream::connect(socket).unwrap()
        });
        let connected = connected.join().unwrap();
        connected.set_nonblocking(true).unwrap();
        runtime().block_on(async {
            let mut connected = Some(UnixStream::from_std(connected).unwrap());
            let connect = move |_: Uri| {
                let connected = connected.take().map(hyper_util::rt::TokioIo::new);
                async move { connected.ok_or_else(|| std::io::Error::other("it was there once")) }
            };
            let endpoint = Endpoint::from_static("http://localhost");
            endpoint.connect_with_connector(tower::service_fn(connect)).await.unwrap()
        })
    }

    /// The mounter, as another engine sees it that says it is the node's: one that somebody has broken
    /// into, or of a later release. Of two each ends the other's connections.
    pub fn other_engine(&self) -> Arc<Mounter> {
        Mounter::new(&self.join("mounter.sock"), "hostile".into())
    }

    /// Mounts below this node's folder.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = mount_table().unwrap().into_iter().map(|entry| entry.mountpoint);
        table.filter(|path| path.starts_with(self.dir.path())).collect()
    }
}

impl Drop for CsiNode {
    fn drop(&mut self) {
        let roles = [&self.node, &self.mounter].map(|role| role.lock().map(|mut role| role.take()));
        drop((roles, self.controller.take(), self.standby.take()));
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for path in self.mounts().into_iter().rev() {
            let _ = unmount(&path, true);
        }
    }
}

/// A connection to a unix socket.
pub async fn channel(socket: PathBuf) -> Channel {
    try_channel(socket).await.unwrap()
}

async fn try_channel(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    };
    // The address is not used: the connector knows its own.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(tower::service_fn(connect)).await
}

/// A volume as a PersistentVolume would describe it, in a pod.
#[derive(Clone)]
pub struct TestVolume {
    /// Its handle.
    pub id: String,
    /// Names the pod.
    pub pod: String,
    /// volumeAttributes, and what kubelet adds.
    pub attributes: BTreeMap<String, String>,
    /// The secret that it names.
    pub secrets: BTreeMap<String, String>,
    /// mountOptions.
    pub options: Vec<String>,
    /// fsGroup of the pod.
    pub group: Option<u32>,
    /// Whether the pod may only read.
    pub read_only: bool,
}

impl TestVolume {
    /// The whole bucket, in a pod.
    pub fn new(bucket: &Bucket, pod: &str) -> Self {
        Self {
            id: "volume".into(),
            pod: pod.into(),
            attributes: BTreeMap::from([("bucketName".into(), bucket.name.clone())]),
            secrets: BTreeMap::new(),
            options: Vec::new(),
            group: None,
            read_only: false,
        }
    }

    /// The same, in another pod.
    #[must_use]
    pub fn pod(&self, pod: &str) -> Self {
        Self { pod: pod.into(), ..self.clone() }
    }

    /// The same, with another attribute.
    #[must_use]
    pub fn attribute(mut self, key: &str, value: &str) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// The same, with a mount option.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// The same, with these keys in its secret.
    #[must_use]
    pub fn session_keys(self, keys: &SessionKeys) -> Self {
        let mut with = self.keys(&keys.access_key, &keys.secret_key);
        with.secrets.insert("session_token".into(), keys.token.clone());
        with
    }

    /// The same, with the keys of a secret.
    #[must_use]
    pub fn keys(mut self, access_key: &str, secret_key: &str) -> Self {
        self.secrets = BTreeMap::from([
            ("key_id".into(), access_key.into()),
            ("access_key".into(), secret_key.into()),
        ]);
        self
    }
}
