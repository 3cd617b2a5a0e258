//! Mount options of a volume, in the words of other S3 drivers: `key value` or `key=value`.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser};
use weir_csi::Error;

use crate::cli::{S3Args, ViewArgs};
use crate::config::fstab;
use crate::config::size::{Amount, Size};

/// The options that a volume may have.
#[derive(Parser, Debug, Clone)]
#[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
pub(super) struct VolumeOptions {
    #[command(flatten)]
    pub(super) view: ViewArgs,
    #[command(flatten)]
    pub(super) s3: S3Args,
    #[command(flatten)]
    of_the_node: OfTheNode,
}

/// Options that are the node's to choose here; accepted, so that volumes written for drivers
/// with a process for each mount keep working.
#[derive(Args, Debug, Clone)]
struct OfTheNode {
    #[arg(long, num_args = 0..=1)]
    cache: Option<String>,
    #[arg(long)]
    cache_dir: Vec<PathBuf>,
    #[arg(long)]
    cache_max_size: Option<Size>,
    #[arg(long)]
    max_cache_size: Option<u64>,
    #[arg(long)]
    cache_min_free: Option<Amount>,
    #[arg(long)]
    cache_min_free_inodes: Option<Amount>,
    #[arg(long)]
    lost_max: Option<Size>,
    #[arg(long)]
    memory_target: Option<Size>,
    #[arg(long)]
    read_part_size: Option<Size>,
    #[arg(long)]
    debug: bool,
}

/// Options that the author of a pod may give for an inline volume: none that names an endpoint,
/// a file of the node, or other credentials.
const INLINE: [&str; 12] = [
    "read-only",
    "prefix",
    "uid",
    "gid",
    "file-mode",
    "dir-mode",
    "metadata-ttl",
    "negative-metadata-ttl",
    "allow-other",
    "allow-delete",
    "allow-overwrite",
    "region",
];

/// Takes the SELinux context out of the mount flags: it holds commas.
pub(super) fn selinux_context(flags: &[String]) -> (Option<String>, Vec<String>) {
    let (contexts, rest): (Vec<_>, Vec<_>) =
        flags.iter().cloned().partition(|flag| flag.starts_with("context="));
    let context = contexts
        .first()
        .map(|flag| flag.trim_start_matches("context=").trim_matches('"').to_owned());
    (context.filter(|context| !context.is_empty()), rest)
}

/// Reads mount options; `inline` for those of an inline volume.
///
/// # Errors
/// [`Error::Invalid`] that names the option, and the nearest known one.
pub(super) fn parse(flags: &[String], inline: bool) -> Result<VolumeOptions, Error> {
    let words: Vec<_> = flags.iter().flat_map(|flag| fstab::to_flags(flag)).collect();
    if inline {
        let names = words.iter().filter_map(|word| word.to_str()?.strip_prefix("--"));
        if let Some(name) = names.into_iter().find(|name| !INLINE.contains(name)) {
            return Err(Error::Invalid(format!(
                "mountOptions: {name} is not for inline volumes; allowed are {}",
                INLINE.join(", ")
            )));
        }
    }
    VolumeOptions::try_parse_from(words).map_err(|error| Error::Invalid(explain(&error)))
}

/// What clap says, in one line and without dashes.
fn explain(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.replace("--", "")),
        Some(ContextValue::Strings(all)) => all.first().map(|text| text.replace("--", "")),
        _ => None,
    };
    let option = context(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => match context(ContextKind::SuggestedArg) {
            Some(known) => {
                let known = known.split(' ').next().unwrap_or_default();
                format!("mountOptions: {option} is unknown; did you mean {known}?")
            }
            None => format!("mountOptions: {option} is unknown"),
        },
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.trim_start_matches("error: ").replace("--", "");
            format!("mountOptions: {line}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(all: &[&str]) -> Vec<String> {
        all.iter().map(|flag| (*flag).to_owned()).collect()
    }

    #[test]
    fn options_of_other_drivers_are_understood() {
        let all = ["allow-delete", "region eu-west-1", "prefix=a/b/", "uid=7", "cache /tmp/x"];
        let options = parse(&flags(&all), false).unwrap();
        assert_eq!(options.s3.region.as_deref(), Some("eu-west-1"));
        assert_eq!((options.view.prefix.as_deref(), options.view.uid), (Some("a/b/"), Some(7)));
    }

    #[test]
    fn options_about_cache_and_memory_are_accepted_and_are_the_nodes() {
        let all = [
            "cache-dir /mnt/one",
            "cache-dir=/mnt/two",
            "cache-max-size 500GiB",
            "cache-min-free 20%",
            "cache-min-free-inodes=100000",
            "lost-max 1GiB",
            "memory-target=1GiB",
            "max-cache-size 1024",
        ];
        parse(&flags(&all), false).unwrap();
        // Whoever may not choose them is told so, and who misspells one which it is.
        for one in all {
            assert!(parse(&flags(&[one]), true).is_err(), "{one}");
        }
        assert!(parse(&flags(&["cache-max-size much"]), false).is_err());
    }

    #[test]
    fn a_wrong_option_is_named_with_the_nearest_known_one() {
        for (flag, words) in [
            ("metadata-tll 5", ["metadata-tll", "metadata-ttl"]),
            ("uid x", ["uid", "x"]),
            ("metadata-ttl soon", ["metadata-ttl", "soon"]),
        ] {
            let Err(Error::Invalid(text)) = parse(&flags(&[flag]), false) else { panic!("{flag}") };
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert!(!text.contains("--") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn authors_of_pods_choose_neither_endpoints_nor_files() {
        for bad in
            ["endpoint-url=http://x", "profile p", "ca-bundle=/etc/shadow", "no-sign-request"]
        {
            assert!(parse(&flags(&[bad]), true).is_err(), "{bad}");
            assert!(parse(&flags(&[bad]), false).is_ok(), "{bad}");
        }
        assert!(parse(&flags(&["read-only,uid=5"]), true).unwrap().view.read_only);
    }

    #[test]
    fn a_context_with_commas_is_kept_whole() {
        let all = flags(&["context=\"system_u:object_r:container_file_t:s0:c1,c2\"", "uid=1"]);
        let (context, rest) = selinux_context(&all);
        assert_eq!(context.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
        assert_eq!(rest, ["uid=1"]);
    }
}
