//! From what the SDK reports to [`OriginError`].

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::bound::{TooLong, TooMany};
use crate::origin::OriginError;
use crate::origin::error::{ACCOUNT_CODES, DIGEST_CODES, chain};

/// What kind of request failed: the same status means different things.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// HEAD.
    Read,
    /// GET with If-Match.
    Pinned,
    /// As `Pinned`, of a server that need not have the object.
    Replica,
    /// A listing: an unknown 404 is no S3 answer.
    List,
    /// Copy of a whole object.
    Copy,
    /// Completion of an upload.
    Complete,
    /// Anything else that changes the bucket.
    Write,
}

/// Longest code that a server may give an error, in bytes.
const CODE_MAX: usize = 64;

/// Whether a text can be a code of an error, or the name of a region.
fn is_word(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    text.len() <= CODE_MAX && text.bytes().all(allowed)
}

fn finds<E: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<E>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

pub(super) fn of<E>(request: Request, error: &SdkError<E, HttpResponse>) -> OriginError
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::TimeoutError(_) => OriginError::TimedOut,
        SdkError::DispatchFailure(failure) => {
            let cause = failure.as_connector_error();
            let text = cause.map_or_else(|| "connection failed".to_owned(), |e| chain(e));
            match cause {
                Some(e) if finds::<CredentialsError>(e) => OriginError::NoCredentials(text),
                Some(e) if finds::<TooLong>(e) => OriginError::NotS3(text),
                Some(e) if finds::<TooMany>(e) => OriginError::Busy(text),
                Some(e) if e.is_timeout() => OriginError::TimedOut,
                _ => OriginError::Unreachable(text),
            }
        }
        SdkError::ConstructionFailure(_) if finds::<CredentialsError>(error) => {
            OriginError::NoCredentials(chain(error))
        }
        SdkError::ConstructionFailure(_) => OriginError::Invalid(chain(error)),
        SdkError::ResponseError(response) => match response.raw().status().as_u16() {
            200..=299 => OriginError::NotS3(chain(error)),
            status => of_status(request, status, None, None),
        },
        SdkError::ServiceError(service) => {
            let raw = service.raw();
            let region = raw.headers().get("x-amz-bucket-region").filter(|text| is_word(text));
            let code = service.err().code().filter(|code| is_word(code));
            of_status(request, raw.status().as_u16(), code, region.map(str::to_owned))
        }
        _ => OriginError::Unavailable(chain(error)),
    }
}

/// No endpoint is known that takes no more parts than this.
const PARTS_SURE: u32 = 100;

/// A failed part, of this number.
pub(super) fn of_part(number: u32, error: OriginError) -> OriginError {
    match error {
        OriginError::Invalid(label) if number > PARTS_SURE => OriginError::Invalid(format!(
            "{label}: part {number} of an upload; where the endpoint takes no more parts, set a \
             larger --write-part-size"
        )),
        error => error,
    }
}

fn of_status(
    request: Request,
    status: u16,
    code: Option<&str>,
    region: Option<String>,
) -> OriginError {
    let label = code.map_or_else(|| format!("HTTP {status}"), str::to_owned);
    match (status, code.unwrap_or_default()) {
        // A success that cannot be read.
        (200..=299, "") => OriginError::NotS3(label),
        (_, "NoSuchBucket") => OriginError::NoSuchBucket,
        (_, "NoSuchUpload") => OriginError::NoSuchUpload,
        (_, code) if ACCOUNT_CODES.contains(&code) => OriginError::Denied(label),
        (404, "") if request == Request::List => OriginError::NotS3(label),
        // A prefix is never absent: something else is.
        (404, _) if request == Request::List => OriginError::Invalid(label),
        (404, _) if request == Request::Pinned => OriginError::Changed,
        (404, _) => OriginError::NotFound,
        (304 | 412 | 416, _) if matches!(request, Request::Pinned | Request::Replica) => {
            OriginError::Changed
        }
        (412, _) => OriginError::Conflict,
        (301 | 307, _) | (_, "AuthorizationHeaderMalformed" | "PermanentRedirect") => {
            OriginError::WrongRegion(region)
        }
        (400, "") if region.is_some() => OriginError::WrongRegion(region),
        (401 | 403, _) => OriginError::Denied(label),
        (_, "EntityTooLarge" | "KeyTooLongError") => OriginError::TooLarge(label),
        (507, _)
        | (_, "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded") => {
            OriginError::NoSpace(label)
        }
        (501 | 405, _) => OriginError::Unsupported(label),
        (409, _) if request == Request::Complete => OriginError::UploadClash(label),
        (408 | 409 | 425 | 429 | 500 | 502..=504, _)
        | (_, "SlowDown" | "InternalError" | "RequestTimeout") => OriginError::Unavailable(label),
        // Damaged on its way: it is sent again.
        (_, code) if DIGEST_CODES.contains(&code) => OriginError::Unavailable(label),
        (_, "InvalidPart") if request == Request::Complete => OriginError::Invalid(format!(
            "{label}: a part is gone, or the endpoint wants all that were sent to be named; \
             write the file anew"
        )),
        (_, "MalformedXML") if request == Request::Complete => OriginError::Invalid(format!(
            "{label}: the endpoint may not know checksums of parts; try --upload-checksums off"
        )),
        _ => OriginError::Invalid(label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_status_means_what_its_request_makes_of_it() {
        let of = |request, status, code| of_status(request, status, code, None);
        assert!(matches!(of(Request::Pinned, 412, None), OriginError::Changed));
        assert!(matches!(of(Request::Write, 412, None), OriginError::Conflict));
        assert!(matches!(of(Request::Read, 404, None), OriginError::NotFound));
        assert!(matches!(of(Request::List, 404, None), OriginError::NotS3(_)));
        assert!(matches!(of(Request::List, 404, Some("NoSuchBucket")), OriginError::NoSuchBucket));
        assert!(of(Request::Write, 409, Some("ConditionalRequestConflict")).is_transient());
        assert!(of(Request::Read, 503, Some("SlowDown")).is_outage());
        assert!(matches!(of(Request::Read, 403, None), OriginError::Denied(_)));
        let clash = of(Request::Complete, 409, Some("ConditionalRequestConflict"));
        assert!(matches!(clash, OriginError::UploadClash(_)));
    }

    #[test]
    fn a_404_that_is_not_about_an_object_keeps_its_code() {
        let of = |request, code| of_status(request, 404, Some(code), None);
        assert!(matches!(of(Request::Read, "NoSuchKey"), OriginError::NotFound));
        for (request, code) in [
            (Request::List, "XAdminUserNotFound"),
            (Request::Write, "InvalidAccessKeyId"),
            (Request::List, "SomethingNew"),
        ] {
            let error = of(request, code);
            assert!(error.to_string().contains(code), "{error}");
        }
    }

    #[test]
    fn a_body_that_was_damaged_on_its_way_is_sent_again_and_is_no_outage() {
        for code in DIGEST_CODES {
            let error = of_status(Request::Write, 400, Some(code), None);
            assert!(error.is_transient() && error.is_digest_mismatch(), "{error}");
            assert!(!error.is_outage(), "{error}");
        }
    }

    #[test]
    fn a_part_beyond_what_an_endpoint_takes_says_what_to_do() {
        let refused = |number| {
            let error = of_status(Request::Write, 400, Some("InvalidArgument"), None);
            of_part(number, error).to_string()
        };
        assert!(refused(1001).contains("InvalidArgument: part 1001"), "{}", refused(1001));
        assert!(refused(1001).contains("--write-part-size"), "{}", refused(1001));
        assert!(!refused(1).contains("--write-part-size"));
    }

    #[test]
    fn a_completion_that_is_refused_says_what_to_do() {
        let refused = |code| of_status(Request::Complete, 400, Some(code), None).to_string();
        assert!(refused("MalformedXML").contains("--upload-checksums off"));
        assert!(refused("InvalidPart").contains("write the file anew"));
    }
}
