//! NATS servers in processes of their own, and what speaks to them past any mount.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use weir_fuse::feed::announcement::Role;
use weir_fuse::feed::nats::{FeedSettings, connect};
use weir_fuse::feed::publisher::Publisher;

use crate::servers::{command, free_port};
use crate::{eventually, runtime, tools};

/// What all publish on.
pub const SUBJECT: &str = "weir.changes";
/// Time between two heartbeats of a relay.
const BEAT: Duration = Duration::from_millis(300);

/// A server, which ends when dropped.
pub struct Nats {
    port: u16,
    child: Child,
    _folder: TempDir,
}

impl Nats {
    /// One that lets everybody in.
    pub fn start() -> Self {
        Self::start_at(free_port(), "")
    }

    /// One at this port, with more lines in its configuration.
    pub fn start_at(port: u16, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("nats.conf");
        std::fs::write(&config, format!("listen: \"127.0.0.1:{port}\"\n{more}\n")).unwrap();
        let child = command(&tools::path("nats-server")).arg("-c").arg(config).spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("the NATS server listens", || TcpStream::connect(address).is_ok());
        Self { port, child, _folder: folder }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A client of it.
    pub fn client(&self) -> async_nats::Client {
        let settings = FeedSettings {
            servers: vec![self.url()],
            subject: SUBJECT.into(),
            credentials_file: None,
            ca_bundle: None,
            timeout: Duration::from_secs(5),
            lifetime: Duration::from_secs(300),
        };
        runtime().block_on(connect(&settings, |_| ())).unwrap()
    }

    /// Somebody who says that he relays all changes of this bucket.
    pub fn relay(&self, bucket: &str) -> Arc<Publisher> {
        let _entered = runtime().enter();
        let relay = Publisher::start(self.client(), SUBJECT, "relay", Role::Relay, BEAT);
        relay.relays(BTreeMap::from([(bucket.into(), None)]));
        relay
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
