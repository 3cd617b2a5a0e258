//! From a publish request to what is to be mounted.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weir_csi::Error;
use weir_csi::request::{Publish, VolumeId};
use weir_fuse::adapter::mount::{self, MountError};
use weir_fuse::engine::{Engine, SessionSettings};
use weir_fuse::model::version::BucketId;
use weir_fuse::origin::s3::S3Settings;

use super::credentials::{Kind, Source, Tokens};
use super::role::Annotated;
use super::{identity, options};
use crate::cli::S3Args;
use crate::config::{feed, s3, view};
use crate::exit::Failure;
use crate::kubernetes::accounts::Accounts;
use crate::kubernetes::events::Subject;
use crate::mount::preflight::{MountPolicy, Wanted};

/// Attributes that mean nothing here but stand in volumes of other drivers.
const FOREIGN: [&str; 3] = ["cache", "mountpoint", "storage.kubernetes.io/"];
/// Attributes that a volume may have.
const KNOWN: [&str; 10] = [
    "bucketName",
    "prefix",
    "authenticationSource",
    "stsRegion",
    "roleArn",
    "mountOptions",
    "mountPolicy",
    "endpointUrl",
    "region",
    "feed",
];
/// Value of `region` for a volume whose bytes come from the origin alone.
const NO_REGION: &str = "off";
/// What kubelet adds begins so.
const KUBELET: &str = "csi.storage.k8s.io/";

/// What the node adds to every volume.
#[derive(Clone)]
pub(super) struct Defaults {
    /// Where buckets are, unless a volume says otherwise.
    pub(super) s3: S3Args,
    /// Whether inline volumes may use the node's own credentials.
    pub(super) inline_driver_credentials: bool,
    /// Which tokens of pods there are.
    pub(super) tokens: Tokens,
    /// Whether the node has a region.
    pub(super) has_region: bool,
    /// Where roles are asked for that volumes do not name, if they may be.
    pub(super) accounts: Option<Arc<Accounts>>,
}

/// Most of settings, and of keys, that one publish may bring, in bytes as they are kept: the mounter
/// keeps them in memory for every volume of the node.
const PUBLISH_MAX: usize = 16 << 10;

/// What a session is made with, all resolved: no default of the node is applied to it later, so that
/// it goes on as it was made when the node's defaults change.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Settings {
    /// The bucket; without credentials.
    pub(super) s3: S3Settings,
    /// How it is shown.
    pub(super) session: SessionSettings,
    /// Where its credentials come from.
    pub(super) source: Kind,
    /// What the pod's service account said about its role, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) annotated: Option<Annotated>,
    /// SELinux context of everything in it.
    pub(super) selinux_context: Option<String>,
    /// Whether bytes may come from the node's region.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) near: bool,
}

impl Settings {
    /// As one text: equal for settings that are alike.
    fn text(&self) -> String {
        // Strings and numbers: it can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether a session that was made with these is as one made with `other` would be. Who signs is
    /// not looked at: keys are refreshed in place.
    pub(super) fn serves_as(&self, other: &Self) -> bool {
        let text = |settings: &Self| {
            let mut settings = Self { annotated: None, ..settings.clone() };
            settings.session.names.access.identity.clear();
            settings.session.names.access.former.clear();
            settings.session.names.access.formerly = None;
            // Names are as true with it as without.
            settings.session.names.feed = false;
            settings.text()
        };
        text(self) == text(other)
    }

    /// Gives credentials that a release before has named the name that they have now.
    pub(super) fn name_as_now(&mut self, credentials: &Source) {
        let access = &mut self.session.names.access;
        if access.formerly.is_none() {
            *access = identity::succeeding(access, &identity::access(credentials, &self.s3));
        }
    }

    /// What is mounted, for people.
    pub(super) fn source(&self) -> String {
        format!("s3://{}/{}", self.s3.bucket, self.session.names.prefix)
    }
}

/// What is to be mounted.
pub(super) struct Volume {
    /// With what.
    pub(super) settings: Settings,
    /// Whose credentials are used.
    pub(super) credentials: Source,
    /// What becomes of it while its origin is away.
    pub(super) policy: MountPolicy,
    /// Whether this pod may only read.
    pub(super) read_only: bool,
    /// For which pod.
    pub(super) subject: Subject,
}

impl Volume {
    /// Reads a request, beside what the pod's service account was found to say about its role.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the attribute or option.
    pub(super) fn parse(
        publish: &Publish,
        defaults: &Defaults,
        annotated: Option<Annotated>,
    ) -> Result<Self, Error> {
        let attributes = publish.context.as_map();
        check_names(attributes)?;
        let get = |key: &str| publish.context.get(key).filter(|value| !value.is_empty());
        let inline = get("csi.storage.k8s.io/ephemeral") == Some("true");
        let (selinux_context, flags) = options::selinux_context(&publish.capability.mount_flags);
        let inline_flags = get("mountOptions").map(str::to_owned);
        let flags: Vec<String> = flags.into_iter().chain(inline_flags).collect();
        let mut options = options::parse(&flags, inline)?;
        if let Some(endpoint) = get("endpointUrl") {
            if inline {
                return Err(Error::Invalid("endpointUrl is not for inline volumes".into()));
            }
            options.s3.endpoint_url = Some(endpoint.to_owned());
        }
        let credentials = Source::parse(publish, &defaults.tokens, annotated.as_ref())?;
        if inline && matches!(credentials, Source::Driver) && !defaults.inline_driver_credentials {
            let text = "inline volumes may not use the node's credentials: name a secret \
                        (nodePublishSecretRef) or set authenticationSource: pod, or let the \
                        operator allow it (--inline-driver-credentials)";
            return Err(Error::Denied(text.into()));
        }
        // No region of Amazon's is called so.
        let (off, region): (Vec<_>, Vec<_>) =
            get("region").into_iter().partition(|region| *region == NO_REGION);
        if options.s3.region.is_none() {
            options.s3.region = region.first().map(|region| (*region).to_owned());
        }
        credentials.add_to(&mut options.s3, inline)?;
        // The region has what is at the node's endpoint; at another one it is something else.
        let near = defaults.has_region && off.is_empty() && options.s3.endpoint_url.is_none();
        // So has the feed.
        let is_fed = feed::of_volume(get("feed")).map_err(Error::Invalid)?
            && options.s3.endpoint_url.is_none();
        with_defaults(&mut options.s3, &defaults.s3);
        let bucket = get("bucketName")
            .ok_or_else(|| Error::Invalid("volumeAttributes: bucketName is missing".into()))?;
        if !s3::is_bucket_name(bucket) {
            return Err(Error::Invalid(format!("bucketName {bucket:?} is no bucket name")));
        }
        let prefix = match (get("prefix"), options.view.prefix.as_deref()) {
            (Some(one), Some(other))
                if one.trim_end_matches('/') != other.trim_end_matches('/') =>
            {
                let text = "a prefix in volumeAttributes and another in mountOptions: give one";
                return Err(Error::Invalid(text.into()));
            }
            (one, other) => view::prefix(one.or(other).unwrap_or("")).map_err(invalid)?,
        };
        if let Some(group) = publish.capability.mount_group {
            options.view.gid = Some(options.view.gid.unwrap_or(group));
            options.view.file_mode = Some(options.view.file_mode.unwrap_or(0o644) | 0o664);
            options.view.dir_mode = Some(options.view.dir_mode.unwrap_or(0o755) | 0o2775);
        }
        let mut session = view::session_settings(&options.view, prefix, (0, 0)).map_err(invalid)?;
        let s3 = s3::s3_settings(bucket.to_owned(), &options.s3).map_err(invalid)?;
        session.names.access = identity::access(&credentials, &s3);
        session.names.feed = is_fed;
        if let Some(context) = &selinux_context
            && !mount::is_selinux_context(context)
        {
            return Err(Error::Invalid(MountError::Context(context.clone()).to_string()));
        }
        let policy = MountPolicy::of_volume(get("mountPolicy")).map_err(Error::Invalid)?;
        let read_only = publish.read_only || session.read_only;
        let source = credentials.kind();
        let settings = Settings { s3, session, source, annotated, selinux_context, near };
        check_size(&settings, &credentials)?;
        Ok(Self { settings, credentials, policy, read_only, subject: subject(publish) })
    }

    /// What is to be mounted of a bucket, with this cache.
    pub(super) fn wanted<'a>(&'a self, engine: &'a Engine, bucket: &'a BucketId) -> Wanted<'a> {
        let Settings { s3, session, .. } = &self.settings;
        Wanted { engine, bucket, s3, names: &session.names, policy: self.policy }
    }

    /// Names the session that serves this publish: the same for publishes that can share one.
    pub(super) fn session_id(&self, volume_id: &VolumeId, target: &str) -> String {
        let mut hash = Sha256::new();
        for part in [volume_id.as_str(), &self.settings.text()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        if matches!(self.credentials, Source::Pod(_)) {
            // Pods never share what their tokens opened.
            hash.update(target);
        }
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn invalid(failure: Failure) -> Error {
    Error::Invalid(failure.text.replace("--", ""))
}

fn check_names(attributes: &BTreeMap<String, String>) -> Result<(), Error> {
    let known = |key: &str| {
        KNOWN.contains(&key)
            || key.starts_with(KUBELET)
            || FOREIGN.iter().any(|foreign| key.starts_with(foreign))
    };
    match attributes.keys().find(|key| !known(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Invalid(format!(
            "volumeAttributes: {key} is unknown; known are {}",
            KNOWN.join(", ")
        ))),
    }
}

/// Checks that what is kept of a volume is not too much.
fn check_size(settings: &Settings, credentials: &Source) -> Result<(), Error> {
    let keys = credentials.keys().map_or(0, |(keys, _)| keys.len());
    for (what, bytes) in [("the settings", settings.text().len()), ("the keys", keys)] {
        if bytes > PUBLISH_MAX {
            return Err(Error::Invalid(format!(
                "{what} of the volume take {bytes} bytes; at most {PUBLISH_MAX} are kept"
            )));
        }
    }
    Ok(())
}

/// Whom a publish is for.
pub(super) fn subject(publish: &Publish) -> Subject {
    let get = |key: &str| publish.context.get(&format!("{KUBELET}{key}")).unwrap_or_default();
    let inline = get("ephemeral") == "true";
    Subject {
        volume: Subject::volume_of(publish.target.as_path(), inline),
        namespace: get("pod.namespace").to_owned(),
        pod: get("pod.name").to_owned(),
        pod_uid: get("pod.uid").to_owned(),
        on_node: false,
    }
}

/// What the volume does not say, the node says.
fn with_defaults(options: &mut S3Args, defaults: &S3Args) {
    let same_endpoint = options.endpoint_url.is_none();
    let fill = |own: &mut Option<String>, default: &Option<String>| {
        if own.is_none() {
            own.clone_from(default);
        }
    };
    fill(&mut options.endpoint_url, &defaults.endpoint_url);
    fill(&mut options.region, &defaults.region);
    fill(&mut options.expected_bucket_owner, &defaults.expected_bucket_owner);
    if same_endpoint {
        options.force_path_style |= defaults.force_path_style;
        options.upload_checksums = defaults.upload_checksums;
        if options.ca_bundle.is_none() {
            options.ca_bundle.clone_from(&defaults.ca_bundle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::role::tests::{defaults, publish};
    use super::*;

    fn published(mount_flags: Vec<String>) -> Result<Volume, Error> {
        let mut publish = publish(&[]);
        publish.capability.mount_flags = mount_flags;
        Volume::parse(&publish, &defaults(None, false), None)
    }

    /// The mounter keeps them in memory, for each of a thousand volumes.
    #[test]
    fn settings_that_take_much_memory_are_refused() {
        let long = |bytes: usize| vec![format!("storage-class={}", "x".repeat(bytes))];
        published(long(PUBLISH_MAX / 2)).unwrap();
        let Err(Error::Invalid(text)) = published(long(PUBLISH_MAX)) else { panic!("taken") };
        assert!(text.contains("the settings of the volume take"), "{text}");
    }

    #[test]
    fn a_volume_has_the_region_of_its_node_unless_it_says_no_or_is_elsewhere() {
        let near = |attributes: &[(&str, &str)], has_region| {
            let defaults = Defaults { has_region, ..defaults(None, false) };
            let settings = Volume::parse(&publish(attributes), &defaults, None).unwrap().settings;
            (settings.near, settings.s3.region)
        };
        let amazons = Some("us-east-1".to_owned());
        assert_eq!(near(&[], true), (true, amazons.clone()));
        assert_eq!(near(&[], false), (false, amazons.clone()));
        assert_eq!(near(&[("endpointUrl", "http://other")], true), (false, amazons));
        assert_eq!(near(&[("region", "off")], true), (false, None));
    }

    #[test]
    fn a_volume_follows_the_feed_of_its_node_unless_it_says_no_or_is_elsewhere() {
        let follows = |attributes: &[(&str, &str)]| {
            let volume = Volume::parse(&publish(attributes), &defaults(None, false), None);
            volume.map(|volume| volume.settings)
        };
        let (with, without) = (follows(&[]).unwrap(), follows(&[("feed", "off")]).unwrap());
        assert!(with.session.names.feed && !without.session.names.feed);
        assert!(with.serves_as(&without), "its pods need not start anew for that");
        assert!(!follows(&[("endpointUrl", "http://other")]).unwrap().session.names.feed);
        assert!(follows(&[("feed", "on")]).unwrap_err().to_string().contains("off"));
    }
}
