//! `weir node`: serves every volume of a Kubernetes node, without a capability of its own.

mod backend;
mod credentials;
mod options;
mod record;
mod session;
mod sessions;
mod sts;
mod volume;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_csi::backend::NodeInfo;
use weir_csi::server::Services;

use crate::cli::NodeArgs;
use crate::config::cache::CacheConfig;
use crate::config::mount::Environment;
use crate::exit::{Failure, Kind};
use crate::kubernetes::api::Events;
use crate::kubernetes::events::Announcer;
use crate::mounter::client::Mounter;
use crate::{assembly, csi, logging, metrics};

pub(crate) use credentials::Keys;
pub(crate) use session::failed;

/// How long the end of the process waits for what is being stored.
const STORE_PATIENCE: Duration = Duration::from_secs(20);

/// Runs the command until a signal ends it. Mounts stay: they wait for the next run.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &NodeArgs) -> Result<(), Failure> {
    logging::start_plain(args.log.log_level, args.log.log_format);
    assembly::raise_file_limit();
    let info = info(args)?;
    let cache = CacheConfig::new(&args.cache, &Environment::of_process())?;
    let runtime = assembly::runtime()?;
    let done = runtime.block_on(async {
        let counted = assembly::metrics()?;
        let engine_name = engine_name();
        let mounter = Mounter::new(&args.mounter_socket, engine_name);
        let processes = mounter.clone();
        let handle = runtime.handle().clone();
        let engine = tokio::task::block_in_place(|| {
            assembly::engine(&cache, counted.clone(), handle, processes)
        })?;
        let volumes = volume::Defaults {
            s3: args.s3.clone(),
            inline_driver_credentials: args.inline_driver_credentials,
        };
        let sts = sts::Sts::new(args.sts_endpoint_url.clone())
            .map_err(|e| Failure::new(Kind::Other, e.to_string()))?;
        let announcer =
            Events::in_cluster(&args.node_id).map_or_else(Announcer::silent, Announcer::new);
        let sessions = sessions::Sessions::new(
            engine.clone(),
            mounter.clone(),
            volumes,
            sts,
            announcer.clone(),
        );
        tokio::spawn(watch::run(sessions.clone(), engine.clone(), announcer));
        let again = sessions.clone();
        mounter
            .attach(move || again.deposit_all())
            .map_err(|e| Failure::new(Kind::Other, format!("mounter: {e}")))?;
        if let Some(address) = args.log.metrics_listen {
            metrics::serve(address, counted.clone()).await?;
        }
        tokio::task::block_in_place(|| sessions.adopt());
        let backend = backend::Backend { info, sessions: sessions.clone() };
        let services = Services { node: Some(Arc::new(backend)), controller: None };
        let ready = move || mounter.is_attached();
        csi::serve(&args.csi_socket, services, ready, counted).await?;
        sessions.rest(STORE_PATIENCE).await;
        tokio::task::block_in_place(|| engine.cache.close());
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// A name that no other run of a node has.
fn engine_name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

fn info(args: &NodeArgs) -> Result<NodeInfo, Failure> {
    let mut segments = BTreeMap::new();
    for text in &args.topology {
        let pair = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
        let Some((key, value)) = pair else {
            let text = format!("--topology {text}: must be KEY=VALUE");
            return Err(Failure::new(Kind::Usage, text));
        };
        segments.insert(key.to_owned(), value.to_owned());
    }
    if segments.is_empty() {
        // kubelet and provisioner want at least one key of every node.
        segments.insert("topology.weir.dev/zone".to_owned(), "default".to_owned());
    }
    Ok(NodeInfo { node_id: args.node_id.clone(), max_volumes: args.max_volumes, segments })
}
