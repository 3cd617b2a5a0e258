//! Jobs of a cluster, which go on after they were asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::time::sleep;

use super::exchange::{Exchange, Question};
use crate::origin::OriginError;

/// How often it is asked what became of a job, first and at last.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a job is waited for.
const MOST: Duration = Duration::from_secs(30);

/// What a cluster says of a job (`nl/listener.go`, `Status`). What could not be done of it stands in
/// another field: an object that is not there cannot be forgotten.
#[derive(Deserialize)]
struct Status {
    /// 0 until it has ended.
    end_time: i64,
    #[serde(default)]
    aborted: bool,
}

/// Waits for the end of a job. Of one of which the cluster says nothing, or nothing to who asks, the
/// cluster's word counts that it would do it.
///
/// # Errors
/// That it was aborted, or has not ended in time, or that the cluster does not answer.
pub(super) async fn until_ended(exchange: &Arc<Exchange>, id: &str) -> Result<(), OriginError> {
    let question = Question {
        method: "GET",
        target: "/v1/cluster?what=status".to_owned(),
        json: Some(serde_json::json!({"id": id}).to_string()),
        ..Question::default()
    };
    let (began, mut pause) = (Instant::now(), PAUSE);
    while began.elapsed() < MOST {
        let (status, text) = exchange.told(&question).await?;
        match (status, serde_json::from_slice::<Status>(&text)) {
            (500.., _) => return Err(OriginError::Unavailable(format!("HTTP {status}"))),
            (200, Ok(job)) if job.aborted => {
                return Err(OriginError::Unavailable(format!("the job {id} was aborted")));
            }
            (200, Ok(job)) if job.end_time == 0 => {}
            _ => return Ok(()),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Err(OriginError::Busy(format!("the job {id} goes on")))
}
