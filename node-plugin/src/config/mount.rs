//! Settings of a mount: checked, and free of contradictions.

use std::path::PathBuf;

use weir_fuse::engine::SessionSettings;
use weir_fuse::model::attr::Ownership;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::namespace::NamespaceSettings;
use weir_fuse::origin::s3::S3Settings;

use super::memory;
use super::size::{Amount, Size};
use crate::cli::{CacheArgs, MountArgs, Passthrough, S3Args, UploadChecksums};
use crate::exit::{Failure, Kind};

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
    /// The mountpoint as given.
    pub mountpoint: PathBuf,
    /// How it is shown.
    pub session: SessionSettings,
    /// Whether other users see it.
    pub allow_other: bool,
    /// Directory of the cache.
    pub cache_dir: PathBuf,
    /// Most that it holds, in bytes.
    pub cache_max: u64,
    /// What it leaves free.
    pub cache_min_free: Amount,
    /// Memory for bytes on their way.
    pub memory: u64,
    /// Most bytes in one GET.
    pub read_part: u64,
}

impl MountConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// A usage failure that names the option.
    pub fn new(args: &MountArgs, env: &Environment) -> Result<Self, Failure> {
        let (bucket, prefix) = source(args)?;
        check_sse(&args.s3)?;
        let cache_max = cache_max(&args.cache)?;
        let write_part = args.cache.write_part_size.unwrap_or(Size(8 << 20)).0;
        if !((5 << 20)..=(2 << 30)).contains(&write_part) {
            return Err(usage("--write-part-size must be between 5MiB and 2GiB (S3's limits)"));
        }
        let read_part = args.cache.read_part_size.unwrap_or(Size(8 << 20)).0;
        if read_part < 128 << 10 {
            return Err(usage("--read-part-size must be at least 128KiB"));
        }
        let memory = args.cache.memory_target.map_or_else(memory::default_target, |s| s.0);
        let ownership = Ownership {
            uid: args.uid.unwrap_or(env.uid),
            gid: args.gid.unwrap_or(env.gid),
            file_mode: args.file_mode.unwrap_or(0o644),
            dir_mode: args.dir_mode.unwrap_or(0o755),
        };
        let names = NamespaceSettings {
            prefix,
            ttl: args.metadata_ttl,
            negative_ttl: args.negative_metadata_ttl.unwrap_or(args.metadata_ttl),
        };
        Ok(Self {
            s3: s3_settings(bucket, &args.s3)?,
            mountpoint: args.mountpoint.clone(),
            session: SessionSettings {
                names,
                ownership,
                read_only: args.read_only,
                passthrough: args.passthrough == Passthrough::Auto,
                write_part,
            },
            allow_other: args.allow_other,
            cache_dir: args.cache.cache_dir.clone().map_or_else(|| default_cache_dir(env), Ok)?,
            cache_max,
            cache_min_free: args.cache.cache_min_free.unwrap_or(Amount::Percent(10)),
            memory,
            read_part,
        })
    }
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, text)
}

fn source(args: &MountArgs) -> Result<(String, DirPrefix), Failure> {
    let shape = "the source is s3://BUCKET or s3://BUCKET/PREFIX";
    let rest = args.source.strip_prefix("s3://");
    let rest = rest.ok_or_else(|| usage(format!("{:?}: {shape}", args.source)))?;
    let (bucket, in_url) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if bucket.len() < 3 || bucket.len() > 255 || !bucket.chars().all(allowed) {
        return Err(usage(format!("{bucket:?} is no bucket name; {shape}")));
    }
    let prefix = match (in_url, &args.prefix) {
        ("", Some(prefix)) => prefix.as_str(),
        (prefix, None) => prefix,
        (_, Some(_)) => return Err(usage("a prefix in the S3 URL and --prefix: give one")),
    };
    let prefix = DirPrefix::parse(prefix)
        .map_err(|e| usage(format!("prefix {prefix:?} cannot be shown as a directory: {e}")))?;
    Ok((bucket.to_owned(), prefix))
}

fn check_sse(args: &S3Args) -> Result<(), Failure> {
    const KNOWN: [&str; 3] = ["AES256", "aws:kms", "aws:kms:dsse"];
    match (args.sse.as_deref(), &args.sse_kms_key_id) {
        (Some(sse), _) if !KNOWN.contains(&sse) => {
            Err(usage(format!("--sse {sse}: known are {}", KNOWN.join(", "))))
        }
        (None | Some("AES256"), Some(_)) => {
            Err(usage("--sse-kms-key-id needs --sse aws:kms or aws:kms:dsse"))
        }
        _ => Ok(()),
    }
}

fn cache_max(args: &CacheArgs) -> Result<u64, Failure> {
    match (args.cache_max_size, args.max_cache_size) {
        (Some(_), Some(_)) => Err(usage("--cache-max-size and --max-cache-size: give one")),
        (Some(Size(bytes)), None) => Ok(bytes),
        (None, Some(mib)) => Ok(mib.saturating_mul(1 << 20)),
        (None, None) => Ok(u64::MAX),
    }
}

fn s3_settings(bucket: String, args: &S3Args) -> Result<S3Settings, Failure> {
    if args.no_sign_request && args.profile.is_some() {
        return Err(usage("--no-sign-request and --profile contradict each other"));
    }
    if let Some(url) = &args.endpoint_url
        && !(url.starts_with("http://") || url.starts_with("https://"))
    {
        return Err(usage(format!("--endpoint-url {url}: must begin with http:// or https://")));
    }
    Ok(S3Settings {
        bucket,
        region: args.region.clone(),
        endpoint_url: args.endpoint_url.clone(),
        profile: args.profile.clone(),
        force_path_style: args.force_path_style.then_some(true),
        no_sign_request: args.no_sign_request,
        requester_pays: args.requester_pays,
        expected_bucket_owner: args.expected_bucket_owner.clone(),
        sse: args.sse.clone(),
        sse_kms_key_id: args.sse_kms_key_id.clone(),
        storage_class: args.storage_class.clone(),
        ca_bundle: args.ca_bundle.clone(),
        upload_checksums: args.upload_checksums == UploadChecksums::Crc32c,
        credentials: None,
    })
}

fn default_cache_dir(env: &Environment) -> Result<PathBuf, Failure> {
    match (env.uid, &env.home) {
        (0, _) => Ok(PathBuf::from("/var/cache/weir")),
        (_, Some(home)) => Ok(home.join(".cache/weir")),
        (_, None) => Err(usage("no home directory for the cache: give --cache-dir")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

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
        assert_eq!(config.cache_dir, PathBuf::from("/home/x/.cache/weir"));
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
