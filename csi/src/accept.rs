//! What every loop does that accepts connections, where that fails.

use std::io;
use std::time::Duration;

/// After an accept that failed for want of descriptors or memory: until then nothing is tried.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits for as long as no other accept is of use after this failure.
pub async fn failed(error: &io::Error) {
    if is_of_one_client(error) {
        return;
    }
    tracing::warn!(%error, "accept failed; the next one is after a pause");
    tokio::time::sleep(PAUSE).await;
}

/// Whether an accept failed because of the client whose connection it was: accept(2), "Error
/// handling". Each such failure takes a connection off the queue, so that none comes twice.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
