//! `weir node`: serves every volume of a Kubernetes node, without a capability of its own.

mod adoption;
mod backend;
mod claims;
mod credentials;
mod ending;
mod exchange;
mod identity;
mod leave;
mod life;
mod limits;
mod mailbox;
mod options;
mod place;
mod pod_gpus;
mod record;
pub(crate) mod registered;
mod registrar;
mod report;
mod role;
mod session;
mod sessions;
mod showing;
mod spare;
mod volume;
mod watch;

#[cfg(test)]
mod fuzz;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_csi::server::Services;
use weir_fuse::blocking::{aside, in_place};
use weir_fuse::cache::dir::on_one_file_system;

use crate::cli::node::NodeArgs;
use crate::config::cache::CacheConfig;
use crate::config::feed::feed_settings;
use crate::config::mount::Environment;
use crate::config::region::region_settings;
use crate::exit::{Failure, Kind};
use crate::kubernetes::accounts::Accounts;
use crate::kubernetes::api::Events;
use crate::kubernetes::events::Announcer;
use crate::kubernetes::nodes::{ApiObjects, OwnObjects};
use crate::mounter::client::Mounter;
use crate::readiness::{Flag, Readiness};
use crate::topology::NVML_DEADLINE;
use crate::topology::nvml::Library;
use crate::topology::sysfs::Sysfs;
use crate::{assembly, csi, kubernetes, logging, metrics, probes};
use pod_gpus::PodGpus;

pub(crate) use credentials::Keys;

/// Runs the command until a signal ends it. Mounts stay: they wait for the next run.
///
/// # Errors
/// Why it cannot start.
pub fn run(args: &NodeArgs) -> Result<(), Failure> {
    logging::start_plain(args.log.log_level, args.log.log_format);
    if args.log.log_level <= tracing::Level::INFO {
        weir_fuse::logged::hide_names();
    }
    assembly::raise_file_limit();
    let configured = configured(args)?;
    let regions = region_settings(&args.region)?;
    let feed = feed_settings(&args.feed)?;
    let cache = CacheConfig::new(&args.cache, &Environment::of_process())?;
    let kubelet = args.sockets.csi_socket.parent().unwrap_or(Path::new("/")).to_owned();
    let cache = CacheConfig {
        spare: Some(args.spare_cache_dir.clone()),
        apart_from: args.cache_apart_from.clone(),
        ..cache
    };
    for dir in cache.dirs.iter().filter(|dir| on_one_file_system(dir, &kubelet)) {
        tracing::warn!(
            dir = %dir.display(),
            "the cache is on kubelet's file system: is its own disk not mounted?"
        );
    }
    if let Some(group) = args.sockets.csi_group {
        csi::share_folder(&args.sockets.csi_socket, group);
    }
    let runtime = assembly::runtime(cache.dirs.len())?;
    let done = runtime.block_on(async {
        let counted = assembly::metrics()?;
        let engine_name = engine_name();
        let mounter = Mounter::new(&args.sockets.mounter_socket, engine_name);
        let (opened, working) = (Flag::default(), Flag::default());
        let (adopted, serving) = (Flag::default(), Flag::default());
        let readiness = Readiness::new(vec![
            ("the index of the cache is not open", opened.clone()),
            ("no disk of the cache works", working.clone()),
            ("the mounter is not connected", mounter.attached()),
            ("sessions of earlier runs are not taken over yet", adopted.clone()),
            (csi::NOT_SERVED, serving.clone()),
        ]);
        if let Some(address) = args.probes.health_listen {
            probes::serve(address, readiness.clone(), None)?;
        }
        let processes = mounter.clone();
        let handle = runtime.handle().clone();
        let engine =
            in_place(|may| assembly::engine(may, &cache, counted.clone(), handle, processes))?;
        opened.set(true);
        let feed = match &feed {
            Some(settings) => {
                let name = format!("node {}", args.node_id);
                Some(assembly::feed(settings, &name, &engine).await?)
            }
            None => None,
        };
        tokio::spawn(spare::follow(engine.cache.clone(), working));
        let client = kubernetes::client();
        let volumes = defaults(args, client.as_ref());
        let pods = args.pods.clone();
        let exchange = aside(move |may| {
            exchange::Exchange::new(
                may,
                pods.sts_endpoint_url,
                pods.sts_ca_bundle.as_deref(),
                pods.pod_identity_agent_url.as_deref(),
            )
        });
        let exchange = exchange.await?;
        let node = args.node_id.as_str();
        let announcer = client.clone().map_or_else(Announcer::silent, |client| {
            let events = Events::new(client, node, counted.clone());
            Announcer::new(events, counted.clone())
        });
        let objects = client.map(|client| Arc::new(ApiObjects::new(client, node)));
        let objects = objects.map(|objects| objects as Arc<dyn OwnObjects>);
        let place = place::Place::new(
            Arc::new(Library::new(args.nvml_library.clone(), NVML_DEADLINE)),
            Sysfs::default(),
            configured,
            objects.clone(),
            announcer.clone(),
        );
        let kept = registered::Registered::beside(&args.sockets.csi_socket, args.sockets.csi_group);
        // By an earlier run: kubelet does not ask again because this process started.
        place.was_registered(kept.last().map(|info| info.segments));
        let pods = PodGpus::new(&args.pod_resources_socket, &cache.dirs);
        let regions = assembly::regions(regions, &counted);
        if let Some(regions) = &regions {
            regions.remember(engine.region_evictions.clone()).await;
        }
        let maker = session::Maker::new(engine.clone(), mounter.clone(), exchange, regions)
            .map_err(|e| Failure::new(Kind::Other, format!("threads: {e}")))?;
        let sessions = sessions::Sessions::new(
            maker,
            volumes,
            announcer.clone(),
            sessions::Nearness { place: place.clone(), pods },
            limits::Limits {
                unpublish_deadline: Duration::from_secs(args.unpublish_deadline),
                sessions: limits::SessionLimits {
                    node: args.max_sessions,
                    namespace: args.max_sessions_per_namespace,
                },
            },
        );
        tokio::spawn(spare::watch(engine.clone(), cache.clone(), announcer.clone()));
        tokio::spawn(watch::run(sessions.clone(), engine.clone(), announcer));
        let registrar = Arc::new(registrar::Registrar {
            node_id: args.node_id.clone(),
            max_volumes: args.max_volumes,
            place: place.clone(),
            kept,
        });
        let reporter = report::Reporter {
            kubelet,
            engine: engine.clone(),
            sessions: sessions.clone(),
            readiness: readiness.clone(),
            registrar: registrar.clone(),
            objects,
            every: Duration::from_secs(args.topology_interval.max(1)),
        };
        tokio::spawn(reporter.run());
        let (again, handle) = (sessions.clone(), runtime.handle().clone());
        mounter
            .attach(move || handle.block_on(again.keep_all()))
            .map_err(|e| Failure::new(Kind::Other, format!("mounter: {e}")))?;
        if let Some(address) = args.log.metrics_listen {
            metrics::serve(address, counted.clone()).await?;
        }
        // What kubelet asks of a session waits for its adoption; nothing waits for all.
        let adoption = sessions.begin_adoption().await;
        tokio::spawn(async move {
            adoption.await;
            adopted.set(true);
        });
        let backend = backend::Backend {
            registrar: registrar.clone(),
            cache: engine.cache.clone(),
            sessions: sessions.clone(),
        };
        let services = Services { node: Some(Arc::new(backend)), controller: None };
        let ready = csi::Ready { serving, readiness };
        let grace = args.end.grace();
        let mut until = Instant::now();
        let on_signal = csi::OnSignal {
            call: || {
                until = Instant::now() + grace;
                sessions.begin_leaving();
            },
            patience: grace / 4,
        };
        let socket = csi::Socket { path: &args.sockets.csi_socket, group: args.sockets.csi_group };
        csi::serve(socket, services, ready, counted, on_signal).await?;
        sessions.leave(until).await;
        if let Some(feed) = feed {
            feed.stop().await;
        }
        in_place(|may| engine.cache.close(may));
        Ok(())
    });
    // Tasks may hold replies to requests that are left to the next run. Dropped with their
    // runtime they would be answered with EIO; the end of the process drops nothing.
    std::mem::forget(runtime);
    done
}

/// What the node adds to every volume.
fn defaults(args: &NodeArgs, client: Option<&kube::Client>) -> volume::Defaults {
    let reads_accounts = args.pods.role_from_service_account;
    volume::Defaults {
        s3: args.s3.clone(),
        inline_driver_credentials: args.inline_driver_credentials,
        has_region: !args.region.region_url.is_empty(),
        tokens: credentials::Tokens {
            audience: args.pods.sts_audience.clone(),
            has_agent: args.pods.pod_identity_agent_url.is_some(),
        },
        accounts: reads_accounts.then(|| Arc::new(Accounts::new(client.cloned()))),
    }
}

/// A name that no other run of a node has.
fn engine_name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Segments given on the command line.
fn configured(args: &NodeArgs) -> Result<BTreeMap<String, String>, Failure> {
    let mut segments = BTreeMap::new();
    for text in &args.topology {
        let pair = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
        let Some((key, value)) = pair else {
            let text = format!("--topology {text}: must be KEY=VALUE");
            return Err(Failure::new(Kind::Usage, text));
        };
        segments.insert(key.to_owned(), value.to_owned());
    }
    Ok(segments)
}
