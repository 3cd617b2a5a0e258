//! What kubelet probes, at an address of its own: who reads metrics cannot keep it from answering.
//! It is answered by a thread of its own, so that it can tell of a process whose tasks stand still.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::net::TcpListener;

use crate::exit::{Failure, Kind};
use crate::http::{self, Pages};
use crate::readiness::Readiness;

/// How often the pulse beats.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A pulse that has not beaten for so long has stopped.
const BEAT_PATIENCE: Duration = Duration::from_secs(30);

/// Whether kubelet knows this node as it is; asked by the registrar's probe.
pub(crate) type Registration = Arc<dyn Fn() -> bool + Send + Sync>;

/// Says whether the tasks of a runtime are run.
#[derive(Clone)]
struct Pulse {
    start: Instant,
    /// The last beat, in milliseconds after the start.
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    fn new(start: Instant) -> Self {
        Self { start, last_ms: Arc::default() }
    }

    fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.start);
        self.last_ms.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn has_stopped(&self, now: Instant) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.start).saturating_sub(last) > BEAT_PATIENCE
    }
}

/// Serves `/healthz` (the tasks of this runtime are run), `/readyz` and `/registration` from a
/// thread of its own. Returns the address that was taken.
///
/// # Errors
/// When the address cannot be listened on, or no thread can be started.
pub(crate) fn serve(
    address: SocketAddr,
    readiness: Readiness,
    registration: Option<Registration>,
) -> Result<SocketAddr, Failure> {
    let failed = |e: io::Error| {
        Failure::new(Kind::Usage, format!("--health-listen {address}: {e}; take another address"))
    };
    let pulse = Pulse::new(Instant::now());
    let beating = pulse.clone();
    tokio::spawn(async move {
        loop {
            beating.beat(Instant::now());
            tokio::time::sleep(BEAT_EVERY).await;
        }
    });
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener).map_err(failed)?
    };
    tracing::info!(address = %taken, "serving probes");
    let pages = pages(pulse, readiness, registration);
    let run = move || runtime.block_on(http::serve(listener, pages));
    std::thread::Builder::new().name("probes".into()).spawn(run).map_err(failed)?;
    Ok(taken)
}

fn pages(pulse: Pulse, readiness: Readiness, registration: Option<Registration>) -> Pages {
    Arc::new(move |path| {
        let lack = match path {
            "/healthz" if pulse.has_stopped(Instant::now()) => Some("no task is run any more"),
            "/healthz" => None,
            "/readyz" => readiness.lack(),
            "/registration" if registration.as_ref().is_none_or(|is_current| is_current()) => None,
            "/registration" => Some("kubelet was told other topology segments: register again"),
            _ => return None,
        };
        Some(match lack {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(lack) => (StatusCode::SERVICE_UNAVAILABLE, format!("{lack}\n")),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_whose_tasks_stand_still_is_not_healthy() {
        let now = Instant::now();
        let long_ago = now.checked_sub(BEAT_PATIENCE * 2).unwrap();
        let pulse = Pulse::new(long_ago);
        let pages = pages(pulse.clone(), Readiness::default(), None);
        let status = || pages("/healthz").unwrap().0;
        assert_eq!(status(), StatusCode::SERVICE_UNAVAILABLE);
        pulse.beat(now);
        assert_eq!(status(), StatusCode::OK);
        assert!(!pulse.has_stopped(now + BEAT_PATIENCE));
        assert!(pulse.has_stopped(now + BEAT_PATIENCE * 2));
    }
}
