//! A server that says of itself that it speaks S3, and answers what a test tells it to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request, as far as tests look at it.
#[derive(Debug)]
pub struct Question {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// First and last byte of the range that is asked for.
    pub range: Option<(u64, u64)>,
}

/// An answer, as it is written: head and body, and what follows again and again.
#[derive(Default)]
pub struct Answer {
    bytes: Vec<u8>,
    more: Vec<u8>,
    /// How often `more` follows.
    times: usize,
    /// Whether the connection then stays, until the client goes away.
    stays: bool,
    /// What it goes over.
    line: Option<Arc<Line>>,
}

/// A line that several answers share: what they send follows each other at its rate.
pub struct Line {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
}

impl Line {
    /// One of so many bytes a second.
    pub fn new(bytes_per_second: f64) -> Arc<Self> {
        Arc::new(Self { bytes_per_second, free_at: Mutex::new(Instant::now()) })
    }

    /// Waits until so many bytes may be sent.
    fn pass(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = Instant::now().max(*free_at);
        *free_at = begins + takes;
        drop(free_at);
        std::thread::sleep(begins.saturating_duration_since(Instant::now()));
    }
}

impl Answer {
    /// Its endless part goes over this line.
    pub fn over(self, line: Arc<Line>) -> Self {
        Self { line: Some(line), ..self }
    }
}

/// Where what follows ends after all, in bytes: a client that takes it should fail, not the machine.
const ENDLESS: usize = 1 << 30;

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }
}

/// An answer with this status and headers, each with its line end, whose body begins like this and
/// goes on with `more` until the client goes away, or for a GiB.
pub fn endless(status: u16, headers: &str, body: &[u8], more: &[u8]) -> Answer {
    let head = format!("HTTP/1.1 {status} Told\r\nConnection: close\r\n{headers}\r\n");
    let more = more.repeat(65_536 / more.len() + 1);
    let times = ENDLESS / more.len();
    Answer { bytes: [head.as_bytes(), body].concat(), more, times, ..Answer::default() }
}

/// A 200 with these headers whose body begins like this and goes on for so many bytes, but not to its end.
pub fn stalled(headers: &str, body: &[u8], len: usize) -> Answer {
    let answer = endless(200, headers, body, b"x");
    Answer { times: len / answer.more.len(), stays: true, ..answer }
}

/// A 200 with these headers, each with its line end, and a body.
pub fn answer(headers: &str, body: &[u8]) -> Answer {
    let length = match headers.contains("Content-Length") {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    let all = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{length}{headers}\r\n");
    [all.as_bytes(), body].concat().into()
}

/// A 404.
pub fn not_found() -> Answer {
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec().into()
}

/// Serves at a port of loopback for as long as the process lives. Returns its URL.
pub fn start(answer: impl Fn(&Question) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                // A client that goes away is no failure of ours.
                let _ = converse(&stream, &*answer);
            });
        }
    });
    url
}

fn converse(mut stream: &TcpStream, answer: &dyn Fn(&Question) -> Answer) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut range = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some((from, to)) =
            line.strip_prefix("range: bytes=").and_then(|text| text.split_once('-'))
        {
            range = from.parse().ok().zip(to.parse().ok());
        }
    }
    let question = Question { method: method.into(), target: target.into(), range };
    let Answer { bytes, more, times, stays, line } = answer(&question);
    stream.write_all(&bytes)?;
    (0..times).try_for_each(|_| {
        line.iter().for_each(|line| line.pass(more.len()));
        stream.write_all(&more)
    })?;
    match stays {
        true => stream.read(&mut [0]).map(drop),
        false => Ok(()),
    }
}
