//! Servers of HTTP that say what a test has them say.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{RegionKind, RegionSettings};

/// A region at this address.
pub(super) fn settings(kind: RegionKind, url: String) -> RegionSettings {
    let (token_file, profile, ca_bundle, allow) = Default::default();
    RegionSettings { url, kind, token_file, profile, ca_bundle, allow }
}

/// An answer with this status, further headers (each with its line's end) and body.
pub(super) fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
}

/// Starts a server. It answers requests by method and target, each on a connection of its own.
pub(super) async fn serve<A>(
    answers: impl Fn(String) -> A + Clone + Send + Sync + 'static,
) -> SocketAddr
where
    A: Future<Output = String> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = client.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let (request, headers) = head.split_once(" HTTP/1.1\r\n").unwrap();
                let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                if client.read_exact(&mut body).await.is_err() {
                    return;
                }
                let answer = answers(request.to_owned()).await;
                // Whoever went away wants none.
                let _ = client.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}
