//! What is checked before anything is mounted, and what is mounted although its origin is away.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rand::Rng;
use weir_fuse::engine::{Answer, Engine};
use weir_fuse::model::key::DirPrefix;
use weir_fuse::model::version::BucketId;
use weir_fuse::namespace::NamespaceSettings;
use weir_fuse::origin::s3::S3Settings;
use weir_fuse::origin::{ListRequest, Origin, OriginError};

use crate::exit::{Failure, Kind};

/// How long the origin is waited for where the cache can do without it.
const PATIENCE: Duration = Duration::from_secs(10);
/// An origin that is away is asked again after as many seconds: many nodes ask it.
const AGAIN_AFTER_S: std::ops::Range<u64> = 5..10;

/// What becomes of a mount whose origin cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MountPolicy {
    /// It fails.
    Strict,
    /// It begins with what is cached, where the origin has listed it to the same credentials before.
    Cached,
}

impl MountPolicy {
    /// That of a volume: where it says nothing, a pod that starts again finds what it had.
    ///
    /// # Errors
    /// What is wrong with what it says.
    pub fn of_volume(given: Option<&str>) -> Result<Self, String> {
        let Some(given) = given else { return Ok(Self::Cached) };
        let unknown = |_| format!("mountPolicy {given:?} is unknown; known are strict and cached");
        Self::from_str(given, false).map_err(unknown)
    }
}

/// How a mount begins.
#[derive(Debug)]
pub enum Start {
    /// The origin has shown that it can.
    Proven,
    /// Without the origin, which failed like this.
    Away(OriginError),
}

/// Why a bucket cannot be mounted.
#[derive(Debug)]
pub enum Unfit {
    /// What the origin said, or that it did not.
    Origin(OriginError),
    /// Where the prefix should be there is an object with this key.
    Object(String),
}

/// What is to be mounted.
pub struct Wanted<'a> {
    /// With which cache.
    pub engine: &'a Engine,
    /// The bucket, as the cache names it.
    pub bucket: &'a BucketId,
    /// Its settings.
    pub s3: &'a S3Settings,
    /// What of it, and with whose credentials.
    pub names: &'a NamespaceSettings,
    /// What is to become of it without its origin.
    pub policy: MountPolicy,
}

impl Wanted<'_> {
    /// How it begins, by what [`look`] says.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub async fn start(
        &self,
        look: impl Future<Output = Result<(), Unfit>>,
    ) -> Result<Start, Failure> {
        tokio::pin!(look);
        let looked = match tokio::time::timeout(PATIENCE, &mut look).await {
            Ok(looked) => looked,
            Err(_) if self.can_begin_away().await => return Ok(Start::Away(OriginError::TimedOut)),
            Err(_) => look.await,
        };
        match looked {
            Ok(()) => Ok(Start::Proven),
            Err(Unfit::Origin(error)) if error.is_outage() && self.can_begin_away().await => {
                Ok(Start::Away(error))
            }
            Err(unfit) => {
                if let Unfit::Origin(error) = &unfit {
                    self.engine.note_refusal(self.bucket, self.names, error).await;
                }
                Err(self.failure(&unfit))
            }
        }
    }

    async fn can_begin_away(&self) -> bool {
        self.policy == MountPolicy::Cached
            && self.engine.can_begin_away(self.bucket, self.names).await
    }

    fn failure(&self, unfit: &Unfit) -> Failure {
        let mut failure = unfit.explain(self.s3);
        let is_outage = matches!(unfit, Unfit::Origin(error) if error.is_outage());
        if is_outage && self.policy == MountPolicy::Cached {
            failure.text.push_str("; nothing is cached that these credentials may be shown");
        }
        failure
    }
}

impl Unfit {
    /// As a person is told.
    pub fn explain(&self, s3: &S3Settings) -> Failure {
        match self {
            Self::Origin(error) => explain(error, s3),
            Self::Object(key) => {
                let bucket = &s3.bucket;
                let text = format!(
                    "s3://{bucket}/{key} is an object, not a prefix; mount s3://{bucket} or the \
                     prefix that it is in"
                );
                Failure::new(Kind::Bucket, text)
            }
        }
    }
}

/// Asks the bucket for one key of the prefix: that shows the endpoint, the credentials, the
/// bucket and whether the prefix is a directory.
///
/// # Errors
/// What is wrong.
pub async fn look(origin: &dyn Origin, prefix: &DirPrefix) -> Result<(), Unfit> {
    let request = ListRequest {
        prefix: prefix.as_str().to_owned(),
        delimited: true,
        token: None,
        max_keys: 1,
    };
    let page = origin.list(&request).await.map_err(Unfit::Origin)?;
    if page.objects.is_empty() && page.prefixes.is_empty() && !prefix.is_root() {
        look_for_a_file(origin, prefix).await?;
    }
    Ok(())
}

/// A prefix without keys may become a directory, unless an object has its name.
async fn look_for_a_file(origin: &dyn Origin, prefix: &DirPrefix) -> Result<(), Unfit> {
    let key = prefix.as_str().trim_end_matches('/');
    match origin.head(key).await {
        Ok(_) => Err(Unfit::Object(key.to_owned())),
        // Not to be allowed to look is no reason not to mount.
        Err(OriginError::NotFound | OriginError::Denied(_)) => Ok(()),
        Err(error) => Err(Unfit::Origin(error)),
    }
}

/// Asks until the origin says whether what began without it may go on.
pub async fn answer(origin: Arc<dyn Origin>, prefix: DirPrefix) -> Answer {
    loop {
        match look(&*origin, &prefix).await {
            Ok(()) | Err(Unfit::Object(_)) => return Answer::Allowed,
            Err(Unfit::Origin(error)) if error.is_denial() => return Answer::Refused(error),
            Err(Unfit::Origin(_)) => {}
        }
        let pause = rand::rng().random_range(AGAIN_AFTER_S);
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
}

/// The failure that an error of the first request is.
pub fn explain(error: &OriginError, s3: &S3Settings) -> Failure {
    Failure::of_origin(error, &s3.bucket, s3.endpoint_url.as_deref())
}
