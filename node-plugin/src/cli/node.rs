//! Options of what runs on a node.

use std::path::PathBuf;

use clap::Args;

use super::{CacheArgs, EndArgs, FeedArgs, LogArgs, LogFormat, ProbeArgs, RegionArgs, S3Args};

/// The sockets of a plugin, and of a standby that answers in its place.
#[derive(Args, Debug, Clone)]
pub struct SocketArgs {
    /// Socket on which kubelet calls.
    #[arg(long, value_name = "SOCKET", default_value = "/csi/csi.sock")]
    pub csi_socket: PathBuf,
    /// Group of the standby: it may answer at that socket while no node does, and connect to it.
    #[arg(long, value_name = "GID")]
    pub csi_group: Option<u32>,
    /// Socket of the mounter.
    #[arg(long, value_name = "SOCKET", default_value = "/mounter/mounter.sock")]
    pub mounter_socket: PathBuf,
}

/// How the tokens of pods are traded for keys, for volumes with `authenticationSource: pod`.
#[derive(Args, Debug, Clone, Default)]
pub struct PodIdentityArgs {
    /// Endpoint of the security token service [default: Amazon's].
    #[arg(long, value_name = "URL")]
    pub sts_endpoint_url: Option<String>,
    /// PEM file of certificate authorities that the security token service's may be of.
    #[arg(long, value_name = "FILE")]
    pub sts_ca_bundle: Option<PathBuf>,
    /// Audience of the tokens that it takes.
    #[arg(long, value_name = "AUDIENCE", default_value = "sts.amazonaws.com")]
    pub sts_audience: String,
    /// The agent of EKS Pod Identity on the node, for volumes that name no role:
    /// `http://169.254.170.23` there.
    #[arg(long, value_name = "URL")]
    pub pod_identity_agent_url: Option<String>,
    /// For volumes that name no role, take that of the annotation `eks.amazonaws.com/role-arn` of the
    /// pod's service account: needs the right to get serviceaccounts of every namespace.
    #[arg(long)]
    pub role_from_service_account: bool,
}

/// Options of `weir node`.
#[derive(Args, Debug, Clone)]
pub struct NodeArgs {
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node_id: String,
    /// Where kubelet and the mounter are.
    #[command(flatten)]
    pub sockets: SocketArgs,
    /// Topology segments of this node, as KEY=VALUE, before those that are found.
    #[arg(long = "topology", value_name = "KEY=VALUE")]
    pub topology: Vec<String>,
    /// Seconds between two looks at GPUs and labels.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub topology_interval: u64,
    /// The NVIDIA management library, where the dynamic linker does not find it.
    #[arg(long, value_name = "FILE", env = "WEIR_NVML_LIBRARY")]
    pub nvml_library: Option<PathBuf>,
    /// kubelet's socket that tells which GPUs a pod has.
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub pod_resources_socket: PathBuf,
    /// Most volumes on this node; 0 for any number.
    #[arg(long, default_value_t = 0)]
    pub max_volumes: i64,
    /// Most sessions on this node, each of a volume and of who reads it; 0 for any number.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub max_sessions: usize,
    /// Most of them that pods of one namespace have; 0 for any number.
    #[arg(long, value_name = "NUMBER", default_value_t = 250)]
    pub max_sessions_per_namespace: usize,
    /// How pods' own tokens are traded for keys.
    #[command(flatten)]
    pub pods: PodIdentityArgs,
    /// Seconds that kubelet is told to wait, when a pod goes, for bytes of it that are not stored.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub unpublish_deadline: u64,
    /// Let inline volumes use this node's own credentials: then whoever may create pods reaches
    /// every bucket that the node reaches.
    #[arg(long)]
    pub inline_driver_credentials: bool,
    /// What volumes use that name nothing else.
    #[command(flatten)]
    pub s3: S3Args,
    /// Options of a regional cache, for volumes that name no endpoint of their own.
    #[command(flatten)]
    pub region: RegionArgs,
    /// Options of a feed of changes, for volumes that name no endpoint of their own.
    #[command(flatten)]
    pub feed: FeedArgs,
    /// Options of the cache and of memory.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Use no cache directory that is on the file system of this folder, as of kubelet's: as where the
    /// disk that the cache is to have is not mounted.
    #[arg(long, value_name = "DIR")]
    pub cache_apart_from: Option<PathBuf>,
    /// Directory on a tmpfs: of it 64 MiB are used in place of a cache while no disk of that works.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm/weir-cache")]
    pub spare_cache_dir: PathBuf,
    /// Options of the end.
    #[command(flatten)]
    pub end: EndArgs,
    /// Where probes are answered.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// Options of what is logged and counted.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options of `weir standby`.
#[derive(Args, Debug, Clone)]
pub struct StandbyArgs {
    /// Where kubelet and the mounter are.
    #[command(flatten)]
    pub sockets: SocketArgs,
    /// Where probes are answered.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// Options of what is logged and counted.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options of `weir mounter`.
#[derive(Args, Debug, Clone)]
pub struct MounterArgs {
    /// Socket for the node.
    #[arg(long, value_name = "SOCKET", default_value = "/mounter/engine/mounter.sock")]
    pub socket: PathBuf,
    /// Socket for the standby, in a folder that the node's is not in.
    #[arg(long, value_name = "SOCKET", default_value = "/mounter/visitor/mounter.sock")]
    pub visitor_socket: PathBuf,
    /// Group that may connect to the standby's socket.
    #[arg(long, value_name = "GID")]
    pub visitor_group: Option<u32>,
    /// emptyDir that the node's pod uses, and no pod of anybody else: who connects to its socket from
    /// elsewhere is sent away.
    #[arg(long, value_name = "NAME")]
    pub engine_volume: Option<String>,
    /// The same of the standby's.
    #[arg(long, value_name = "NAME")]
    pub visitor_volume: Option<String>,
    /// Folder for the mounts of sessions, shared with the host.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/plugins/s3.csi.weir.dev/sessions"
    )]
    pub sessions_dir: PathBuf,
    /// kubelet's folder of pods, below which volumes may be shown; may be given several times.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pods")]
    pub target_root: Vec<PathBuf>,
    /// Folder of the node's cache: only files on its disk are registered for passthrough. May be
    /// given several times.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Vec<PathBuf>,
    /// Seconds that a mount waits for a node that does not come back.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub orphan_timeout: u64,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}
