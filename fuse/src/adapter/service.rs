//! How the requests of one connection are served: at once, on the threads that read them;
//! where a disk or the mounter must be waited for, on one of the engine's threads that may wait;
//! where the origin must be, in a task under a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Request;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::door::{Door, Pass, RequestKind, Turn};
use super::reply;
use crate::blocking::{self, MayBlock, Turns};
use crate::buffers::{Buffer, capacity_for};
use crate::engine::Session;

/// Threads that may wait which one session has at most; the engine's others are for the others.
const THREADS_MAX: usize = 16;

/// The session, and its requests under way.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) session: Arc<Session>,
    pub(super) door: Arc<Door>,
    threads: Arc<Semaphore>,
}

/// A thread of the engine's that a session may use, and its turn at the disk that it waits for.
pub(super) struct Place {
    _thread: OwnedSemaphorePermit,
    _turn: Option<blocking::Turn>,
}

impl Service {
    /// Requests come in by `door`.
    pub(super) fn new(session: Arc<Session>, door: Arc<Door>) -> Self {
        Self { session, door, threads: Arc::new(Semaphore::new(THREADS_MAX)) }
    }

    /// Lets a request in: [`Door::enter`].
    pub(super) fn enter<R>(
        &self,
        does: RequestKind,
        req: &Request,
        reply: R,
    ) -> Option<(Turn<'_>, Pass, R)> {
        self.door.enter(does, reply::delivery(req.unique()), reply)
    }

    /// Counts a request that is answered.
    pub(super) fn count(&self, op: &str, start: Instant) {
        self.session.engine().metrics.fuse(op, start);
    }

    /// Answers later, within the deadline if there is one. `pass` ends with the answer.
    pub(super) fn later<T: Send + 'static>(
        &self,
        op: &'static str,
        (pass, deadline): (Pass, Option<Duration>),
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let service = self.clone();
        let start = Instant::now();
        self.session.engine().runtime.spawn(async move {
            let result = match deadline {
                None => work.await,
                Some(limit) => {
                    tokio::time::timeout(limit, work).await.unwrap_or(Err(Errno::TIMEDOUT))
                }
            };
            service.finish((op, start), pass, || answer(result));
        });
    }

    /// A place, and a copy of what is to be written through a handle; none where there is no place, or
    /// where half the memory is taken.
    pub(super) fn copy(&self, fh: u64, data: &[u8]) -> Option<(Place, Buffer)> {
        let place = self.place(self.session.threads_of(fh).as_deref())?;
        let buffers = &self.session.engine().buffers;
        let bytes = capacity_for(data.len());
        if buffers.used() + bytes as u64 > buffers.total() / 2 {
            return None;
        }
        let mut copy = buffers.try_share(bytes)?.buffer(data.len());
        copy.bytes_mut().copy_from_slice(data);
        Some((place, copy))
    }

    /// Does something on a thread that may wait, once there is one for this session, and for the disk
    /// that is waited for; it finishes the request, or passes it on. An orderly end waits for it.
    pub(super) fn aside(
        &self,
        disk: Option<Arc<Turns>>,
        work: impl FnOnce(&MayBlock, &Self) + Send + 'static,
    ) {
        match self.place(disk.as_deref()) {
            Some(place) => self.aside_on(place, work),
            None => {
                let (service, counted) = (self.clone(), self.door.count());
                self.session.engine().runtime.spawn(async move {
                    let place = service.until_place(disk.as_deref()).await;
                    service.aside_on(place, work);
                    drop(counted);
                });
            }
        }
    }

    fn place(&self, disk: Option<&Turns>) -> Option<Place> {
        let thread = self.threads.clone().try_acquire_owned().ok()?;
        let turn = match disk {
            Some(disk) => Some(disk.try_take()?),
            None => None,
        };
        Some(Place { _thread: thread, _turn: turn })
    }

    /// Waits for one of the two with none of the other: a disk that does not answer keeps no thread of a
    /// session but those that wait for it, and no session keeps a turn at a disk that it does not use.
    async fn until_place(&self, disk: Option<&Turns>) -> Place {
        loop {
            let Ok(thread) = self.threads.clone().acquire_owned().await else {
                // It is never closed.
                std::future::pending().await
            };
            let Some(disk) = disk else { return Place { _thread: thread, _turn: None } };
            if let Some(turn) = disk.try_take() {
                return Place { _thread: thread, _turn: Some(turn) };
            }
            drop(thread);
            let turn = disk.take().await;
            if let Ok(thread) = self.threads.clone().try_acquire_owned() {
                return Place { _thread: thread, _turn: Some(turn) };
            }
        }
    }

    /// As [`Service::aside`], in this place.
    pub(super) fn aside_on(
        &self,
        place: Place,
        work: impl FnOnce(&MayBlock, &Self) + Send + 'static,
    ) {
        let (service, counted) = (self.clone(), self.door.count());
        let engine = self.session.engine();
        engine.waiting.begin(&engine.runtime, move |may| {
            work(may, &service);
            drop((place, counted));
        });
    }

    /// Answers a request that was not answered by the thread that read it.
    pub(super) fn finish(&self, (op, start): (&str, Instant), pass: Pass, answer: impl FnOnce()) {
        // Before the answer: who has it may look at the metrics at once.
        self.count(op, start);
        self.door.answer(answer);
        drop(pass);
    }
}
