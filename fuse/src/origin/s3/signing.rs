//! What a signature says of a request's payload (API reference, "Authenticating Requests (AWS Signature
//! Version 4)", x-amz-content-sha256). Over TLS it says nothing: nobody can change the payload on its
//! way, and its SHA-256 would take much of the CPU time of an upload. Over plain HTTP it is the SHA-256:
//! the CRC32C among the signed headers can be met by other bytes.

use aws_runtime::auth::PayloadSigningOverride;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeSerializationInterceptorContextMut;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use super::S3Origin;
use super::digest::content_sha256;
use crate::origin::{OriginError, UploadBody};

/// What the signature of one request says of its payload.
#[derive(Debug)]
pub(super) struct PayloadSigning(PayloadSigningOverride);

impl S3Origin {
    /// What the signature of a request with this body is to say of it.
    ///
    /// # Errors
    /// What reading the file reports.
    pub(super) async fn signing(&self, body: &UploadBody) -> Result<PayloadSigning, OriginError> {
        Ok(PayloadSigning(match self.signs_payloads {
            true => PayloadSigningOverride::Precomputed(content_sha256(body.clone()).await?),
            false => PayloadSigningOverride::UnsignedPayload,
        }))
    }
}

impl Intercept for PayloadSigning {
    fn name(&self) -> &'static str {
        "PayloadSigning"
    }

    /// Early, so that it does not count where the SDK sends a body in pieces.
    fn modify_before_serialization(
        &self,
        _context: &mut BeforeSerializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(self.0.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use aws_config::Region;
    use aws_credential_types::Credentials;
    use aws_sdk_s3::primitives::SdkBody;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};

    use super::*;
    use crate::origin::s3::S3Settings;
    use crate::origin::s3::client::Clients;
    use crate::origin::s3::client::with_checksums;
    use crate::origin::s3::http::is_plain;
    use crate::origin::{Condition, Origin, WriteIntent};

    /// An endpoint that takes everything, and what the signatures say of the payloads sent to it.
    #[derive(Clone, Debug, Default)]
    struct Endpoint(Arc<Mutex<Vec<String>>>);

    impl HttpConnector for Endpoint {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let headers = request.headers();
            assert!(headers.get("authorization").unwrap().contains("x-amz-content-sha256"));
            let said = headers.get("x-amz-content-sha256").unwrap().to_owned();
            self.0.lock().unwrap().push(said);
            let mut answer = HttpResponse::new(200.try_into().unwrap(), SdkBody::empty());
            answer.headers_mut().insert("etag", "\"tag\"");
            HttpConnectorFuture::ready(Ok(answer))
        }
    }

    /// What is said of an object, a part, and a part beside copied ones.
    async fn said(url: &str, upload_checksums: bool) -> Vec<String> {
        let endpoint = Endpoint::default();
        let connector = SharedHttpConnector::new(endpoint.clone());
        let settings = S3Settings { bucket: "b".into(), upload_checksums, ..S3Settings::default() };
        let config = aws_sdk_s3::Config::builder()
            .behavior_version_latest()
            .region(Region::new("us-east-1"))
            .endpoint_url(url)
            .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
            .http_client(http_client_fn(move |_, _| connector.clone()));
        let config = with_checksums(config, &settings, is_plain(url));
        let origin = S3Origin::new(settings, Clients::new(config), url);
        let write = WriteIntent { condition: Condition::Always, writer: "w".into() };
        origin.put("k", UploadBody::of("abc"), &write).await.unwrap();
        origin.upload_part("k", "sent", 1, UploadBody::of("abc")).await.unwrap();
        origin.copies().insert("mixed".into());
        origin.upload_part("k", "mixed", 1, UploadBody::of("abc")).await.unwrap();
        let said = endpoint.0.lock().unwrap();
        said.clone()
    }

    #[tokio::test]
    async fn payloads_are_signed_over_plain_http() {
        // FIPS 180-4.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(said("http://host", true).await, [sha256; 3]);
        assert_eq!(said("http://host", false).await, [sha256; 3]);
        assert_eq!(said("HTTP://host", false).await, [sha256; 3]);
    }

    #[tokio::test]
    async fn payloads_are_not_signed_over_tls() {
        let unsigned = "UNSIGNED-PAYLOAD";
        let chunks = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
        assert_eq!(said("https://host", true).await, [unsigned, unsigned, chunks]);
        assert_eq!(said("https://host", false).await, [unsigned; 3]);
    }
}
