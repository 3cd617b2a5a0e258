//! Why a call fails, in the terms of the specification.

use tonic::{Code, Status};

/// Longest text of a failed call, in bytes: it goes into a header, and into an Event about the pod.
const TEXT_MAX: usize = 1024;

/// A failed call. The text says what is wrong, where, and what to do; it holds no secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The volume, or what it is made of, is not there.
    #[error("{0}")]
    NotFound(String),
    /// It is there, but not as asked for.
    #[error("{0}")]
    Exists(String),
    /// Another call for the same volume has not ended yet.
    #[error("another call for {0} has not ended yet; it is to be repeated")]
    Busy(String),
    /// Something must be done first.
    #[error("{0}")]
    Precondition(String),
    /// The credentials were refused.
    #[error("{0}")]
    Denied(String),
    /// Something is not there now, but may be later.
    #[error("{0}")]
    Unavailable(String),
    /// No more is allowed.
    #[error("{0}")]
    Exhausted(String),
    /// This plugin does not do that.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The gRPC code. Fact: CSI specification, "Error Scheme".
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Busy(_) => Code::Aborted,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Denied(_) => Code::PermissionDenied,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        // What it repeats was written by whoever asked.
        let text = error.to_string();
        let cut = text.floor_char_boundary(TEXT_MAX);
        let mut line: String =
            text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if cut < text.len() {
            line.push_str(" ...");
        }
        Self::new(error.code(), line)
    }
}
