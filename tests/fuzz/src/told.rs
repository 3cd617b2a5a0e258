//! An HTTP client for AWS's SDK that asks nobody: it is told what the answer is.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;

/// Gives one answer a few times, then none: who asks for page after page comes to an end.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<(Vec<u8>, usize)>>);

impl Told {
    /// Times that an answer is given.
    pub const TIMES: usize = 4;

    /// Sets the answer: the text of a status line, of headers, an empty line, and the body. What a
    /// client would not take for an answer is none.
    pub fn tell(&self, answer: &[u8]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (answer.to_vec(), 0);
    }

    /// As the SDK wants it.
    pub fn client(&self) -> SharedHttpClient {
        SharedHttpClient::new(self.clone())
    }
}

impl HttpClient for Told {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Told {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.1 += 1;
        let answer = (told.1 <= Self::TIMES).then(|| response(&told.0)).flatten();
        let answer = answer.and_then(|answer| HttpResponse::try_from(answer).ok());
        HttpConnectorFuture::ready(answer.ok_or_else(|| ConnectorError::io("no answer".into())))
    }
}

fn response(text: &[u8]) -> Option<http::Response<SdkBody>> {
    let at = text.windows(2).position(|two| two == b"\n\n").unwrap_or(text.len());
    let (head, body) = (&text[..at], text.get(at + 2..).unwrap_or_default());
    let mut lines = head.split(|byte| *byte == b'\n');
    let status = std::str::from_utf8(lines.next()?.split(|byte| *byte == b' ').nth(1)?).ok()?;
    let mut answer = http::Response::builder().status(status.parse::<u16>().ok()?);
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':')?;
        answer = answer.header(&line[..at], line[at + 1..].trim_ascii());
    }
    answer.body(SdkBody::from(body.to_vec())).ok()
}
