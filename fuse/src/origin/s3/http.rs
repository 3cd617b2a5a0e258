//! The HTTP client under all AWS services. Its answers are bounded. Certificate authorities are
//! read when the first request to an `https` URL comes: parsing those of a system takes as long as
//! the rest of a mount, and plain HTTP needs none.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector, ConnectorBuilder};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use rustix::fs::OFlags;

use super::bound::Bounded;
use crate::blocking::{MayBlock, aside};
use crate::chosen_file;
use crate::origin::OriginError;

/// Longest file of certificate authorities, in bytes. Those of a system have some 200 KiB.
const CA_BUNDLE_MAX: u64 = 4 << 20;

/// Clients for AWS services, which trust the system's authorities and those of a PEM file.
#[derive(Clone, Debug)]
pub(super) struct Http {
    /// By the proxy that the environment names, if any.
    plain: SharedHttpClient,
    /// Never by a proxy: what speaks plain HTTP beside S3 is the instance, which gives keys away.
    instance: SharedHttpClient,
    /// By the proxy that the environment names, if any.
    secure: Arc<OnceLock<Result<SharedHttpClient, String>>>,
}

impl Http {
    /// # Errors
    /// [`OriginError::Invalid`] when the file cannot be used.
    pub(super) fn new(may: &MayBlock, ca_bundle: Option<&Path>) -> Result<Self, OriginError> {
        let http = Self {
            plain: plain_client(ProxyConfig::from_env()),
            instance: plain_client(ProxyConfig::disabled()),
            secure: Arc::default(),
        };
        if let Some(path) = ca_bundle {
            let pem = bundle(may, path)?;
            let invalid =
                |e: String| OriginError::Invalid(format!("CA bundle {}: {e}", path.display()));
            let _ = http.secure.set(Ok(secure_client(may, Some(pem)).map_err(invalid)?));
        }
        Ok(http)
    }

    /// The client for one endpoint; without a URL it is Amazon's, which is reached by TLS.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] when there is no certificate authority.
    pub(super) async fn for_endpoint(
        &self,
        url: Option<&str>,
    ) -> Result<SharedHttpClient, OriginError> {
        match url {
            Some(url) if is_plain(url) => Ok(self.plain.clone()),
            _ => self.secure().await.map_err(OriginError::Invalid),
        }
    }

    async fn secure(&self) -> Result<SharedHttpClient, String> {
        if let Some(known) = self.secure.get() {
            return known.clone();
        }
        let kept = self.secure.clone();
        aside(move |may| kept.get_or_init(|| secure_client(may, None)).clone()).await
    }
}

impl HttpClient for Http {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(ByScheme {
            http: self.clone(),
            settings: settings.clone(),
            components: components.clone(),
        })
    }
}

/// Whether what goes to this URL is neither hidden nor guarded on its way. Schemes have no case (RFC 3986).
pub(super) fn is_plain(url: &str) -> bool {
    url.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("http"))
}

/// Whether a URL holds a user's name or password, as in `http://KEY:SECRET@host`. Endpoints are part of what is kept,
/// logged and told to whoever asks.
pub fn names_a_user(url: &str) -> bool {
    let authority = match url.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?', '#', '\\']).next().unwrap_or_default(),
        // Of what is no URL, nobody knows which part it would be.
        None => url,
    };
    authority.contains('@')
}

/// For callers whose URLs are not known before: credential providers speak plain HTTP to the
/// instance and TLS to token services.
#[derive(Clone, Debug)]
struct ByScheme {
    http: Http,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for ByScheme {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        if is_plain(request.uri()) {
            let client = &self.http.instance;
            return client.http_connector(&self.settings, &self.components).call(request);
        }
        let Self { http, settings, components } = self.clone();
        HttpConnectorFuture::new(async move {
            let client = http.secure().await.map_err(|e| ConnectorError::user(e.into()))?;
            client.http_connector(&settings, &components).call(request).await
        })
    }
}

/// A client for AWS services other than S3, whose URLs are not known before.
///
/// # Errors
/// [`OriginError::Invalid`] when the file cannot be used.
pub fn http_client(
    may: &MayBlock,
    ca_bundle: Option<&Path>,
) -> Result<SharedHttpClient, OriginError> {
    Ok(SharedHttpClient::new(Http::new(may, ca_bundle)?))
}

fn plain_client(proxy: ProxyConfig) -> SharedHttpClient {
    SharedHttpClient::new(Bounded(Builder::new().build_with_connector_fn(
        move |settings, parts| connector(settings, parts).proxy_config(proxy.clone()).build_http(),
    )))
}

/// What connectors of either kind have in common.
fn connector(
    settings: Option<&HttpConnectorSettings>,
    components: Option<&RuntimeComponents>,
) -> ConnectorBuilder {
    let mut builder = Connector::builder().enable_tcp_nodelay(true);
    builder.set_connector_settings(settings.cloned());
    if let Some(components) = components {
        builder.set_sleep_impl(components.sleep_impl());
    }
    builder
}

/// Certificate authorities in a file that somebody named, who may have named anything.
fn read_bundle(_: &MayBlock, path: &Path) -> Result<Vec<u8>, String> {
    chosen_file::read(path, OFlags::empty(), CA_BUNDLE_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => {
            let most = CA_BUNDLE_MAX >> 20;
            format!("it has more than {most} MiB: name a file of PEM certificates")
        }
        _ => error.to_string(),
    })
}

fn secure_client(may: &MayBlock, pem: Option<Vec<u8>>) -> Result<SharedHttpClient, String> {
    let context = tls_context(may, pem)?;
    let client = Builder::new().build_with_connector_fn(move |settings, parts| {
        secure_connector(connector(settings, parts), &context)
    });
    Ok(SharedHttpClient::new(Bounded(client)))
}

fn secure_connector(builder: ConnectorBuilder, context: &TlsContext) -> Connector {
    let builder = builder.proxy_config(ProxyConfig::from_env());
    builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context.clone()).build()
}

fn tls_context(_: &MayBlock, pem: Option<Vec<u8>>) -> Result<TlsContext, String> {
    // A container may have no authorities at all; the connector panics when it is to load them
    // and there are none.
    let has_native = !rustls_native_certs::load_native_certs().certs.is_empty();
    if !has_native && pem.is_none() {
        return Err("there are no certificate authorities: HTTPS is refused".to_owned());
    }
    let mut trust = TrustStore::empty().with_native_roots(has_native);
    if let Some(pem) = pem {
        trust = trust.with_pem_certificate(pem);
    }
    TlsContext::builder().with_trust_store(trust).build().map_err(|e| format!("TLS settings: {e}"))
}

/// Speaks HTTP without the SDK, to servers whose answers are none of S3. Their lengths are for whoever
/// reads them to bound.
#[derive(Clone, Debug)]
pub(in crate::origin) struct DirectClient(SharedHttpConnector);

impl DirectClient {
    /// For servers that are reached as the one at `url` is.
    ///
    /// # Errors
    /// [`OriginError::Invalid`] when the file cannot be used, or there is no certificate authority.
    pub(in crate::origin) fn new(
        may: &MayBlock,
        url: &str,
        ca_bundle: Option<&Path>,
    ) -> Result<Self, OriginError> {
        let pem = ca_bundle.map(|path| bundle(may, path)).transpose()?;
        let connector = match is_plain(url) {
            true => connector(None, None).proxy_config(ProxyConfig::from_env()).build_http(),
            false => {
                let context = tls_context(may, pem).map_err(OriginError::Invalid)?;
                secure_connector(connector(None, None), &context)
            }
        };
        Ok(Self(SharedHttpConnector::new(connector)))
    }

    /// Sends a request; returns once the head of its answer is there.
    pub(in crate::origin) fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        self.0.call(request)
    }
}

/// # Errors
/// [`OriginError::Invalid`] when the file cannot be used.
fn bundle(may: &MayBlock, path: &Path) -> Result<Vec<u8>, OriginError> {
    let invalid = |e: String| OriginError::Invalid(format!("CA bundle {}: {e}", path.display()));
    read_bundle(may, path).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bundle_is_neither_waited_for_nor_read_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        let endless = folder.path().join("endless");
        std::fs::File::create(&endless).unwrap().set_len(1 << 40).unwrap();
        let may = MayBlock::own_thread();
        let refused = |path: &Path| {
            let refused = Http::new(&may, Some(path)).unwrap_err().to_string();
            assert!(refused.contains(&path.display().to_string()), "{refused}");
            refused
        };
        for path in [&path, Path::new("/dev/zero"), folder.path()] {
            assert!(refused(path).contains("not a regular file"));
        }
        assert!(refused(&endless).contains("more than 4 MiB"));
        let pem = folder.path().join("none.pem");
        refused(&pem);
    }

    #[test]
    fn a_user_in_a_url_is_noticed_and_an_at_in_a_path_is_none() {
        for url in [
            "http://KEY:SECRET@s3:9000",
            "https://KEY@s3/path",
            "https://:@s3",
            "KEY:SECRET@s3:9000",
            "http:/KEY:SECRET@s3",
            "http://KEY:SECRET@s3?x",
        ] {
            assert!(names_a_user(url), "{url}");
        }
        for url in
            ["http://s3:9000", "https://s3/a@b", "https://s3?a@b", "http://[::1]:9000/", "s3"]
        {
            assert!(!names_a_user(url), "{url}");
        }
    }
}
