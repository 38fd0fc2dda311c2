//! Bundles that the node fetches itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Method, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{Bundle, UpdateError, Updates};
use crate::causes::chain;
use crate::tasks::{Failure, TaskContext};

/// Whom the host trusts (Debian's ca-certificates).
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the head of the answer, and then each next piece, may take to come.
const PIECE_DEADLINE: Duration = Duration::from_secs(60);

impl Updates {
    /// Fetches a bundle from anywhere.
    pub(super) async fn fetch(&self, url: &str, context: &TaskContext) -> Result<Bundle, Failure> {
        let failed = |reason: String| UpdateError::Fetch {
            url: url.to_owned(),
            reason,
        };
        let parsed = require_url(url)?;
        let client = client().map_err(failed)?;
        context.log(&format!("fetching {url}"));
        self.receive_answer(client.get(parsed), context, failed)
            .await
    }

    /// Fetches the bundle that another node has.
    pub(super) async fn fetch_from(
        &self,
        node: &str,
        context: &TaskContext,
    ) -> Result<Bundle, Failure> {
        let peers = self.peers.as_ref();
        let peers = peers.ok_or_else(|| UpdateError::NotIn(self.node.clone()))?;
        let path = format!("/nodes/{node}/bundle/content");
        let request = peers.request(node, Method::GET, &path).await;
        let request = request.map_err(UpdateError::from)?;
        context.log(&format!("fetching the bundle that node {node} has"));
        let failed = |reason: String| UpdateError::Fetch {
            url: format!("the bundle of node {node}"),
            reason,
        };
        self.receive_answer(request, context, failed).await
    }

    async fn receive_answer(
        &self,
        request: reqwest::RequestBuilder,
        context: &TaskContext,
        failed: impl Fn(String) -> UpdateError,
    ) -> Result<Bundle, Failure> {
        let late = || failed(format!("nothing came for {} s", PIECE_DEADLINE.as_secs()));
        let broken = |error: reqwest::Error| failed(chain(&error.without_url()));
        let answer = tokio::time::timeout(PIECE_DEADLINE, request.send()).await;
        let answer = answer.map_err(|_| late())?.map_err(broken)?;
        let answer = answer.error_for_status().map_err(broken)?;
        let length = answer.content_length();
        let mut incoming = self.shelf().receive(length.unwrap_or(0)).await?;
        let mut pieces = answer.bytes_stream();
        loop {
            context.check()?;
            let next = tokio::time::timeout(PIECE_DEADLINE, pieces.next()).await;
            let Some(piece) = next.map_err(|_| late())? else {
                break;
            };
            incoming.write(&piece.map_err(broken)?).await?;
            let percent = length.map_or(0, |length| incoming.bytes() * 10 / length.max(1));
            context.progress(percent.min(10) as u8, "fetching the bundle");
        }
        let arrived = incoming.finish().await?;
        if length.is_some_and(|length| length != arrived.bytes) {
            let reason = format!("it broke off after {} bytes", arrived.bytes);
            return Err(failed(reason).into());
        }
        Ok(self.take_in(arrived).await?)
    }
}

/// Refuses what cannot be fetched.
pub(super) fn require_url(url: &str) -> Result<Url, UpdateError> {
    let failed = |reason: &dyn std::fmt::Display| UpdateError::Fetch {
        url: url.chars().take(200).collect(),
        reason: reason.to_string(),
    };
    let parsed = Url::parse(url).map_err(|error| failed(&error))?;
    match parsed.scheme() {
        "http" | "https" => Ok(parsed),
        _ => Err(failed(&"a URL for this begins with http:// or https://")),
    }
}

fn client() -> Result<reqwest::Client, String> {
    let mut roots = RootCertStore::empty();
    // Without authorities there is HTTP: what makes a bundle trusted is its signature.
    if let Ok(authorities) = CertificateDer::pem_file_iter(AUTHORITIES) {
        roots.add_parsable_certificates(authorities.flatten());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .use_preconfigured_tls(tls)
        .connect_timeout(CONNECT_DEADLINE)
        .build();
    client.map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_that_nothing_can_be_fetched_by_is_refused() {
        assert!(require_url("http://10.0.0.1/pindah.raucb").is_ok());
        for (url, why) in [
            ("file:///etc/passwd", "begins with http"),
            ("pindah.raucb", "relative URL"),
            ("http://", "empty host"),
        ] {
            let error = require_url(url).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
