//! A second GET when the first is later than the running P95.
//!
//! Only the time to the first byte counts: once bytes flow, a second request would only cost.
//! At most one hedge is sent per request, and hedges stay under a twentieth of all requests by
//! the meaning of P95.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Body, Origin, OriginError, layer};
use crate::model::version::Version;

const SAMPLES: usize = 256;
/// Below this many samples nothing is hedged.
const ENOUGH: usize = 32;
/// A hedge earlier than this would race against ordinary scheduling noise.
const FLOOR: Duration = Duration::from_millis(20);

/// Wraps an origin and hedges its GETs.
pub struct Hedged {
    inner: Arc<dyn Origin>,
    times: Mutex<Window>,
    on_hedge: Box<dyn Fn() + Send + Sync>,
}

impl Hedged {
    /// `on_hedge` is called for every second request sent.
    pub fn new(inner: Arc<dyn Origin>, on_hedge: impl Fn() + Send + Sync + 'static) -> Self {
        Self { inner, times: Mutex::new(Window::default()), on_hedge: Box::new(on_hedge) }
    }

    fn note(&self, elapsed: Duration) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).add(elapsed);
    }

    fn patience(&self) -> Option<Duration> {
        let p95 = self.times.lock().unwrap_or_else(PoisonError::into_inner).p95()?;
        Some((p95 * 3 / 2).max(FLOOR))
    }
}

/// The last first-byte times, in a ring.
#[derive(Default)]
struct Window {
    ring: Vec<Duration>,
    next: usize,
    /// P95 of the ring, taken again every 16 samples.
    cached: Option<Duration>,
}

impl Window {
    fn add(&mut self, sample: Duration) {
        if self.ring.len() < SAMPLES {
            self.ring.push(sample);
        } else {
            self.ring[self.next] = sample;
        }
        self.next = (self.next + 1) % SAMPLES;
        if self.ring.len() >= ENOUGH && self.next.is_multiple_of(16) {
            let mut sorted = self.ring.clone();
            let rank = sorted.len() * 95 / 100;
            self.cached = Some(*sorted.select_nth_unstable(rank).1);
        }
    }

    fn p95(&self) -> Option<Duration> {
        self.cached
    }
}

#[async_trait]
impl layer::ReadLayer for Hedged {
    fn below(&self) -> &dyn Origin {
        &*self.inner
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let start = Instant::now();
        let first = self.inner.get(key, version, range.clone());
        let Some(patience) = self.patience() else {
            let body = first.await?;
            self.note(start.elapsed());
            return Ok(body);
        };
        tokio::pin!(first);
        let body = tokio::select! {
            body = &mut first => body?,
            () = tokio::time::sleep(patience) => {
                (self.on_hedge)();
                let second = self.inner.get(key, version, range);
                tokio::pin!(second);
                // The first answer wins; a failure of one leaves the other its chance.
                tokio::select! {
                    body = &mut first => match body {
                        Err(e) if e.is_transient() => second.await?,
                        other => other?,
                    },
                    body = &mut second => match body {
                        Err(e) if e.is_transient() => first.await?,
                        other => other?,
                    },
                }
            }
        };
        self.note(start.elapsed());
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::origin::faulty::{Fault, Faulty, Op};
    use crate::origin::memory::MemoryOrigin;

    #[tokio::test]
    async fn a_late_first_byte_is_overtaken_by_a_second_get() {
        let memory = Arc::new(MemoryOrigin::new("b"));
        let version = Version { etag: memory.insert("k", vec![7; 100]), size: 100 };
        let faulty = Arc::new(Faulty::new(memory));
        let hedges = Arc::new(AtomicUsize::new(0));
        let count = hedges.clone();
        let hedged = Hedged::new(faulty.clone(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for _ in 0..SAMPLES {
            hedged.get("k", &version, 0..100).await.unwrap();
        }
        assert_eq!(hedges.load(Ordering::Relaxed), 0);
        faulty.inject_once(Op::Get, Fault::Delay(Duration::from_secs(60)));
        let start = Instant::now();
        hedged.get("k", &version, 0..100).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "the late one was waited for");
        assert_eq!(hedges.load(Ordering::Relaxed), 1);
    }
}
