//! Settings of a mount: checked, and free of contradictions.

use std::path::PathBuf;
use std::time::Duration;

use weir_fuse::engine::SessionSettings;
use weir_fuse::feed::nats::FeedSettings;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::namespace::AccessSettings;
use weir_fuse::origin::region::RegionSettings;
use weir_fuse::origin::s3::S3Settings;

use super::cache::CacheConfig;
use super::{feed, identity, region, s3, usage, view};
use crate::cli::MountArgs;
use crate::exit::Failure;
use crate::mount::preflight::MountPolicy;

/// What the environment contributes.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Who mounts.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Their home directory.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            home: std::env::var_os("HOME").map(PathBuf::from),
        }
    }
}

/// Settings of a mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The bucket.
    pub s3: S3Settings,
    /// The regional caches before it.
    pub regions: Vec<RegionSettings>,
    /// What tells of changes that others make.
    pub feed: Option<FeedSettings>,
    /// The mountpoint as given.
    pub mountpoint: PathBuf,
    /// How it is shown.
    pub session: SessionSettings,
    /// What becomes of the mount where the bucket cannot be reached.
    pub policy: MountPolicy,
    /// Whether other users see it.
    pub allow_other: bool,
    /// The cache, and memory.
    pub cache: CacheConfig,
    /// How long an orderly end may take.
    pub grace: Duration,
}

impl MountConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// A usage failure that names the option.
    pub fn new(args: &MountArgs, env: &Environment) -> Result<Self, Failure> {
        let (bucket, prefix) = source(args)?;
        let s3 = s3::s3_settings(bucket, &args.s3)?;
        let mut session = view::session_settings(&args.view, prefix, (env.uid, env.gid))?;
        session.names.access = AccessSettings {
            // Of the user who mounts: his keys may change.
            identity: identity::of("user", &(), &s3),
            // Releases before gave him no name.
            formerly: Some(String::new()),
            ..AccessSettings::default()
        };
        let feed = feed::feed_settings(&args.feed)?;
        session.names.feed = feed.is_some();
        Ok(Self {
            s3,
            regions: region::region_settings(&args.region)?,
            feed,
            mountpoint: args.mountpoint.clone(),
            session,
            policy: args.mount_policy,
            allow_other: args.view.allow_other,
            cache: CacheConfig::new(&args.cache, env)?,
            grace: args.end.grace(),
        })
    }
}

fn source(args: &MountArgs) -> Result<(String, DirPrefix), Failure> {
    let shape = "the source is s3://BUCKET or s3://BUCKET/PREFIX";
    let rest = args.source.strip_prefix("s3://");
    let rest = rest.ok_or_else(|| usage(format!("{:?}: {shape}", args.source)))?;
    let (bucket, in_url) = rest.split_once('/').unwrap_or((rest, ""));
    if !s3::is_bucket_name(bucket) {
        return Err(usage(format!("{bucket:?} is no bucket name; {shape}")));
    }
    let prefix = match (in_url, &args.view.prefix) {
        ("", Some(prefix)) => prefix.as_str(),
        (prefix, None) => prefix,
        (_, Some(_)) => return Err(usage("a prefix in the S3 URL and --prefix: give one")),
    };
    Ok((bucket.to_owned(), view::prefix(prefix)?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::exit::Kind;

    fn config(flags: &str) -> Result<MountConfig, Failure> {
        let words = ["weir", "mount"].into_iter().chain(flags.split_whitespace());
        let Command::Mount(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not a mount");
        };
        MountConfig::new(&args, &Environment { uid: 7, gid: 8, home: Some("/home/x".into()) })
    }

    #[test]
    fn the_bucket_alone_is_enough() {
        let config = config("s3://bucket /mnt").unwrap();
        assert_eq!(config.s3.bucket, "bucket");
        assert!(config.session.names.prefix.is_root());
        assert_eq!((config.session.ownership.uid, config.session.ownership.gid), (7, 8));
        assert_eq!(config.cache.dirs, [PathBuf::from("/home/x/.cache/weir")]);
    }

    #[test]
    fn contradictions_name_their_options() {
        for (flags, word) in [
            ("bucket /mnt", "s3://"),
            ("s3://b /mnt", "bucket name"),
            ("s3://bucket/a /mnt --prefix b", "--prefix"),
            ("s3://bucket/a/../b /mnt", ".."),
            ("s3://bucket /mnt --no-sign-request --profile p", "--profile"),
            ("s3://bucket /mnt --cache-max-size 1G --max-cache-size 5", "--max-cache-size"),
            ("s3://bucket /mnt --sse-kms-key-id k", "--sse"),
            ("s3://bucket /mnt --sse rot13", "rot13"),
            ("s3://bucket /mnt --endpoint-url localhost:9000", "http://"),
            ("s3://bucket /mnt --write-part-size 1M", "--write-part-size"),
        ] {
            let failure = config(flags).unwrap_err();
            assert_eq!(failure.kind, Kind::Usage);
            assert!(failure.text.contains(word), "{flags}: {}", failure.text);
        }
    }
}
