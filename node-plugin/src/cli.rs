//! The command line.

mod feed_from;
pub mod lost;
pub mod node;
mod rights;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_fuse::model::ttl::MetadataTtl;

use crate::config::size::{Amount, Size};
use crate::mount::preflight::MountPolicy;
pub use feed_from::FeedFromArgs;
use lost::LostArgs;
use node::{MounterArgs, NodeArgs, StandbyArgs};

/// Weir shows S3 buckets as files, read at the speed of the local NVMe and written through.
#[derive(Parser, Debug)]
#[command(name = "weir", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Mount a bucket, or a prefix of one.
    Mount(Box<MountArgs>),
    /// Unmount, after what was written is stored.
    Umount(UmountArgs),
    /// Show mounts, the cache and what is being uploaded.
    Status(StatusArgs),
    /// Show, store or remove files whose bytes could not be stored.
    Lost(LostArgs),
    /// Show what Weir does, on an S3 server of its own or on a bucket that you name.
    Demo(DemoArgs),
    /// Make and remove volumes for a cluster: the CSI controller service.
    Controller(Box<ControllerArgs>),
    /// Make labels, taints and annotations of a cluster follow what its nodes tell.
    Reconciler(ReconcilerArgs),
    /// Serve the volumes of a Kubernetes node: the CSI node service and every mount.
    Node(Box<NodeArgs>),
    /// Show GPUs, NVLinks, and the drives and networks next to them.
    Topology(TopologyArgs),
    /// Take volumes away from pods while no `weir node` is there to do it.
    Standby(StandbyArgs),
    /// Say whether pods still use volumes of Weir: what `helm uninstall` asks first.
    #[command(hide = true)]
    UninstallCheck,
    /// Mount for `weir node`, and keep its connections: the one privileged process of a node.
    Mounter(MounterArgs),
}

/// Options of `weir mount`.
#[derive(Args, Debug, Clone)]
pub struct MountArgs {
    /// The bucket: s3://BUCKET or s3://BUCKET/PREFIX.
    #[arg(value_name = "S3-URL")]
    pub source: String,
    /// An empty directory.
    pub mountpoint: PathBuf,
    /// Stay in the foreground and log to the terminal.
    #[arg(short, long)]
    pub foreground: bool,
    /// Where the bucket cannot be reached: fail, or begin with what is cached.
    #[arg(long, value_enum, default_value_t = MountPolicy::Strict)]
    pub mount_policy: MountPolicy,
    /// How the bucket is shown.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Options of the bucket.
    #[command(flatten)]
    pub s3: S3Args,
    /// Options of a regional cache.
    #[command(flatten)]
    pub region: RegionArgs,
    /// Options of a feed of changes.
    #[command(flatten)]
    pub feed: FeedArgs,
    /// Options of the cache and of memory.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Options of the end.
    #[command(flatten)]
    pub end: EndArgs,
    /// Options of what is logged and counted.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How a bucket is shown.
#[derive(Args, Debug, Clone)]
pub struct ViewArgs {
    /// Refuse every change.
    #[arg(long)]
    pub read_only: bool,
    /// Let other users see the mount.
    #[arg(long)]
    pub allow_other: bool,
    /// Show only keys below this prefix (or write it into the S3 URL).
    #[arg(long)]
    pub prefix: Option<String>,
    /// How long names and attributes are taken as true: seconds, "indefinite" or "minimal".
    #[arg(long, value_name = "TTL", default_value = "1")]
    pub metadata_ttl: MetadataTtl,
    /// The same for the absence of a name [default: as --metadata-ttl].
    #[arg(long, value_name = "TTL")]
    pub negative_metadata_ttl: Option<MetadataTtl>,
    /// Owner of all files [default: who mounts].
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group of all files [default: of who mounts].
    #[arg(long)]
    pub gid: Option<u32>,
    /// Mode of files, octal [default: 0644].
    #[arg(long, value_parser = octal)]
    pub file_mode: Option<u16>,
    /// Mode of directories, octal [default: 0755].
    #[arg(long, value_parser = octal)]
    pub dir_mode: Option<u16>,
    /// Size of the first parts of an upload, 5MiB or more [default: 8MiB].
    #[arg(long, value_name = "SIZE")]
    pub write_part_size: Option<Size>,
    /// Let the kernel read cached files by itself, where it can.
    #[arg(long, value_enum, default_value_t = Passthrough::Auto)]
    pub passthrough: Passthrough,
    /// Accepted for mount options written for other drivers; Weir allows it unless --read-only.
    #[arg(long, hide = true)]
    pub allow_delete: bool,
    /// Accepted for mount options written for other drivers; Weir allows it unless --read-only.
    #[arg(long, hide = true)]
    pub allow_overwrite: bool,
    /// Accepted for mount options written for other drivers; Weir measures for itself.
    #[arg(long, hide = true)]
    pub maximum_throughput_gbps: Option<f64>,
    /// Accepted for mount options written for other drivers; Weir measures for itself.
    #[arg(long, hide = true)]
    pub max_threads: Option<u32>,
}

/// Where the bucket is, and how to speak to it.
#[derive(Args, Debug, Clone, Default)]
pub struct S3Args {
    /// Region of the bucket [default: AWS_REGION, or the profile's].
    #[arg(long)]
    pub region: Option<String>,
    /// URL of an S3-compatible endpoint.
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
    /// Name the bucket in the path of requests, not in the host.
    #[arg(long)]
    pub force_path_style: bool,
    /// Profile of the shared AWS configuration.
    #[arg(long)]
    pub profile: Option<String>,
    /// Send no credentials, for public buckets.
    #[arg(long)]
    pub no_sign_request: bool,
    /// Accept to be charged for requests.
    #[arg(long)]
    pub requester_pays: bool,
    /// Account id that must own the bucket.
    #[arg(long, value_name = "ACCOUNT")]
    pub expected_bucket_owner: Option<String>,
    /// Server-side encryption of what is written: AES256, aws:kms or aws:kms:dsse.
    #[arg(long)]
    pub sse: Option<String>,
    /// Key for --sse aws:kms.
    #[arg(long, value_name = "KEY")]
    pub sse_kms_key_id: Option<String>,
    /// Storage class of what is written.
    #[arg(long, value_name = "CLASS")]
    pub storage_class: Option<String>,
    /// Checksums sent with uploads.
    #[arg(long, value_enum, default_value_t = UploadChecksums::Crc32c)]
    pub upload_checksums: UploadChecksums,
    /// PEM file of certificate authorities to trust besides the system's.
    #[arg(long, value_name = "FILE", env = "AWS_CA_BUNDLE")]
    pub ca_bundle: Option<PathBuf>,
}

/// What kind of server a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum RegionKind {
    /// NVIDIA AIStore.
    #[default]
    Aistore,
    /// Any server that speaks S3.
    S3,
}

impl From<RegionKind> for weir_fuse::origin::region::RegionKind {
    fn from(kind: RegionKind) -> Self {
        match kind {
            RegionKind::Aistore => Self::AiStore,
            RegionKind::S3 => Self::S3,
        }
    }
}

/// A cache before the origin, from which bytes come that it has.
#[derive(Args, Debug, Clone, Default)]
pub struct RegionArgs {
    /// URL of a regional cache before the origin, with a bucket of the same name. May be given several
    /// times: the soonest is asked first, and the next where it fails or is late.
    #[arg(long, value_name = "URL")]
    pub region_url: Vec<String>,
    /// What kind of server it is.
    #[arg(long, value_enum, default_value_t = RegionKind::Aistore)]
    pub region_kind: RegionKind,
    /// File with the token that it wants (AIStore's AuthN); read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub region_token_file: Option<PathBuf>,
    /// Profile of the shared AWS configuration with its keys, for --region-kind s3 [default: none
    /// are sent].
    #[arg(long, value_name = "PROFILE")]
    pub region_profile: Option<String>,
    /// PEM file of certificate authorities that its own may be of, besides the system's.
    #[arg(long, value_name = "FILE")]
    pub region_ca_bundle: Option<PathBuf>,
    /// Hosts that it may redirect to besides itself and the nodes of its cluster, as HOST or HOST:PORT.
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub region_allow: Vec<String>,
}

/// A feed that tells of changes that others make.
#[derive(Args, Debug, Clone, Default)]
pub struct FeedArgs {
    /// Server of a feed of changes: nats://HOST:PORT or tls://HOST:PORT, and /SUBJECT where that is not
    /// weir.changes; several servers of one feed may be given.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub feed: Vec<String>,
    /// File with NATS credentials, or with a line USER:PASSWORD.
    #[arg(long, value_name = "FILE")]
    pub feed_credentials_file: Option<PathBuf>,
    /// PEM file of certificate authorities that the servers' may be of [default: the system's].
    #[arg(long, value_name = "FILE")]
    pub feed_ca_bundle: Option<PathBuf>,
    /// Seconds without a word from who relays changes after which the feed counts as lost [default: 5].
    #[arg(long, value_name = "SECONDS")]
    pub feed_timeout: Option<u64>,
    /// Seconds for which names are taken as true while the feed lives [default: 300]. The kernel is told
    /// --metadata-ttl all the same.
    #[arg(long, value_name = "SECONDS")]
    pub feed_metadata_ttl: Option<u64>,
}

/// The cache, and memory.
#[derive(Args, Debug, Clone, Default)]
pub struct CacheArgs {
    /// Directory of the cache; one a disk may be given [default: /var/cache/weir for root, else
    /// ~/.cache/weir].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Vec<PathBuf>,
    /// Most that the cache holds, as 500GiB, shared evenly by its disks [default: what --cache-min-free leaves].
    #[arg(long, value_name = "SIZE")]
    pub cache_max_size: Option<Size>,
    /// The same in MiB, as other drivers spell it.
    #[arg(long, value_name = "MIB", hide = true)]
    pub max_cache_size: Option<u64>,
    /// What the cache leaves free on its disk, as 20GiB or 10% [default: 10%].
    #[arg(long, value_name = "SIZE")]
    pub cache_min_free: Option<Amount>,
    /// How many files and folders more its disk is to hold, as 100000 or 10% of all [default: 10%].
    #[arg(long, value_name = "COUNT")]
    pub cache_min_free_inodes: Option<Amount>,
    /// Most bytes kept in the cache directory that could not be stored, as 20GiB [default: 10GiB,
    /// or a tenth of the disk where that is less].
    #[arg(long, value_name = "SIZE")]
    pub lost_max: Option<Size>,
    /// Memory for bytes on their way and for names, half each [default: a 256th of the machine's
    /// memory, 128MiB to 1GiB, at most a third of the cgroup's limit].
    #[arg(long, value_name = "SIZE")]
    pub memory_target: Option<Size>,
    /// Most bytes asked for in one request [default: 8MiB].
    #[arg(long, value_name = "SIZE")]
    pub read_part_size: Option<Size>,
}

/// How the command ends.
#[derive(Args, Debug, Clone)]
pub struct EndArgs {
    /// Seconds that an orderly end may take to store what a close or an fsync waits for.
    #[arg(long, value_name = "SECONDS", default_value_t = 25)]
    pub grace_period: u64,
}

impl EndArgs {
    /// How long an orderly end may take.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_period)
    }
}

/// What is logged, and where metrics are served.
#[derive(Args, Debug, Clone)]
pub struct LogArgs {
    /// Serve Prometheus metrics at http://ADDRESS/metrics.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Where a mount in the background logs to [default: a file in the run directory].
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// Where kubelet's probes are answered.
#[derive(Args, Debug, Clone)]
pub struct ProbeArgs {
    /// Answer kubelet's probes at http://ADDRESS/healthz and /readyz.
    #[arg(long, value_name = "ADDRESS")]
    pub health_listen: Option<SocketAddr>,
}

/// Options of `weir controller`.
#[derive(Args, Debug, Clone)]
pub struct ControllerArgs {
    /// Socket on which the provisioner calls.
    #[arg(long, value_name = "SOCKET", default_value = "/csi/csi.sock")]
    pub csi_socket: PathBuf,
    /// What volumes use that name nothing else.
    #[command(flatten)]
    pub s3: S3Args,
    /// Where changes are published.
    #[command(flatten)]
    pub feed: FeedArgs,
    /// Where they are heard of.
    #[command(flatten)]
    pub feed_from: FeedFromArgs,
    /// Where probes are answered.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// Options of what is logged and counted.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options of `weir reconciler`.
#[derive(Args, Debug, Clone)]
pub struct ReconcilerArgs {
    /// Where probes are answered.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// Options of what is logged and counted.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options of `weir umount`.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Detach it now, and end it when nobody uses it any more.
    #[arg(short, long)]
    pub lazy: bool,
}

/// Options of `weir status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What a GiB read from the origin costs, such as 0.09: says what was saved.
    #[arg(long, value_name = "PRICE", value_parser = crate::status::price)]
    pub price_per_gib: Option<f64>,
    /// What a GiB read from the region costs.
    #[arg(long, value_name = "PRICE", value_parser = crate::status::price, requires = "price_per_gib", default_value = "0")]
    pub region_price_per_gib: f64,
}

/// Options of `weir topology`.
#[derive(Args, Debug)]
pub struct TopologyArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = TopologyOutput::Text)]
    pub output: TopologyOutput,
    /// Print a graph for Graphviz.
    #[arg(long, conflicts_with = "output")]
    pub dot: bool,
    /// The NVIDIA management library, where the dynamic linker does not find it.
    #[arg(long, value_name = "FILE", env = "WEIR_NVML_LIBRARY")]
    pub nvml_library: Option<PathBuf>,
}

/// Options of `weir demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Leave it mounted at the end, until Ctrl-C.
    #[arg(long)]
    pub keep: bool,
    /// Run against this endpoint instead of an S3 server of its own.
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
    /// Bucket at that endpoint; the demo writes below the prefix weir-demo-*/ and removes it.
    #[arg(long)]
    pub bucket: Option<String>,
    /// Region of that bucket.
    #[arg(long)]
    pub region: Option<String>,
    /// Where the demo puts its data and its cache [default: /var/tmp]. About 3 GiB.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Size of the model that is made.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub model_size: Size,
}

/// Values of `--passthrough`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Passthrough {
    /// Where the kernel can.
    Auto,
    /// Never.
    Off,
}

/// Values of `--upload-checksums`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UploadChecksums {
    /// CRC32C with every upload.
    #[default]
    Crc32c,
    /// None, for servers that refuse them.
    Off,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Values of `--output` of `weir topology`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopologyOutput {
    /// A tree for people.
    Text,
    /// For programs.
    Json,
    /// For people and programs.
    Yaml,
}

/// Values of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

fn octal(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("not an octal mode such as 0644".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_option_is_answered_with_the_nearest_known_one() {
        let error = Cli::try_parse_from(["weir", "mount", "s3://b", "/m", "--cache-maxsize", "1G"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--cache-maxsize") && error.contains("--cache-max-size"), "{error}");
    }
}
