//! A bound on answers. The SDK collects those of all requests but GetObject, however long they are;
//! a server decides about that, and other tenants' memory is taken.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Longest answer, in bytes: 1,000 names of 1,024 bytes that are escaped threefold take 4 MiB.
const ANSWER_MAX: usize = 16 * 1024 * 1024;
/// Longest answer that tells of a failure, in bytes: its code and message go into logs and Events.
const FAILURE_MAX: usize = 64 * 1024;

/// An answer that is longer than any may be.
#[derive(Debug, thiserror::Error)]
#[error("an answer of more than {0} bytes")]
struct TooLong(usize);

/// A client whose answers are bounded. What is asked for by a range is not: whoever reads it knows
/// how much it is.
#[derive(Clone, Debug)]
pub(super) struct Bounded(pub(super) SharedHttpClient);

impl HttpClient for Bounded {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(BoundedConnector(self.0.http_connector(settings, components)))
    }
}

#[derive(Debug)]
struct BoundedConnector(SharedHttpConnector);

impl HttpConnector for BoundedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let is_range = request.headers().get("range").is_some();
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await?;
            let most = match answer.status().is_success() {
                true if is_range => return Ok(answer),
                true => ANSWER_MAX,
                false => FAILURE_MAX,
            };
            Ok(answer.map(|body| bounded(body, most)))
        })
    }
}

fn bounded(body: SdkBody, most: usize) -> SdkBody {
    SdkBody::from_body_1_x(Limited::new(body, most).map_err(move |error| {
        match error.is::<LengthLimitError>() {
            true => TooLong(most).into(),
            false => error,
        }
    }))
}

#[cfg(test)]
mod tests {
    use aws_smithy_types::byte_stream::ByteStream;

    use super::*;

    #[tokio::test]
    async fn an_answer_ends_at_its_bound_and_says_so() {
        let collect = async |bytes: usize| {
            let body = bounded(SdkBody::from(vec![0; bytes]), FAILURE_MAX);
            ByteStream::new(body).collect().await.map(|all| all.to_vec().len())
        };
        assert_eq!(collect(FAILURE_MAX).await.unwrap(), FAILURE_MAX);
        let error = collect(FAILURE_MAX + 1).await.unwrap_err();
        let text = crate::origin::s3::errors::chain(&error);
        assert!(text.contains("more than 65536 bytes"), "{text}");
    }
}
