//! A slow link: a TCP proxy that delays and paces what passes, standing in for a WAN.
//!
//! It simulates the round trip (half of it in each direction, and one whole for every new
//! connection) and the bandwidth, which all connections share. It does not simulate loss.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::runtime;

/// Bytes that one connection may have on the link, in each direction.
const IN_FLIGHT_MAX: usize = 8 << 20;
const CHUNK: usize = 64 << 10;

/// A link to one server.
pub struct Link {
    /// What to connect to instead of the server.
    pub address: SocketAddr,
    wires: [Arc<Wire>; 2],
    accepting: JoinHandle<()>,
}

/// One direction, shared by all connections.
struct Wire {
    delay: Duration,
    bytes_per_sec: f64,
    free_at: Mutex<Instant>,
    carried: AtomicU64,
}

impl Wire {
    /// When bytes sent now arrive.
    fn send(&self, bytes: usize) -> Instant {
        self.carried.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = (*free_at).max(Instant::now())
            + Duration::from_secs_f64(bytes as f64 / self.bytes_per_sec);
        *free_at = sent;
        sent + self.delay
    }
}

impl Link {
    /// A link to `server` with this round trip and bandwidth (bits a second, each direction).
    pub fn new(server: SocketAddr, round_trip: Duration, bits_per_sec: f64) -> Self {
        let wire = || {
            Arc::new(Wire {
                delay: round_trip / 2,
                bytes_per_sec: bits_per_sec / 8.0,
                free_at: Mutex::new(Instant::now()),
                carried: AtomicU64::new(0),
            })
        };
        let wires = [wire(), wire()];
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let both = wires.clone();
        let accepting = runtime().spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let [up, down] = both.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(round_trip).await;
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::join!(
                        carry(from_client, to_server, up),
                        carry(from_server, to_client, down)
                    );
                });
            }
        });
        Self { address, wires, accepting }
    }

    /// Bytes carried so far, to the server and from it.
    pub fn carried(&self) -> (u64, u64) {
        let [up, down] = &self.wires;
        (up.carried.load(Ordering::Relaxed), down.carried.load(Ordering::Relaxed))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Default)]
struct OnTheWay {
    pieces: Mutex<VecDeque<(Instant, Option<Vec<u8>>)>>,
    arrived: Notify,
    room: Notify,
}

impl OnTheWay {
    fn pieces(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Option<Vec<u8>>)>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn carry(from: OwnedReadHalf, to: OwnedWriteHalf, wire: Arc<Wire>) {
    let queue = Arc::new(OnTheWay::default());
    tokio::join!(take_in(from, queue.clone(), wire), hand_out(to, queue));
}

async fn take_in(mut from: OwnedReadHalf, queue: Arc<OnTheWay>, wire: Arc<Wire>) {
    loop {
        let mut piece = Vec::with_capacity(CHUNK);
        let read = from.read_buf(&mut piece).await.unwrap_or(0);
        let at = wire.send(read);
        queue.pieces().push_back((at, (read > 0).then_some(piece)));
        queue.arrived.notify_one();
        if read == 0 {
            return;
        }
        while queue.pieces().len() * CHUNK > IN_FLIGHT_MAX {
            queue.room.notified().await;
        }
    }
}

async fn hand_out(mut to: OwnedWriteHalf, queue: Arc<OnTheWay>) {
    loop {
        let next = queue.pieces().pop_front();
        let Some((at, piece)) = next else {
            queue.arrived.notified().await;
            continue;
        };
        queue.room.notify_one();
        if at > Instant::now() {
            tokio::time::sleep_until(at.into()).await;
        }
        match piece {
            Some(piece) if to.write_all(&piece).await.is_ok() => {}
            _ => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn what_passes_is_whole_late_and_paced() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let link = Link::new(server, Duration::from_millis(40), 80e6);
        let start = Instant::now();
        let mut stream = std::net::TcpStream::connect(link.address).unwrap();
        let sent = crate::random_bytes(1, 1_000_000);
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        echo.join().unwrap();
        assert!(back == sent);
        // A connection and a round trip, and each way 0.1 s for the bytes: at least.
        assert!(start.elapsed() >= Duration::from_millis(280), "{:?}", start.elapsed());
        assert_eq!(link.carried(), (1_000_000, 1_000_000));
    }
}
