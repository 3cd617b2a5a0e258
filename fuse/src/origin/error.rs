//! What can go wrong at the origin, by what it means for the caller.

use std::error::Error as StdError;

use rustix::io::Errno;

/// Longest text of an error, in bytes. Texts go into logs and Events.
const TEXT_MAX: usize = 512;

/// What servers call a body that is not what its checksum says: it was damaged on its way.
pub(super) const DIGEST_CODES: [&str; 4] =
    ["BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"];

/// What servers say when they do not take the credentials as such, whatever they were used for.
pub(super) const ACCOUNT_CODES: [&str; 8] = [
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "AccountProblem",
    "XAdminUserNotFound",
];

/// A failed request to the origin.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OriginError {
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// No such bucket.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// The object is no longer the version asked for.
    #[error("the object was replaced or deleted meanwhile")]
    Changed,
    /// The condition of a write did not hold.
    #[error("the object was written by somebody else meanwhile")]
    Conflict,
    /// The completion of an upload met another write of the same key (S3 says 409). The upload
    /// is of no use any more: who still wants to write begins a new one.
    #[error("another write of the object was under way ({0}); the upload must be begun anew")]
    UploadClash(String),
    /// The multipart upload is gone.
    #[error("the multipart upload does not exist any more")]
    NoSuchUpload,
    /// Refused: wrong or missing credentials, or no permission. Holds the S3 error code.
    #[error("access denied ({0})")]
    Denied(String),
    /// No credentials could be found.
    #[error("no credentials: {0}")]
    NoCredentials(String),
    /// The bucket is in another region. Holds that region if the server named it.
    #[error("the bucket is in another region{}", .0.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    WrongRegion(Option<String>),
    /// The server does not know this operation or header.
    #[error("the endpoint does not support this ({0})")]
    Unsupported(String),
    /// Larger than S3 takes.
    #[error("too large for the bucket ({0})")]
    TooLarge(String),
    /// The store is full, or a quota is used up.
    #[error("no space left in the bucket ({0})")]
    NoSpace(String),
    /// A request that the server calls malformed.
    #[error("the endpoint refused the request ({0})")]
    Invalid(String),
    /// What came is not an S3 answer.
    #[error("the endpoint does not answer as an S3 server ({0})")]
    NotS3(String),
    /// The bytes that came are not the ones announced.
    #[error("damaged or short body: {0}")]
    BadBody(String),
    /// Slow down, internal error, unavailable: worth another try.
    #[error("the endpoint is overloaded or failing ({0})")]
    Unavailable(String),
    /// There is no room for its answer beside those that others wait for.
    #[error("too many answers are under way ({0})")]
    Busy(String),
    /// No connection.
    #[error("the endpoint cannot be reached: {0}")]
    Unreachable(String),
    /// Nothing came in time.
    #[error("the endpoint did not answer in time")]
    TimedOut,
}

impl OriginError {
    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::BadBody(_)
            | Self::Unavailable(_)
            | Self::Busy(_)
            | Self::Unreachable(_)
            | Self::TimedOut => true,
            Self::NotFound
            | Self::NoSuchBucket
            | Self::Changed
            | Self::Conflict
            | Self::UploadClash(_)
            | Self::NoSuchUpload
            | Self::Denied(_)
            | Self::NoCredentials(_)
            | Self::WrongRegion(_)
            | Self::Unsupported(_)
            | Self::TooLarge(_)
            | Self::NoSpace(_)
            | Self::Invalid(_)
            | Self::NotS3(_) => false,
        }
    }

    /// Whether the server found that a body is not what its checksum says.
    pub fn is_digest_mismatch(&self) -> bool {
        matches!(self, Self::Unavailable(code) if DIGEST_CODES.contains(&code.as_str()))
    }

    /// Whether the bytes are archived, so that nobody can have them now: that says nothing of who
    /// asked (S3's `InvalidObjectState`).
    pub fn is_archived(&self) -> bool {
        matches!(self, Self::Denied(code) if code == "InvalidObjectState")
    }

    /// Whether it is about who asked: other credentials may be given another answer.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::NoCredentials(_))
    }

    /// Whether the origin has said that what was asked for may not be seen, or is gone with its bucket.
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::NoSuchBucket)
    }

    /// Whether the credentials are refused as such, and not for what they were used for.
    pub fn is_about_account(&self) -> bool {
        match self {
            Self::NoCredentials(_) => true,
            Self::Denied(code) => ACCOUNT_CODES.contains(&code.as_str()),
            _ => false,
        }
    }

    /// Whether the origin as a whole is not answering, so that what is cached may be shown
    /// although its lifetime is over.
    pub fn is_outage(&self) -> bool {
        let is_failing =
            matches!(self, Self::Unavailable(_) | Self::Unreachable(_) | Self::TimedOut);
        is_failing && !self.is_digest_mismatch()
    }

    /// The errno that a process sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound | Self::NoSuchBucket => Errno::NOENT,
            Self::Changed | Self::Conflict => Errno::STALE,
            Self::Denied(_) | Self::NoCredentials(_) => Errno::ACCESS,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::TooLarge(_) => Errno::FBIG,
            Self::NoSpace(_) => Errno::NOSPC,
            Self::Invalid(_) => Errno::INVAL,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::UploadClash(_)
            | Self::NoSuchUpload
            | Self::WrongRegion(_)
            | Self::NotS3(_)
            | Self::BadBody(_)
            | Self::Unavailable(_)
            | Self::Busy(_)
            | Self::Unreachable(_) => Errno::IO,
        }
    }
}

/// The causes of an error, outermost first, in one line.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let message = inner.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = inner.source();
    }
    one_line(&text)
}

/// A text that a server may have written parts of, as it can be shown.
pub(super) fn one_line(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(TEXT_MAX)];
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
