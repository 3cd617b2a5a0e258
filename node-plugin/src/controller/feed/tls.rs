//! A certificate in files, which somebody replaces before it expires.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::sync::Mutex;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weir_fuse::blocking::aside;
use weir_fuse::chosen_file;

/// Longest file in bytes.
const FILE_MAX: u64 = 1 << 20;
/// How old what was read may be.
const FRESH: Duration = Duration::from_secs(60);

/// Certificate and key of a server.
pub(super) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    fresh: Duration,
    read: Mutex<(Instant, Arc<ServerConfig>)>,
}

impl Certificate {
    /// Of these PEM files.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub(super) async fn new(cert: PathBuf, key: PathBuf) -> Result<Self, String> {
        let read = Mutex::new((Instant::now(), Arc::new(read(&cert, &key).await?)));
        Ok(Self { cert, key, fresh: FRESH, read })
    }

    /// How a connection is served now; as before, while the files cannot be read.
    pub(super) async fn config(&self) -> Arc<ServerConfig> {
        let mut kept = self.read.lock().await;
        if kept.0.elapsed() >= self.fresh {
            kept.0 = Instant::now();
            match read(&self.cert, &self.key).await {
                Ok(config) => kept.1 = Arc::new(config),
                Err(why) => tracing::warn!(why, "the webhook keeps the certificate that it had"),
            }
        }
        kept.1.clone()
    }
}

async fn read(cert: &Path, key: &Path) -> Result<ServerConfig, String> {
    let paths = [cert.to_owned(), key.to_owned()];
    let read = move |path: &Path| chosen_file::read(path, OFlags::empty(), FILE_MAX);
    let [cert_bytes, key_bytes] = aside(move |_| [read(&paths[0]), read(&paths[1])]).await;
    let of_cert = |why: &dyn std::fmt::Display| format!("{}: {why}", cert.display());
    let of_key = |why: &dyn std::fmt::Display| format!("{}: {why}", key.display());
    let cert_bytes = cert_bytes.map_err(|e: io::Error| of_cert(&e))?;
    let key_bytes = key_bytes.map_err(|e: io::Error| of_key(&e))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert_bytes).collect();
    let chain = chain.map_err(|_| of_cert(&"it is not PEM"))?;
    if chain.is_empty() {
        return Err(of_cert(&"no certificate is in it: it must be PEM"));
    }
    // Without the parser's own words: what it holds is secret.
    let key = PrivateKeyDer::from_pem_slice(&key_bytes)
        .map_err(|_| of_key(&"no private key is in it: it must be PEM"))?;
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|why| of_cert(&why))
}
