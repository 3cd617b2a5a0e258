//! Volumes as prefixes. A volume's marker, the object named by its prefix, says whose it is and
//! whether what lies below may be removed with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use aws_credential_types::provider::SharedCredentialsProvider;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use weir_csi::backend::Volume;
use weir_csi::request::{Create, Secrets, Validate, VolumeId};
use weir_csi::{ControllerBackend, Error};
use weir_fuse::metrics::Metrics;
use weir_fuse::model::key::DirPrefix;
use weir_fuse::namespace::pages::{Pages, has_below};
use weir_fuse::origin::s3::S3Settings;
use weir_fuse::origin::{Condition, Origin, OriginError, UploadBody, WriteIntent};

use super::handle::Handle;
use super::parameters::Parameters;
use crate::assembly;
use crate::cli::S3Args;
use crate::config::s3;
use crate::csi::failed;
use crate::node::Keys;
use crate::topology::labels::{GPU_PRODUCT, NVLINK_DOMAIN, ZONE};

/// Deletes under way at once.
const DELETES_MAX: usize = 32;

/// Makes and removes volumes.
pub(super) struct Provisioner {
    defaults: S3Args,
    counted: Arc<Metrics>,
}

/// What a marker says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Marker {
    /// Hash of the volume's name.
    name: String,
    capacity: u64,
    /// Whether the prefix was empty when the volume was made, so that all below is its own.
    owns: bool,
}

impl Marker {
    fn new(create: &Create, owns: bool) -> Self {
        let hash = Sha256::digest(create.name.as_str().as_bytes());
        let name = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Self { name, capacity: create.required_bytes, owns }
    }

    fn write(&self) -> String {
        let Self { name, capacity, owns } = self;
        format!("volume-{name}-{capacity}-{}", if *owns { "own" } else { "found" })
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("volume-")?.split('-');
        let name = parts.next()?.to_owned();
        let capacity = parts.next()?.parse().ok()?;
        let owns = match parts.next()? {
            "own" => true,
            "found" => false,
            _ => return None,
        };
        Some(Self { name, capacity, owns })
    }
}

impl Provisioner {
    pub(super) fn new(defaults: S3Args, counted: Arc<Metrics>) -> Self {
        Self { defaults, counted }
    }

    async fn origin(
        &self,
        bucket: &str,
        endpoint: Option<&str>,
        region: Option<&str>,
        secrets: &Secrets,
    ) -> Result<(Arc<dyn Origin>, S3Settings), Error> {
        let keys = Keys::of_secrets(secrets)?;
        let mut options = self.defaults.clone();
        let said = |own: Option<&str>| own.map(str::to_owned);
        let of_secret = keys.as_ref().map(Keys::place).unwrap_or_default();
        options.endpoint_url = said(endpoint).or(of_secret.0).or(options.endpoint_url);
        options.region = said(region).or(of_secret.1).or(options.region);
        let mut settings = s3::s3_settings(bucket.to_owned(), &options).map_err(failed)?;
        settings.credentials = keys.map(|keys| SharedCredentialsProvider::new(keys.credentials()));
        let (origin, _) = assembly::origin(settings.clone(), &self.counted, None)
            .await
            .map_err(|error| explain(&error, &settings))?;
        Ok((origin, settings))
    }

    async fn origin_of(
        &self,
        handle: &Handle,
        secrets: &Secrets,
    ) -> Result<(Arc<dyn Origin>, S3Settings), Error> {
        let Handle { bucket, endpoint, region, .. } = handle;
        self.origin(bucket, endpoint.as_deref(), region.as_deref(), secrets).await
    }
}

fn explain(error: &OriginError, s3: &S3Settings) -> Error {
    failed(crate::mount::preflight::explain(error, s3))
}

async fn marker(origin: &dyn Origin, key: &str) -> Result<Option<Option<Marker>>, OriginError> {
    match origin.head(key).await {
        Ok(info) => Ok(Some(info.writer.as_deref().and_then(Marker::read))),
        Err(OriginError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes all keys below a prefix, which never is the whole bucket; the marker is left.
async fn remove_below(origin: &dyn Origin, prefix: &DirPrefix) -> Result<(), OriginError> {
    let marker = prefix.as_str();
    loop {
        let mut removed = false;
        let mut pages = Pages::of_tree(origin, prefix, 1000);
        while let Some(page) = pages.next().await? {
            let below = page.objects.into_iter().map(|(key, _)| key);
            let below: Vec<_> =
                below.filter(|key| key != marker && key.starts_with(marker)).collect();
            removed |= !below.is_empty();
            stream::iter(below)
                .map(Ok)
                .try_for_each_concurrent(DELETES_MAX, |key| async move {
                    origin.delete(&key, &Condition::Always).await
                })
                .await?;
        }
        if !removed {
            return Ok(());
        }
    }
}

/// Where a volume may be used. S3 is reachable everywhere, so only where its class says so. The
/// provisioner names every key of a node where the class names none; a class names some of them.
/// Of those, all that were named: each returned segment becomes a required node affinity.
fn accessible(create: &Create) -> Vec<BTreeMap<String, String>> {
    let Some(topologies) = &create.topologies else { return Vec::new() };
    let all = match topologies.requisite.is_empty() {
        true => &topologies.preferred,
        false => &topologies.requisite,
    };
    let is_whole = |segments: &BTreeMap<String, String>| {
        [GPU_PRODUCT, NVLINK_DOMAIN, ZONE].iter().all(|key| segments.contains_key(*key))
    };
    if all.iter().any(is_whole) {
        return Vec::new();
    }
    // The preferred ones first.
    let mut named: Vec<BTreeMap<String, String>> = Vec::new();
    let preferred = topologies.preferred.iter().filter(|segments| all.contains(segments));
    for segments in preferred.chain(all) {
        if !segments.is_empty() && !named.contains(segments) {
            named.push(segments.clone());
        }
    }
    named
}

#[async_trait]
impl ControllerBackend for Provisioner {
    async fn create(&self, create: Create) -> Result<Volume, Error> {
        let Parameters { handle, context } = Parameters::parse(&create)?;
        let (origin, s3) = self.origin_of(&handle, &create.secrets).await?;
        let explain = |error: OriginError| explain(&error, &s3);
        let key = handle.prefix.as_str();
        let owns = !has_below(&*origin, &handle.prefix, true).await.map_err(explain)?;
        let wanted = Marker::new(&create, owns);
        let intent = WriteIntent { condition: Condition::Absent, writer: wanted.write() };
        let found = match marker(&*origin, key).await.map_err(explain)? {
            None => match origin.put(key, UploadBody::empty(), &intent).await {
                Ok(_) => Some(Some(wanted.clone())),
                Err(OriginError::Conflict) => marker(&*origin, key).await.map_err(explain)?,
                Err(error) => return Err(explain(error)),
            },
            found => found,
        };
        let fits = |capacity: u64| {
            capacity >= create.required_bytes && create.limit_bytes.is_none_or(|l| capacity <= l)
        };
        let capacity_bytes = match found.flatten() {
            Some(there) if there.name == wanted.name && fits(there.capacity) => there.capacity,
            Some(there) if there.name == wanted.name => {
                return Err(Error::Exists(format!(
                    "{} exists with {} bytes",
                    create.name.as_str(),
                    there.capacity
                )));
            }
            Some(_) => {
                return Err(Error::Exists(format!("{handle} belongs to another volume")));
            }
            None => {
                return Err(Error::Exists(format!(
                    "{handle} is a directory that was not made for a volume; give the class \
                     another prefix or pathPattern, or write a static PersistentVolume for it"
                )));
            }
        };
        let id = VolumeId::parse(handle.to_string())?;
        Ok(Volume { id, capacity_bytes, context, segments: accessible(&create) })
    }

    async fn delete(&self, id: VolumeId, secrets: Secrets) -> Result<(), Error> {
        let Some(handle) = Handle::parse(id.as_str()) else {
            tracing::info!(%id, "not made by this driver: nothing is removed");
            return Ok(());
        };
        let (origin, s3) = self.origin_of(&handle, &secrets).await?;
        let explain = |error: OriginError| explain(&error, &s3);
        let key = handle.prefix.as_str();
        let there = match marker(&*origin, key).await {
            Err(OriginError::NoSuchBucket) => return Ok(()),
            there => there.map_err(explain)?,
        };
        match there.flatten() {
            None => {
                tracing::info!(%id, "no marker: it owns nothing, and nothing is removed");
                return Ok(());
            }
            Some(marker) if marker.owns => {
                remove_below(&*origin, &handle.prefix).await.map_err(explain)?;
            }
            Some(_) => tracing::info!(%id, "there were objects before it: they are left"),
        }
        origin.delete(key, &Condition::Always).await.map_err(explain)
    }

    async fn validate(&self, validate: Validate) -> Result<(), Error> {
        let absent = |what: &str| Error::NotFound(format!("volume {}: {what}", validate.volume_id));
        if let Some(handle) = Handle::parse(validate.volume_id.as_str()) {
            let (origin, s3) = self.origin_of(&handle, &validate.secrets).await?;
            return match marker(&*origin, handle.prefix.as_str()).await {
                Ok(Some(Some(_))) => Ok(()),
                Ok(_) => Err(absent("its marker is gone")),
                Err(error) => Err(explain(&error, &s3)),
            };
        }
        let Some(bucket) = validate.context.get("bucketName") else {
            return Err(absent("it was not made here, and names no bucket"));
        };
        let get = |key| validate.context.get(key);
        let (origin, s3) =
            self.origin(bucket, get("endpointUrl"), get("region"), &validate.secrets).await?;
        let asked = has_below(&*origin, &DirPrefix::root(), false).await;
        asked.map(|_| ()).map_err(|error| explain(&error, &s3))
    }
}

#[cfg(test)]
mod tests {
    use weir_csi::request::{Context, Topologies, VolumeName};
    use weir_fuse::origin::ListRequest;
    use weir_fuse::origin::faulty::{Fault, Faulty, Op};
    use weir_fuse::origin::memory::MemoryOrigin;

    use super::*;

    #[test]
    fn a_volume_is_where_its_class_says_and_nowhere_less() {
        let segments = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let accessible = |requisite: &[&BTreeMap<String, String>],
                          preferred: &[&BTreeMap<String, String>]| {
            let owned =
                |all: &[&BTreeMap<String, String>]| all.iter().map(|s| (*s).clone()).collect();
            accessible(&Create {
                name: VolumeName::parse("v".into()).unwrap(),
                required_bytes: 0,
                limit_bytes: None,
                capabilities: Vec::new(),
                parameters: Context::parse(BTreeMap::new(), "parameters").unwrap(),
                secrets: Secrets::parse(BTreeMap::new()).unwrap(),
                topologies: Some(Topologies {
                    requisite: owned(requisite),
                    preferred: owned(preferred),
                }),
            })
        };
        let (h100, h200) =
            (&segments(&[(GPU_PRODUCT, "H100")]), &segments(&[(GPU_PRODUCT, "H200")]));
        let whole = &segments(&[(GPU_PRODUCT, "H100"), (NVLINK_DOMAIN, "none"), (ZONE, "a")]);
        assert!(accessible(&[whole], &[whole]).is_empty());
        assert!(accessible(&[h100], &[h100]).iter().eq([h100]));
        assert!(accessible(&[h100, h200], &[h200]).iter().eq([h200, h100]));
        assert!(accessible(&[], &[h200]).iter().eq([h200]));
        assert!(accessible(&[], &[]).is_empty());
    }

    #[test]
    fn a_marker_is_read_back() {
        let marker = Marker { name: "0a1b".into(), capacity: 7, owns: false };
        assert_eq!(Marker::read(&marker.write()), Some(marker));
        for other in ["", "volume-", "volume-a-b-own", "volume-a-1-else", "nonce"] {
            assert_eq!(Marker::read(other), None);
        }
    }

    #[tokio::test]
    async fn only_what_lies_below_is_removed() {
        let origin = MemoryOrigin::new("bucket");
        for key in ["a/", "a/x", "a/b/y", "ab", "a", "b/a/x"] {
            origin.insert(key, "bytes");
        }
        let origin = Faulty::new(Arc::new(origin));
        origin.inject_once(Op::List, Fault::EmptyPage);
        remove_below(&origin, &DirPrefix::parse("a/").unwrap()).await.unwrap();
        let request =
            ListRequest { prefix: String::new(), delimited: false, token: None, max_keys: 1000 };
        let left = origin.list(&request).await.unwrap().objects;
        let left: Vec<_> = left.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(left, ["a", "a/", "ab", "b/a/x"]);
    }
}
