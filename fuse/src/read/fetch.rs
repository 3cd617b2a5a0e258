//! One flight: a GET, or as many as it takes, from first byte to disk.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use super::lane::SlowPlace;
use super::{Cargo, Reader, Source};
use crate::buffers::{Block, Buffer, RUN, capacity_for};
use crate::cache::Room;
use crate::cache::flight::Flight;
use crate::model::blocks::{self, BLOCK};
use crate::model::version::VersionKey;
use crate::origin::{Body, Origin, OriginError, retry};

/// How long a flight waits for a place among those whose origins are slow. It counts as a try.
const SLOW_PATIENCE: Duration = Duration::from_secs(30);

/// Why a GET ended before its range did.
enum Interruption {
    Failed(OriginError),
    /// It takes long, and there are enough that do.
    Slow,
}

impl From<OriginError> for Interruption {
    fn from(error: OriginError) -> Self {
        Self::Failed(error)
    }
}

/// Ends its flight even when its task is dropped or panics.
struct Landing {
    source: Source,
    flight: Arc<Flight>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.flight.outcome().is_none() {
            let cut_short = Err(OriginError::Unavailable("the fetch was cut short".into()));
            self.source.version.flights.end(&self.flight, cut_short);
        }
    }
}

impl Reader {
    /// Starts a flight. Without memory it waits for some.
    pub(super) fn launch(
        self: &Arc<Self>,
        source: Source,
        flight: Arc<Flight>,
        cargo: Option<Cargo>,
    ) {
        let reader = self.clone();
        let landing = Landing { source, flight };
        self.runtime.spawn(async move {
            let Landing { source, flight } = &landing;
            let outcome = reader.fly(source, flight, cargo).await;
            if let Err(error) = &outcome {
                tracing::debug!(key = %source.version.key.key, %error, "fetch failed");
            }
            source.version.flights.end(flight, outcome);
            reader.settle(source);
            reader.cache.used(&source.version);
        });
    }

    async fn fly(
        self: &Arc<Self>,
        source: &Source,
        flight: &Arc<Flight>,
        mut cargo: Option<Cargo>,
    ) -> Result<(), OriginError> {
        let size = source.version.size();
        let range = blocks::bytes_of(&flight.range(), size);
        let bytes = (range.end - range.start) as usize;
        let version = &source.version;
        let room = |may: &_| self.cache.make_room(may, version, bytes as u64);
        let room = version.stores().in_place(room).await;
        if room.is_none() {
            self.metrics.cache_bypassed_bytes.inc_by(bytes as u64);
        }
        let mut filler = Filler::new(self.clone(), source.clone(), flight.clone(), room);
        let mut at = range.start;
        let mut tries = 0;
        let mut place = None;
        while at < range.end {
            filler.cargo = match cargo.take() {
                None => self.cargo(&source.lane, filler.needs()).await,
                spare => spare,
            };
            let wanted = at..range.end;
            let received = self.receive(source, wanted, &mut filler, &mut at, place.take()).await;
            let failed = match received {
                Ok(()) => continue,
                Err(Interruption::Failed(error)) => error,
                Err(Interruption::Slow) => {
                    at = filler.give_up();
                    let waiting = self.lanes.slow_place(&source.lane, filler.needs());
                    match tokio::time::timeout(SLOW_PATIENCE, waiting).await {
                        Ok(had) => {
                            place = had;
                            continue;
                        }
                        Err(_) => OriginError::TimedOut,
                    }
                }
            };
            tries += 1;
            if !failed.is_transient() || tries >= retry::BODY_TRIES {
                return Err(failed);
            }
            // Others may use it meanwhile.
            filler.cargo = None;
            tokio::time::sleep(retry::backoff(tries)).await;
        }
        filler.finish().await;
        Ok(())
    }

    /// One GET; `at` follows what has arrived. `place` is that of a flight that waits for long.
    async fn receive(
        &self,
        source: &Source,
        range: Range<u64>,
        filler: &mut Filler,
        at: &mut u64,
        mut place: Option<SlowPlace>,
    ) -> Result<(), Interruption> {
        let _toll = source.lane.get().await;
        let _slot = self.gets.acquire().await;
        let bytes = filler.needs();
        let body = self.body(&*source.origin, &source.version.key, range);
        let body = self.lanes.patiently(&source.lane, &mut place, bytes, body).await;
        let mut body = body.ok_or(Interruption::Slow)??;
        if body.borrowed {
            source.version.note_borrowed();
            self.doubted.note(&source.version.key);
        }
        loop {
            let (needs, piece) = (filler.needs(), body.pieces.next());
            let piece = self.lanes.patiently(&source.lane, &mut place, needs, piece).await;
            let Some(piece) = piece.ok_or(Interruption::Slow)? else { break };
            let piece = piece?;
            self.metrics.fetched_bytes.inc_by(piece.len() as u64);
            *at += piece.len() as u64;
            filler.add(piece).await?;
        }
        Ok(())
    }
}

impl Reader {
    /// Begins a GET of a range from where the version is now: a rename here moves it.
    ///
    /// # Errors
    /// What the origin reports; [`OriginError::Changed`] where it has another version by now.
    pub async fn body(
        &self,
        origin: &dyn Origin,
        own: &VersionKey,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        let body = |place| body_at(origin, place, range.clone());
        self.at_its_place(own, body).await
    }

    /// Asks whether a version may be read, where it is now.
    ///
    /// # Errors
    /// As [`Reader::body`].
    pub async fn allows(&self, origin: &dyn Origin, own: &VersionKey) -> Result<(), OriginError> {
        let ask =
            |place: VersionKey| async move { origin.allows(&place.key, &place.version).await };
        self.at_its_place(own, ask).await
    }

    async fn at_its_place<T, F>(
        &self,
        own: &VersionKey,
        ask: impl Fn(VersionKey) -> F,
    ) -> Result<T, OriginError>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        let mut place = self.cache.place_of(own);
        loop {
            let asked = ask(place.as_ref().unwrap_or(own).clone()).await;
            if !matches!(asked, Err(OriginError::Changed)) {
                return asked;
            }
            match (self.cache.place_of(own), place) {
                // It was moved while it was asked for.
                (now, then) if now != then => place = now,
                (_, None) => return asked,
                // It is not there, so the move was taken back.
                (_, Some(_)) => return ask(own.clone()).await,
            }
        }
    }
}

async fn body_at(
    origin: &dyn Origin,
    key: VersionKey,
    range: Range<u64>,
) -> Result<Body, OriginError> {
    let body = origin.get(&key.key, &key.version, range).await?;
    if body.etag == key.version.etag { Ok(body) } else { Err(OriginError::Changed) }
}

/// Memory for the runs into which a flight of these blocks is cut.
pub(super) fn capacity_of(blocks: Range<u32>, size: u64) -> usize {
    let bytes = blocks::bytes_of(&blocks, size);
    let bytes = (bytes.end - bytes.start) as usize;
    // A run over block size takes whole blocks.
    if blocks.len() == 1 { capacity_for(bytes) } else { blocks.len() * BLOCK as usize }
}

/// Cuts what arrives into runs of blocks, shows them to readers, and writes them to the disk
/// behind. A run ends where FUSE's largest reads end, so that such a read is answered from one
/// buffer, and where the bytes end that somebody already waits for.
struct Filler {
    reader: Arc<Reader>,
    source: Source,
    flight: Arc<Flight>,
    /// Memory for what is to come; none between two tries.
    cargo: Option<Cargo>,
    /// Where it is to be stored; none if it only passes through.
    room: Option<Arc<Room>>,
    /// First block of the run that is being filled.
    block: u32,
    buffer: Option<(Buffer, usize)>,
    writing: Option<JoinHandle<()>>,
}

impl Filler {
    fn new(reader: Arc<Reader>, source: Source, flight: Arc<Flight>, room: Option<Room>) -> Self {
        let block = flight.range().start;
        let room = room.map(Arc::new);
        Self { reader, source, flight, cargo: None, room, block, buffer: None, writing: None }
    }

    /// Memory for the runs that are to come, in bytes.
    fn needs(&self) -> usize {
        let begun = if self.buffer.is_some() { self.run().end } else { self.block };
        capacity_of(begun..self.flight.range().end, self.source.version.size())
    }

    /// Gives all memory back. Returns where the bytes begin that are to come again.
    fn give_up(&mut self) -> u64 {
        (self.cargo, self.buffer) = (None, None);
        let size = self.source.version.size();
        blocks::bytes_of(&(self.block..self.block + 1), size).start
    }

    /// The blocks of the run that begins at `self.block`.
    fn run(&self) -> Range<u32> {
        let aligned = (self.block / RUN + 1) * RUN;
        let mut end = aligned.min(self.flight.range().end);
        let wanted = self.flight.wanted();
        if self.block < wanted {
            end = end.min(wanted);
        }
        self.block..end
    }

    async fn add(&mut self, mut piece: Bytes) -> Result<(), OriginError> {
        while !piece.is_empty() && self.block < self.flight.range().end {
            let run = blocks::bytes_of(&self.run(), self.source.version.size());
            let len = (run.end - run.start) as usize;
            let (mut buffer, filled) = match (self.buffer.take(), &mut self.cargo) {
                (Some(partial), _) => partial,
                (None, Some(cargo)) => (cargo.share.buffer(len), 0),
                // Memory is handed out until the node shuts down.
                (None, None) => return Err(OriginError::Unavailable("shutting down".into())),
            };
            let take = piece.len().min(len - filled);
            let part = piece.split_to(take);
            buffer.bytes_mut()[filled..filled + take].copy_from_slice(&part);
            if filled + take == len {
                self.landed(buffer.freeze()).await;
            } else {
                self.buffer = Some((buffer, filled + take));
            }
        }
        Ok(())
    }

    async fn landed(&mut self, data: Vec<Block>) {
        let version = &self.source.version;
        let first = self.block;
        self.reader.hot.insert(version.number, first, &data);
        version.flights.landed(&self.flight, first, &data);
        self.block += data.len() as u32;
        // One write at a time: what is behind it is in memory meanwhile.
        self.written().await;
        if let Some(room) = self.room.clone() {
            self.write(first, data, room);
        }
    }

    fn write(&mut self, first: u32, data: Vec<Block>, room: Arc<Room>) {
        let version = self.source.version.clone();
        let metrics = self.reader.metrics.clone();
        let stored = version.clone();
        let store = move |may: &_| {
            if let Err(error) = stored.store(may, first, &data, &room) {
                // The pod gets its bytes from memory; the disk only does not keep them.
                metrics.cache_bypassed_bytes.inc_by(data.iter().map(|b| b.len() as u64).sum());
                tracing::warn!(%error, "cache disk refuses a write; reading through");
            }
        };
        self.writing = Some(tokio::spawn(async move { version.stores().in_place(store).await }));
    }

    async fn written(&mut self) {
        if let Some(writing) = self.writing.take()
            && let Err(error) = writing.await
        {
            tracing::error!(%error, "the write to the cache was cut short");
        }
    }

    async fn finish(mut self) {
        self.written().await;
    }
}
