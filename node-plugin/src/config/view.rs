//! How a bucket is shown: options of a mount and of a volume alike.

use weir_fuse::engine::SessionSettings;
use weir_fuse::model::attr::Ownership;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::namespace::{AccessSettings, NamespaceSettings};

use super::usage;
use crate::cli::{Passthrough, ViewArgs};
use crate::exit::Failure;

/// Checks the options. `owner` and `group` are those of files whose options name none.
///
/// # Errors
/// A usage failure that names the option.
pub fn session_settings(
    view: &ViewArgs,
    prefix: DirPrefix,
    (owner, group): (u32, u32),
) -> Result<SessionSettings, Failure> {
    let write_part =
        view.write_part_size.map_or(SessionSettings::default().write_part, |size| size.0);
    if !((5 << 20)..=(2 << 30)).contains(&write_part) {
        return Err(usage("--write-part-size must be between 5MiB and 2GiB (S3's limits)"));
    }
    Ok(SessionSettings {
        names: NamespaceSettings {
            prefix,
            ttl: view.metadata_ttl,
            negative_ttl: view.negative_metadata_ttl.unwrap_or(view.metadata_ttl),
            first_ino: 0,
            mount: String::new(),
            access: AccessSettings::default(),
            feed: false,
        },
        ownership: Ownership {
            uid: view.uid.unwrap_or(owner),
            gid: view.gid.unwrap_or(group),
            file_mode: view.file_mode.unwrap_or(0o644),
            dir_mode: view.dir_mode.unwrap_or(0o755),
        },
        read_only: view.read_only,
        passthrough: view.passthrough == Passthrough::Auto,
        write_part,
    })
}

/// Checks a prefix.
///
/// # Errors
/// A usage failure that says what is wrong with it.
pub fn prefix(text: &str) -> Result<DirPrefix, Failure> {
    DirPrefix::parse(text)
        .map_err(|e| usage(format!("prefix {text:?} cannot be shown as a directory: {e}")))
}
