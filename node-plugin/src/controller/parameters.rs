//! Parameters of a StorageClass.

use std::collections::BTreeMap;

use weir_csi::Error;
use weir_csi::request::{Create, VolumeId};
use weir_fuse::model::key::DirPrefix;

use super::handle::Handle;
use crate::config::{feed, s3, view};
use crate::mount::preflight::MountPolicy;

/// Parameters that a class may have.
const KNOWN: [&str; 10] = [
    "bucketName",
    "prefix",
    "pathPattern",
    "endpointUrl",
    "region",
    "authenticationSource",
    "stsRegion",
    "roleArn",
    "mountPolicy",
    "feed",
];
/// Those that a volume gets as they are.
const PASSED_ON: [&str; 7] = [
    "endpointUrl",
    "region",
    "authenticationSource",
    "stsRegion",
    "roleArn",
    "mountPolicy",
    "feed",
];
/// What the provisioner adds begins so.
const PROVISIONER: &str = "csi.storage.k8s.io/";

/// What a class says about a volume.
pub(super) struct Parameters {
    pub(super) handle: Handle,
    /// Attributes that the volume gets.
    pub(super) context: BTreeMap<String, String>,
}

impl Parameters {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the parameter.
    pub(super) fn parse(create: &Create) -> Result<Self, Error> {
        let parameters = create.parameters.as_map();
        let unknown =
            |key: &&String| !KNOWN.contains(&key.as_str()) && !key.starts_with(PROVISIONER);
        if let Some(key) = parameters.keys().find(unknown) {
            return Err(Error::Invalid(format!(
                "parameters: {key} is unknown; known are {}",
                KNOWN.join(", ")
            )));
        }
        let get = |key: &str| create.parameters.get(key).filter(|value| !value.is_empty());
        let bucket = get("bucketName")
            .ok_or_else(|| Error::Invalid("parameters: bucketName is missing".into()))?;
        if !s3::is_bucket_name(bucket) {
            return Err(Error::Invalid(format!("bucketName {bucket:?} is no bucket name")));
        }
        let name = match get("pathPattern") {
            None => create.name.as_str().to_owned(),
            Some(pattern) => expand(pattern, create)?,
        };
        let base = get("prefix").unwrap_or_default().trim_end_matches('/');
        let path = if base.is_empty() { name } else { format!("{base}/{name}") };
        let prefix = own_prefix(&path)?;
        let handle = Handle {
            bucket: bucket.to_owned(),
            prefix: prefix.clone(),
            endpoint: get("endpointUrl").map(str::to_owned),
            region: get("region").map(str::to_owned),
        };
        VolumeId::parse(handle.to_string()).map_err(|error| {
            Error::Invalid(format!(
                "{error}: prefix, pathPattern and endpointUrl are parts of it, and one of them is too \
                 long"
            ))
        })?;
        let mut context = BTreeMap::from([
            ("bucketName".to_owned(), bucket.to_owned()),
            ("prefix".to_owned(), prefix.as_str().to_owned()),
        ]);
        MountPolicy::of_volume(get("mountPolicy")).map_err(Error::Invalid)?;
        feed::of_volume(get("feed")).map_err(Error::Invalid)?;
        for key in PASSED_ON {
            if let Some(value) = get(key) {
                context.insert(key.to_owned(), value.to_owned());
            }
        }
        Ok(Self { handle, context })
    }
}

/// A prefix that is one volume's: not the whole bucket, and no way out of it.
fn own_prefix(path: &str) -> Result<DirPrefix, Error> {
    let prefix = view::prefix(path).map_err(|failure| Error::Invalid(failure.text))?;
    if prefix.is_root() {
        return Err(Error::Invalid("pathPattern gives an empty path".into()));
    }
    Ok(prefix)
}

/// Fills in `${.pvc.namespace}`, `${.pvc.name}` and `${.pv.name}`.
fn expand(pattern: &str, create: &Create) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = pattern;
    let mut is_first = true;
    while let Some((before, after)) = rest.split_once("${") {
        let (field, tail) = after.split_once('}').ok_or_else(|| {
            Error::Invalid(format!("pathPattern {pattern:?}: a brace is not closed"))
        })?;
        let key = match field.trim() {
            ".pvc.namespace" => "csi.storage.k8s.io/pvc/namespace",
            ".pvc.name" => "csi.storage.k8s.io/pvc/name",
            ".pv.name" => "csi.storage.k8s.io/pv/name",
            other => {
                return Err(Error::Invalid(format!(
                    "pathPattern: ${{{other}}} is unknown; known are ${{.pvc.namespace}}, \
                     ${{.pvc.name}} and ${{.pv.name}}"
                )));
            }
        };
        let value = create.parameters.get(key).ok_or_else(|| {
            Error::Invalid(format!(
                "pathPattern: {key} was not given; the provisioner needs --extra-create-metadata"
            ))
        })?;
        if !is_first && !before.contains('/') {
            return Err(Error::Invalid(format!(
                "pathPattern {pattern:?}: two fields without a / between them; other values could \
                 give the same path"
            )));
        }
        is_first = false;
        out.push_str(before);
        out.push_str(value);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use weir_csi::request::{Context, Secrets, VolumeName};

    use super::*;

    fn create(parameters: &[(&str, &str)]) -> Create {
        let parameters = parameters.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        Create {
            name: VolumeName::parse("v".into()).unwrap(),
            required_bytes: 0,
            limit_bytes: None,
            capabilities: Vec::new(),
            parameters: Context::parse(parameters.collect(), "parameters").unwrap(),
            secrets: Secrets::parse(BTreeMap::new()).unwrap(),
            topologies: None,
        }
    }

    #[test]
    fn a_volume_has_the_mount_policy_of_its_class() {
        let of = |policy| {
            let create = create(&[("bucketName", "bucket"), ("mountPolicy", policy)]);
            Parameters::parse(&create).map(|parsed| parsed.context.get("mountPolicy").cloned())
        };
        assert_eq!(of("strict").unwrap().as_deref(), Some("strict"));
        assert_eq!(of("").unwrap(), None);
        assert!(of("lax").unwrap_err().to_string().contains("known are strict and cached"));
    }

    #[test]
    fn two_fields_are_kept_apart_by_a_slash() {
        let expanded = |pattern: &str| {
            let create = create(&[
                ("csi.storage.k8s.io/pvc/namespace", "a"),
                ("csi.storage.k8s.io/pvc/name", "b-c"),
                ("csi.storage.k8s.io/pv/name", "pvc-1"),
            ]);
            expand(pattern, &create).map_err(|error| error.to_string())
        };
        assert_eq!(expanded("x-${.pvc.namespace}/${.pvc.name}-y").unwrap(), "x-a/b-c-y");
        for pattern in [
            "${.pvc.namespace}-${.pvc.name}",
            "${.pvc.namespace}${.pvc.name}",
            "${.pvc.namespace}/${.pvc.name}-${.pv.name}",
        ] {
            assert!(expanded(pattern).unwrap_err().contains("without a /"), "{pattern}");
        }
    }
}
