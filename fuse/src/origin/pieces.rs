//! The pieces of a body as they arrive.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::{OriginError, error};

/// Hands on the pieces of a body, waits for each at most so long, and checks the length at the end:
/// a body may end early without an error.
pub(super) fn checked(
    body: ByteStream,
    expected: u64,
    stall: Duration,
) -> stream::BoxStream<'static, Result<Bytes, OriginError>> {
    struct State {
        body: ByteStream,
        left: u64,
        over: bool,
    }
    let state = State { body, left: expected, over: false };
    stream::unfold(state, move |mut state| async move {
        if state.over {
            return None;
        }
        let next = tokio::time::timeout(stall, state.body.next()).await;
        let item = match next {
            Err(_) => Err(OriginError::TimedOut),
            Ok(Some(Err(e))) => Err(OriginError::BadBody(error::chain(&e))),
            Ok(None) if state.left == 0 => return None,
            Ok(None) => Err(OriginError::BadBody(format!("{} bytes are missing", state.left))),
            Ok(Some(Ok(piece))) => match state.left.checked_sub(piece.len() as u64) {
                Some(left) => {
                    state.left = left;
                    Ok(piece)
                }
                None => Err(OriginError::BadBody("longer than announced".into())),
            },
        };
        state.over = item.is_err();
        Some((item, state))
    })
    .boxed()
}
