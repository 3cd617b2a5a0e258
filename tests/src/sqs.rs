//! A queue of SQS's: a server of this process that keeps what was received until it is deleted, or, where
//! `$WEIR_MOTO` names `moto_server`, that of moto. Facts: Amazon's API reference of SQS; AWS JSON 1.0.

use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Value, json};

use crate::http::{self, Body};
use crate::servers::free_port;
use crate::{eventually, runtime};

/// How long what was received is given to nobody else.
const VISIBLE_AGAIN: Duration = Duration::from_secs(2);
/// The account of the queue.
const ACCOUNT: &str = "123456789012";

/// A server with one queue.
pub struct Sqs {
    /// URL of the server.
    pub url: String,
    kept: Arc<Mutex<Vec<Kept>>>,
    moto: Option<Child>,
}

/// A message that is not deleted.
struct Kept {
    id: String,
    body: String,
    hidden: Option<Instant>,
}

/// Name of the queue.
pub const QUEUE: &str = "events";

impl Sqs {
    /// Starts one.
    pub fn start() -> Self {
        let kept: Arc<Mutex<Vec<Kept>>> = Arc::default();
        let sqs = match std::env::var_os("WEIR_MOTO") {
            Some(program) => {
                let port = free_port();
                let moto = Command::new(program)
                    .args(["-H", "127.0.0.1", "-p", &port.to_string()])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn();
                Self { url: format!("http://127.0.0.1:{port}"), kept, moto: Some(moto.unwrap()) }
            }
            None => {
                let answered = kept.clone();
                let address = http::serve(move |request| answer(answered.clone(), request));
                Self { url: format!("http://{address}"), kept, moto: None }
            }
        };
        let attributes = json!({ "VisibilityTimeout": VISIBLE_AGAIN.as_secs().to_string() });
        let queue = json!({ "QueueName": QUEUE, "Attributes": attributes });
        eventually("the queue is there", || sqs.ask("CreateQueue", &queue).is_some());
        sqs
    }

    /// URL of the queue.
    pub fn queue(&self) -> String {
        format!("{}/{ACCOUNT}/{QUEUE}", self.url)
    }

    /// Sends a message, as S3 does.
    pub fn send(&self, body: &Value) {
        let message = json!({ "QueueUrl": self.queue(), "MessageBody": body.to_string() });
        self.ask("SendMessage", &message).unwrap();
    }

    /// Messages that are not deleted.
    #[expect(clippy::len_without_is_empty, reason = "it asks a server")]
    pub fn len(&self) -> u64 {
        let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let asked = json!({ "QueueUrl": self.queue(), "AttributeNames": names });
        let told = self.ask("GetQueueAttributes", &asked).unwrap();
        let number = |name| told["Attributes"][name].as_str().unwrap().parse::<u64>().unwrap();
        names.map(number).iter().sum()
    }

    fn ask(&self, action: &str, body: &Value) -> Option<Value> {
        let request = Request::post(format!("{}/", self.url))
            .header("x-amz-target", format!("AmazonSQS.{action}"))
            .header("content-type", "application/x-amz-json-1.0")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/sqs/aws4_request",
            )
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        runtime().block_on(async {
            let client =
                hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new());
            let answer = client.build_http().request(request).await.ok()?;
            let is_done = answer.status().is_success();
            let bytes = answer.into_body().collect().await.ok()?.to_bytes();
            is_done.then(|| serde_json::from_slice(&bytes).unwrap_or(Value::Null))
        })
    }

    /// Whether a message that has this word was received, and is not deleted.
    pub fn received(&self, word: &str) -> bool {
        let is_it = |kept: &Kept| kept.hidden.is_some() && kept.body.contains(word);
        self.kept.lock().unwrap().iter().any(is_it)
    }
}

impl Drop for Sqs {
    fn drop(&mut self) {
        if let Some(moto) = &mut self.moto {
            let _ = moto.kill();
            let _ = moto.wait();
        }
    }
}

async fn answer(
    kept: Arc<Mutex<Vec<Kept>>>,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let action = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let action = action.and_then(|target| target.strip_prefix("AmazonSQS.")).unwrap_or_default();
    let (action, host) = (action.to_owned(), request.headers()["host"].clone());
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let asked: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
    let said = match action.as_str() {
        "CreateQueue" | "GetQueueUrl" => {
            json!({ "QueueUrl": format!("http://{}/{ACCOUNT}/{QUEUE}", host.to_str().unwrap()) })
        }
        "SendMessage" => {
            let id = format!("{:016x}", rand::random::<u64>());
            let body = asked["MessageBody"].as_str().unwrap().to_owned();
            kept.lock().unwrap().push(Kept { id: id.clone(), body, hidden: None });
            json!({ "MessageId": id })
        }
        "GetQueueAttributes" => {
            let number = kept.lock().unwrap().len().to_string();
            json!({ "Attributes": {
                "ApproximateNumberOfMessages": number, "ApproximateNumberOfMessagesNotVisible": "0",
            }})
        }
        "ReceiveMessage" => json!({ "Messages": receive(&kept, &asked).await }),
        "DeleteMessageBatch" => {
            let entries = asked["Entries"].as_array().unwrap();
            let is_deleted =
                |kept: &Kept| entries.iter().any(|entry| entry["ReceiptHandle"] == *kept.id);
            kept.lock().unwrap().retain(|kept| !is_deleted(kept));
            let done: Vec<_> = entries.iter().map(|entry| json!({ "Id": entry["Id"] })).collect();
            json!({ "Successful": done, "Failed": [] })
        }
        _ => return Err(io::Error::other(format!("unknown: {action}"))),
    };
    let body = Full::new(Bytes::from(said.to_string())).map_err(|never| match never {}).boxed();
    Ok(Response::builder().header("content-type", "application/x-amz-json-1.0").body(body).unwrap())
}

async fn receive(kept: &Mutex<Vec<Kept>>, asked: &Value) -> Vec<Value> {
    let most = asked["MaxNumberOfMessages"].as_u64().unwrap_or(1) as usize;
    let until =
        Instant::now() + Duration::from_secs(asked["WaitTimeSeconds"].as_u64().unwrap_or(0));
    loop {
        let visible = |kept: &&mut Kept| {
            kept.hidden.is_none_or(|since: Instant| since.elapsed() >= VISIBLE_AGAIN)
        };
        let give = |kept: &mut Kept| {
            kept.hidden = Some(Instant::now());
            json!({ "MessageId": kept.id, "ReceiptHandle": kept.id, "Body": kept.body })
        };
        let given: Vec<_> =
            kept.lock().unwrap().iter_mut().filter(visible).take(most).map(give).collect();
        if !given.is_empty() || Instant::now() >= until {
            return given;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
