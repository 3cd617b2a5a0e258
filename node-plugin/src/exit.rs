//! How a command fails: one line, and an exit code by kind.

use std::process::ExitCode;

use weir_fuse::adapter::MountError;
use weir_fuse::cache::CacheError;
use weir_fuse::origin::OriginError;

/// What kind of thing went wrong. The number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Anything not named below.
    Other = 1,
    /// The command line: unknown, missing or contradictory options.
    Usage = 2,
    /// No credentials, or they are refused.
    Credentials = 3,
    /// The bucket or prefix is not there, or not usable as a directory.
    Bucket = 4,
    /// The endpoint cannot be reached or does not speak S3.
    Endpoint = 5,
    /// The mountpoint is missing, taken or not empty.
    Mountpoint = 6,
    /// The cache directory cannot be used.
    Cache = 7,
    /// No FUSE, or no right to mount.
    Kernel = 8,
}

impl Kind {
    /// The exit code.
    pub fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// What aws-config says of a profile's `credential_process` where the kernel lets no program be started.
const NOT_STARTED: &str = "from external process: Operation not permitted";

/// A failure as a person sees it.
#[derive(Debug)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// One line: what, where, and what to do.
    pub text: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Prints the line and gives the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("weir: {}", self.text);
        self.kind.code()
    }

    /// What a failing first request to the bucket means.
    pub fn of_origin(error: &OriginError, bucket: &str, endpoint: Option<&str>) -> Self {
        let place = match endpoint {
            Some(url) => format!("bucket {bucket} at {url}"),
            None => format!("bucket {bucket}"),
        };
        let (kind, advice) = match error {
            OriginError::NoSuchBucket => {
                (Kind::Bucket, "check the name, the region and --endpoint-url")
            }
            OriginError::Denied(_) => (
                Kind::Credentials,
                "check the credentials (AWS_ACCESS_KEY_ID, --profile, an IAM role) and their \
                 right to s3:ListBucket and s3:GetObject",
            ),
            OriginError::NoCredentials(text) if text.contains(NOT_STARTED) => (
                Kind::Credentials,
                "the profile has its keys from a program (credential_process), and none is started \
                 on Kubernetes: use keys in a Secret, an IAM role, or a profile with keys",
            ),
            OriginError::NoCredentials(_) => (
                Kind::Credentials,
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, --profile, or \
                 --no-sign-request for a public bucket",
            ),
            OriginError::WrongRegion(_) => (Kind::Endpoint, "set --region to the bucket's region"),
            OriginError::Unreachable(_) | OriginError::TimedOut | OriginError::Unavailable(_) => {
                (Kind::Endpoint, "check --endpoint-url and the network")
            }
            OriginError::NotS3(_) | OriginError::Unsupported(_) | OriginError::BadBody(_) => {
                (Kind::Endpoint, "check that --endpoint-url names an S3 server")
            }
            OriginError::Invalid(_) => (Kind::Usage, "check --region and --endpoint-url"),
            _ => (Kind::Other, "see the log"),
        };
        Self::new(kind, format!("{place}: {error}; {advice}"))
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::new(Kind::Cache, error.to_string())
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        let kind = match error {
            MountError::Unusable(..) | MountError::Taken(..) | MountError::NotEmpty(_) => {
                Kind::Mountpoint
            }
            MountError::NoDevice(_) | MountError::NotPermitted => Kind::Kernel,
            MountError::Context(_) | MountError::Failed(..) => Kind::Other,
        };
        Self::new(kind, error.to_string())
    }
}
