//! Requests to an AIStore cluster. Its proxy answers those about objects with a redirect to the target
//! that has them, which is followed as it was sent.

use std::collections::HashSet;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::timeout;

use super::super::STALL;
use super::lately::Lately;
use crate::origin::OriginError;
use crate::origin::error::chain;
use crate::origin::s3::DirectClient;
use crate::sync::unpoisoned;
use crate::token_file::TokenFile;

/// Longest map of a cluster in bytes: a node in it takes less than a KiB.
const MAP_MAX: usize = 4 << 20;
/// Longest answer that is none of an object's bytes.
const ANSWER_MAX: usize = 64 << 10;
/// How long what a cluster said of its nodes is not asked for again.
const MAP_AGAIN: Duration = Duration::from_secs(10);

/// A way to a cluster.
pub(super) struct Exchange {
    client: DirectClient,
    /// URL of the proxy, without a slash at its end.
    proxy: String,
    token: Option<TokenFile>,
    /// Hosts that a redirect may lead to, as their configuration names them, `HOST` or `HOST:PORT`.
    allowed: HashSet<String>,
    /// Hosts that the cluster said are its nodes.
    nodes: Mutex<HashSet<String>>,
    map: Lately,
}

/// A question.
#[derive(Clone, Default)]
pub(super) struct Question<'a> {
    pub(super) method: &'a str,
    /// Path and query, as they are sent.
    pub(super) target: String,
    pub(super) range: Option<Range<u64>>,
    /// A body of JSON.
    pub(super) json: Option<String>,
}

impl Exchange {
    pub(super) fn new(
        client: DirectClient,
        proxy: &str,
        token: Option<TokenFile>,
        allowed: &[String],
    ) -> Self {
        let allowed = allowed.iter().map(|host| host.to_ascii_lowercase()).collect();
        let proxy = proxy.trim_end_matches('/').to_owned();
        let (nodes, map) = (Mutex::default(), Lately::new(MAP_AGAIN));
        Self { client, proxy, token, allowed, nodes, map }
    }

    /// Asks, and follows one redirect. Returns once the head of the answer is there.
    ///
    /// # Errors
    /// What keeps it from being asked, a redirect that is not followed among it. Statuses are answers.
    pub(super) async fn ask(
        self: &Arc<Self>,
        question: &Question<'_>,
    ) -> Result<HttpResponse, OriginError> {
        let mut answer = self.send(&format!("{}{}", self.proxy, question.target), question).await?;
        if !is_redirect(&answer) {
            return Ok(answer);
        }
        let location = answer.headers().get_bytes("location").unwrap_or_default();
        let url = self.followed(location).await?;
        // So that the connection can be used again.
        let _ = text(&mut answer, ANSWER_MAX).await;
        let answer = self.send(&url, question).await?;
        match is_redirect(&answer) {
            true => Err(OriginError::NotS3("the region redirects twice".into())),
            false => Ok(answer),
        }
    }

    /// Asks for something that is no object's bytes. Returns status and body.
    ///
    /// # Errors
    /// As [`Exchange::ask`], that it takes too long, or that the answer is too long.
    pub(super) async fn told(
        self: &Arc<Self>,
        question: &Question<'_>,
    ) -> Result<(u16, Vec<u8>), OriginError> {
        let asked = async {
            let mut answer = self.ask(question).await?;
            Ok((answer.status().as_u16(), text(&mut answer, ANSWER_MAX).await?))
        };
        timeout(STALL, asked).await.unwrap_or(Err(OriginError::TimedOut))
    }

    async fn send(&self, url: &str, question: &Question<'_>) -> Result<HttpResponse, OriginError> {
        let body = question.json.clone().map_or_else(SdkBody::empty, SdkBody::from);
        let mut request = HttpRequest::new(body);
        let invalid =
            |what: &str| OriginError::NotS3(format!("the region's {what} cannot be asked"));
        request.set_method(question.method).map_err(|_| invalid("method"))?;
        request.set_uri(url).map_err(|_| invalid("URL"))?;
        let headers = request.headers_mut();
        if let Some(range) = &question.range {
            let last = range.end.saturating_sub(1);
            headers.insert("range", format!("bytes={}-{last}", range.start));
        }
        if question.json.is_some() {
            headers.insert("content-type", "application/json");
        }
        if let Some(token) = &self.token {
            let bearer = token.bearer().await;
            let bearer = bearer.map_err(|why| OriginError::Invalid(why.to_string()))?;
            headers.insert("authorization", bearer.to_string());
        }
        self.client.call(request).await.map_err(|error| match error {
            error if error.is_timeout() => OriginError::TimedOut,
            error => OriginError::Unreachable(chain(&error)),
        })
    }

    /// Where a redirect leads. The token goes nowhere that the cluster or the configuration does not
    /// name, and never by plain HTTP where the proxy is reached by TLS.
    async fn followed(self: &Arc<Self>, location: &[u8]) -> Result<String, OriginError> {
        let url = escaped(location);
        let refused = |why: &str| OriginError::NotS3(format!("a redirect of the region {why}"));
        let (scheme, authority) = parts(&url).ok_or_else(|| refused("leads to no URL"))?;
        if parts(&self.proxy).is_none_or(|(own, _)| own != scheme) {
            return Err(refused("leads to another scheme"));
        }
        if !self.is_known(&authority) {
            let exchange = self.clone();
            self.map.ask(Instant::now(), async move { exchange.ask_nodes().await }).await;
            if !self.is_known(&authority) {
                let text =
                    format!("leads to {authority}, which is none of its nodes and not allowed");
                return Err(refused(&text));
            }
        }
        Ok(url)
    }

    fn is_known(&self, authority: &str) -> bool {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        parts(&self.proxy).is_some_and(|(_, own)| own == authority)
            || self.allowed.contains(authority)
            || self.allowed.contains(host)
            || self.nodes().contains(authority)
    }

    /// Asks the cluster for its nodes. Returns whether it said them; `None` where it did not answer.
    async fn ask_nodes(&self) -> Option<bool> {
        let url = format!("{}/v1/daemon?what=smap", self.proxy);
        let question = Question { method: "GET", ..Question::default() };
        let mut answer = self.send(&url, &question).await.ok()?;
        if !answer.status().is_success() {
            return is_an_answer(&answer).then_some(false);
        }
        let map = text(&mut answer, MAP_MAX).await.ok()?;
        let authorities = authorities_in(&map);
        let is_a_map = authorities.is_some();
        if let Some(authorities) = authorities {
            *self.nodes() = authorities;
        }
        Some(is_a_map)
    }

    fn nodes(&self) -> MutexGuard<'_, HashSet<String>> {
        unpoisoned(self.nodes.lock())
    }
}

/// Whether a server has said something of what it was asked, and not that it fails.
pub(super) fn is_an_answer(answer: &HttpResponse) -> bool {
    answer.status().as_u16() < 500
}

fn is_redirect(answer: &HttpResponse) -> bool {
    matches!(answer.status().as_u16(), 301 | 302 | 307 | 308)
}

/// A URL whose bytes beyond ASCII, which may stand in a header, are escaped.
fn escaped(location: &[u8]) -> String {
    let escape = |byte: &u8| match byte {
        b'!'..=b'~' => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    location.iter().map(escape).collect()
}

/// Scheme and host with port of a URL, in small letters.
fn parts(url: &str) -> Option<(String, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let is_host = !authority.is_empty() && !authority.contains(['@', '\\']);
    is_host.then(|| (scheme.to_ascii_lowercase(), authority.to_ascii_lowercase()))
}

/// A cluster's map, as far as it names nodes (`core/meta/snode_wire.go`).
#[derive(Deserialize)]
struct ClusterMap {
    #[serde(default)]
    pmap: std::collections::HashMap<String, Node>,
    #[serde(default)]
    tmap: std::collections::HashMap<String, Node>,
}

#[derive(Deserialize)]
struct Node {
    public_net: Option<Net>,
    intra_data_net: Option<Net>,
    #[serde(default)]
    pub_extra: Vec<Net>,
}

#[derive(Deserialize)]
struct Net {
    #[serde(default)]
    node_hostname: String,
    #[serde(default)]
    daemon_port: String,
    #[serde(default)]
    direct_url: String,
}

fn authorities_in(map: &[u8]) -> Option<HashSet<String>> {
    let map: ClusterMap = serde_json::from_slice(map).ok()?;
    let nodes = map.pmap.into_values().chain(map.tmap.into_values());
    let nets = nodes.flat_map(|node| {
        let Node { public_net, intra_data_net, pub_extra } = node;
        public_net.into_iter().chain(intra_data_net).chain(pub_extra)
    });
    let authorities = nets.filter_map(|net| match parts(&net.direct_url) {
        Some((_, authority)) => Some(authority),
        None if net.node_hostname.is_empty() => None,
        None => Some(format!("{}:{}", net.node_hostname, net.daemon_port).to_ascii_lowercase()),
    });
    Some(authorities.collect())
}

/// The body of an answer that may have at most so many bytes.
///
/// # Errors
/// That it is longer, or ends early.
pub(super) async fn text(answer: &mut HttpResponse, most: usize) -> Result<Vec<u8>, OriginError> {
    let mut body = pin!(std::mem::replace(answer.body_mut(), SdkBody::taken()));
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| OriginError::BadBody(chain(&*error)))?;
        let Ok(piece) = frame.into_data() else { continue };
        if bytes.len() + piece.len() > most {
            return Err(OriginError::NotS3(format!("the region answers more than {most} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has just asked for its nodes.
    fn exchange(proxy: &str, allowed: &[&str]) -> Arc<Exchange> {
        let client = DirectClient::new(crate::blocking::MAY, "http://proxy", None).unwrap();
        let allowed: Vec<_> = allowed.iter().map(|host| (*host).to_owned()).collect();
        let map = Lately::asked_now(Duration::from_secs(3600));
        Arc::new(Exchange { map, ..Exchange::new(client, proxy, None, &allowed) })
    }

    #[tokio::test]
    async fn a_redirect_leads_to_nodes_and_allowed_hosts_by_the_proxys_scheme_alone() {
        let region = exchange("http://proxy:51080/", &["Gate", "edge:8080"]);
        let map = br#"{"tmap": {"t1": {"public_net": {"direct_url": "http://10.0.0.7:51081"}},
            "t2": {"public_net": {"node_hostname": "T2", "daemon_port": "51081"}}}}"#;
        *region.nodes() = authorities_in(map).unwrap();
        for url in [
            "http://10.0.0.7:51081/s3/b/k?pid=p1&utm=1",
            "http://t2:51081/s3/b/k",
            "http://proxy:51080/s3/b/k",
            "http://gate:9/s3",
            "http://EDGE:8080",
        ] {
            assert_eq!(region.followed(url.as_bytes()).await.unwrap(), url);
        }
        for url in [
            "http://10.0.0.7/s3/b/k",
            "http://10.0.0.7:51081@evil/s3",
            "http://evil\\@10.0.0.7:51081/s3",
            "http://evil:51081/s3/b/k",
            "http://edge:8081/s3",
            "https://10.0.0.7:51081/s3/b/k",
            "//10.0.0.7:51081/s3",
            "",
        ] {
            region.followed(url.as_bytes()).await.unwrap_err();
        }
        let secure = exchange("https://proxy", &["gate"]);
        secure.followed(b"http://gate/s3").await.unwrap_err();
        secure.followed(b"https://gate/s3").await.unwrap();
    }

    #[test]
    fn bytes_beyond_ascii_in_a_redirect_are_escaped() {
        assert_eq!(escaped("http://t/s3/b/ö%20 k".as_bytes()), "http://t/s3/b/%C3%B6%20%20k");
    }
}
