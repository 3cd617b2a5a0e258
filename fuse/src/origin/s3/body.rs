//! Bodies of uploads: handed out in small pieces, and watched for progress.
//!
//! An upload has as long as it takes, as long as it moves: a time for the whole of it would
//! refuse slow links whatever is sent over them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use memmap2::MmapMut;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::blocking::{MayBlock, Turns};
use crate::origin::UploadBody;
use crate::page_cache;

/// An upload of whose body nothing was taken for so long has failed.
const STALLED: Duration = Duration::from_secs(30);
/// Longest wait for the answer once the whole body was taken...
const ANSWER: Duration = Duration::from_secs(60);
/// ...and a second more for each so many bytes, which a socket or a proxy may still hold.
const DRAINED_PER_SEC: u64 = 64 * 1024;
/// Size of the pieces, in bytes.
const PIECE: u64 = 256 * 1024;
/// Most buffers kept for pieces to come: two for each of a mount's parts under way.
const SPARE_MAX: usize = 16;

/// How far an upload has come.
pub(super) struct Progress {
    len: u64,
    state: Mutex<State>,
}

struct State {
    taken: u64,
    moved: Instant,
}

impl Progress {
    fn new(len: u64) -> Arc<Self> {
        Arc::new(Self { len, state: Mutex::new(State { taken: 0, moved: Instant::now() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, bytes: u64) {
        let mut state = self.state();
        state.taken += bytes;
        state.moved = Instant::now();
    }

    fn deadline(&self) -> Instant {
        let state = self.state();
        let patience = match state.taken < self.len {
            true => STALLED,
            false => ANSWER + Duration::from_secs(self.len / DRAINED_PER_SEC),
        };
        state.moved + patience
    }

    /// Returns when the upload has not moved for too long.
    pub(super) async fn stalled(&self) {
        loop {
            let deadline = self.deadline();
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// The body as the SDK wants it, and how far it has come.
pub(super) fn stream(body: UploadBody) -> (ByteStream, Arc<Progress>) {
    let len = body.len();
    let progress = Progress::new(len);
    if len == 0 {
        // The one body that the SDK can send again by itself.
        return (ByteStream::from(Bytes::new()), progress);
    }
    let (source, start) = match body {
        UploadBody::Memory { bytes, .. } => (Source::Memory(bytes), 0),
        UploadBody::File { file, calls, offset, .. } => (Source::File(file, calls), offset),
    };
    let end = start + len;
    let pieces = Pieces { source, at: start, end, progress: progress.clone(), reading: None };
    (ByteStream::new(SdkBody::from_body_1_x(pieces)), progress)
}

/// A piece of a file that ends at `end`, from `at` on; these are the turns at its disk.
pub(super) fn read(
    _: &MayBlock,
    (file, calls): (&File, &Turns),
    at: u64,
    end: u64,
) -> io::Result<Bytes> {
    let _call = calls.call();
    let mut piece = Piece::new(PIECE.min(end - at) as usize)?;
    file.read_exact_at(piece.bytes_mut(), at)?;
    Ok(Bytes::from_owner(piece))
}

/// Memory that no piece is in.
static SPARE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// The memory of a piece, used again once the piece was sent: fresh memory costs page faults. It
/// is aligned, see [`page_cache::read`].
struct Piece {
    /// There until it is dropped.
    memory: Option<MmapMut>,
    len: usize,
}

impl Piece {
    fn new(len: usize) -> io::Result<Self> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = spare.map_or_else(|| MmapMut::map_anon(PIECE as usize), Ok)?;
        Ok(Self { memory: Some(memory), len })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory[..self.len])
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory[..self.len])
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.extend(self.memory.take());
        }
    }
}

enum Source {
    Memory(Bytes),
    File(Arc<File>, Arc<Turns>),
}

struct Pieces {
    source: Source,
    at: u64,
    end: u64,
    progress: Arc<Progress>,
    /// The piece at `at`, being read from the disk.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Pieces {
    /// The piece at `at`, if it is in memory: most bodies were written just now.
    fn at_hand(&self) -> Option<Bytes> {
        let Source::File(file, _) = &self.source else { return None };
        let mut piece = Piece::new(PIECE.min(self.end - self.at) as usize).ok()?;
        page_cache::read(file, piece.bytes_mut(), self.at).ok()?;
        Some(Bytes::from_owner(piece))
    }

    fn begin_reading(&mut self, at: u64) {
        let Source::File(file, calls) = &self.source else { return };
        let (file, calls, end) = (file.clone(), calls.clone(), self.end);
        let read = async move { calls.in_place(|may| read(may, (&file, &calls), at, end)).await };
        self.reading = Some(tokio::spawn(read));
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Source::Memory(bytes) = &self.source {
            let end = self.end.min(self.at + PIECE);
            return Poll::Ready(Ok(bytes.slice(self.at as usize..end as usize)));
        }
        if self.reading.is_none() {
            if let Some(piece) = self.at_hand() {
                return Poll::Ready(Ok(piece));
            }
            self.begin_reading(self.at);
        }
        let Some(reading) = &mut self.reading else { return Poll::Pending };
        let piece = ready!(Pin::new(reading).poll(cx)).map_err(io::Error::other)??;
        self.reading = None;
        // What follows is likely to be there only, too.
        let next = self.at + piece.len() as u64;
        if next < self.end {
            self.begin_reading(next);
        }
        Poll::Ready(Ok(piece))
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.at == this.end {
            return Poll::Ready(None);
        }
        let piece = ready!(this.poll_piece(cx))?;
        this.at += piece.len() as u64;
        this.progress.note(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn bytes(len: u64) -> Vec<u8> {
        (0..len).map(|n| (n * 7 / 3) as u8).collect()
    }

    fn in_file(content: &[u8], offset: u64, len: u64) -> UploadBody {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let calls = Arc::new(Turns::new(1));
        UploadBody::File { file: Arc::new(file), calls, offset, len, crc32c: 0 }
    }

    #[tokio::test]
    async fn a_body_is_its_bytes_from_memory_and_from_a_file() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5] {
            let content = bytes(len + 20);
            let part = &content[10..10 + len as usize];
            for body in [UploadBody::of(part.to_vec()), in_file(&content, 10, len)] {
                let (stream, progress) = stream(body);
                let body = stream.into_inner();
                assert_eq!(body.try_clone().is_some(), len == 0);
                let stream = ByteStream::new(body);
                assert!(stream.collect().await.unwrap().into_bytes() == part, "{len}");
                assert_eq!(progress.state().taken, len);
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_is_on_the_disk_only_is_its_bytes() {
        let content = bytes(5 * PIECE / 2);
        let body = in_file(&content, 0, content.len() as u64);
        let UploadBody::File { file, .. } = &body else { unreachable!() };
        file.sync_all().unwrap();
        page_cache::leave(file, 0, None);
        let (stream, _) = stream(body);
        assert!(stream.collect().await.unwrap().into_bytes() == content);
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error() {
        let (stream, _) = stream(in_file(&bytes(10), 0, 11));
        stream.collect().await.unwrap_err();
    }

    #[tokio::test]
    async fn an_upload_has_its_time_from_when_it_moved_last_and_for_its_answer_more() {
        let (mut body, progress) = stream(UploadBody::of(bytes(2 * PIECE)));
        let begun = progress.deadline();
        assert_eq!(begun, progress.state().moved + STALLED);
        tokio::time::sleep(Duration::from_millis(2)).await;
        body.next().await.unwrap().unwrap();
        let moved = progress.deadline();
        assert!(moved > begun);
        assert_eq!(moved, progress.state().moved + STALLED);
        body.next().await.unwrap().unwrap();
        assert!(progress.deadline() >= progress.state().moved + ANSWER);
        progress.state().moved -= 10 * ANSWER;
        progress.stalled().await;
    }
}
