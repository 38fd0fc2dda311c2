//! The REST API's client: what the command line and the tests use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::{Method, StatusCode, header};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::api::{Accepted, Data, ErrorBody, ErrorCode, ErrorInfo, Listing, NODE};
use crate::domain::Task;

/// Most of a list that one answer holds.
const PART_MAX: usize = 1000;

/// Where a node is, how it proves itself, and who we are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://HOST:PORT`.
    pub server: String,
    /// The site's certificate authority, as PEM.
    pub authority: String,
    /// A token.
    pub token: String,
}

/// Why there is no answer, or one that refuses.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The context file.
    #[error("cannot read {path}")]
    Context {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What the context file says.
    #[error("the context cannot be used: {0}")]
    BadContext(String),
    /// Nobody answers, or somebody else.
    #[error("cannot talk to {server}")]
    Connect {
        /// Who should.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that no node gives.
    #[error("the answer is not what a node gives: {0}")]
    Protocol(String),
    /// The node refuses.
    #[error("{}", .0.message)]
    Refused(ErrorInfo),
}

impl Context {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ClientError::Context`], [`ClientError::BadContext`].
    pub fn load(path: &Path) -> Result<Self, ClientError> {
        let bytes = std::fs::read(path).map_err(|source| ClientError::Context {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::BadContext(format!("{}: {error}", path.display())))
    }
}

/// A node's API.
#[derive(Clone)]
pub struct Client {
    context: Context,
    http: reqwest::Client,
    tls: Arc<ClientConfig>,
    node: Option<header::HeaderValue>,
}

/// A WebSocket to a node.
pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError::BadContext`].
    pub fn new(context: Context) -> Result<Self, ClientError> {
        let bad = |reason: String| ClientError::BadContext(reason);
        if !context.server.starts_with("https://") {
            return Err(bad(format!("server {:?} is no https://", context.server)));
        }
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(context.authority.as_bytes()) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| bad(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .use_preconfigured_tls(tls.clone())
            .no_proxy()
            .connect_timeout(std::time::Duration::from_secs(10))
            .build()
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            context,
            http,
            tls: Arc::new(tls),
            node: None,
        })
    }

    /// The same, for a node of the cluster that is to do what is asked for.
    ///
    /// # Errors
    /// [`ClientError::BadContext`]: that is no node's name.
    pub fn on_node(mut self, node: &str) -> Result<Self, ClientError> {
        let name = header::HeaderValue::from_str(node);
        let valid = name.ok().filter(|_| crate::domain::is_label(node));
        let bad = || ClientError::BadContext(format!("{node:?} is no node's name"));
        self.node = Some(valid.ok_or_else(bad)?);
        Ok(self)
    }

    /// A request to `path` under `/api/v1`.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/api/v1{path}", self.context.server);
        let request = self.http.request(method, url);
        let request = request.bearer_auth(&self.context.token);
        match &self.node {
            Some(node) => request.header(NODE, node),
            None => request,
        }
    }

    /// Sends a request; an answer that refuses is an error.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, ClientError> {
        let sent = request.send().await;
        let response = sent.map_err(|source| self.no_answer(source.without_url()))?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|source| self.no_answer(source.without_url()))?;
        Err(refusal(status, &body))
    }

    fn no_answer(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Connect {
            server: self.context.server.clone(),
            source: source.into(),
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let body = self.send(request).await?.bytes().await;
        let body = body.map_err(|source| self.no_answer(source.without_url()))?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// A request whose answer is one thing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn data<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let data: Data<T> = self.json(request).await?;
        Ok(data.data)
    }

    /// `GET` of one thing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.data(self.request(Method::GET, path)).await
    }

    /// One thing, and the `ETag` that an edit needs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_tagged<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, String), ClientError> {
        let response = self.send(self.request(Method::GET, path)).await?;
        let etag = response.headers().get(header::ETAG);
        let etag = etag.and_then(|etag| etag.to_str().ok()).unwrap_or_default();
        let etag = etag.to_owned();
        let data = response.json::<Data<T>>().await;
        let data = data.map_err(|error| ClientError::Protocol(error.to_string()))?;
        Ok((data.data, etag))
    }

    /// All of a list, part after part.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut all = Vec::new();
        let mut request = self.request(Method::GET, path);
        loop {
            let part: Listing<T> = self.json(request).await?;
            all.extend(part.data);
            let Some(next) = part.next else {
                return Ok(all);
            };
            request = self.request(Method::GET, path).query(&[("after", next)]);
        }
    }

    /// The first `limit` of a list, or all if there are fewer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_first<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: usize,
    ) -> Result<Vec<T>, ClientError> {
        let mut first = Vec::new();
        let mut after: Option<String> = None;
        while first.len() < limit {
            let part = (limit - first.len()).min(PART_MAX);
            let mut request = self.request(Method::GET, path).query(&[("limit", part)]);
            if let Some(after) = &after {
                request = request.query(&[("after", after)]);
            }
            let part: Listing<T> = self.json(request).await?;
            first.extend(part.data);
            if part.next.is_none() {
                break;
            }
            after = part.next;
        }
        Ok(first)
    }

    /// A command that is done when it is answered.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.data(self.request(Method::POST, path).json(body)).await
    }

    /// A request that begins a task.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin(&self, request: reqwest::RequestBuilder) -> Result<Task, ClientError> {
        let accepted: Accepted = self.json(request).await?;
        Ok(accepted.task)
    }

    /// A WebSocket at `path` under `/api/v1`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn websocket(&self, path: &str) -> Result<Socket, ClientError> {
        let url = format!(
            "{}/api/v1{path}",
            self.context.server.replacen("https", "wss", 1)
        );
        let bad = |error: &dyn std::fmt::Display| ClientError::BadContext(error.to_string());
        let mut request = url.into_client_request().map_err(|error| bad(&error))?;
        let token = format!("Bearer {}", self.context.token);
        let token = token.parse().map_err(|error| bad(&error))?;
        request.headers_mut().insert(header::AUTHORIZATION, token);
        if let Some(node) = &self.node {
            request.headers_mut().insert(NODE, node.clone());
        }
        let host = request.uri().host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = request.uri().port_u16().unwrap_or(443);
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(|error| self.no_answer(error))?;
        let name = ServerName::try_from(host).map_err(|error| bad(&error))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|error| self.no_answer(error))?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                let status = response.status().as_u16();
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                Err(refusal(status, body))
            }
            Err(error) => Err(self.no_answer(error)),
        }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => ClientError::Refused(body.error),
        Err(_) => ClientError::Protocol(format!("status {status} without a reason")),
    }
}

impl ClientError {
    /// The code with which a node refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(info) => Some(info.code),
            _ => None,
        }
    }
}
