//! Other nodes: a request that is theirs is passed on over mutual TLS, and its answer back.
//!
//! Each request has a connection of its own: one that was cut by a partition is noticed when it is
//! opened, within [`CONNECT_DEADLINE`], and never waited for. Who asked goes along in headers that
//! only a node's own port takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::Instant;

use crate::api::{Data, ErrorBody};
use crate::cluster::{NodeAlive, NodeRecord};
use crate::security::{AuthorityError, Grants, NodeCertificate, Principal, Role};
use crate::store::{Collection, Store, StoreError};

/// The node that passes a request on.
pub const FROM: HeaderName = HeaderName::from_static("pindah-from");
/// Who asked it.
pub const USER: HeaderName = HeaderName::from_static("pindah-user");
/// What that one may do everywhere; absent: nothing but what is said of single guests.
pub const ROLE: HeaderName = HeaderName::from_static("pindah-role");
/// What that one may do with single guests, as JSON; absent: with none.
pub const GUESTS: HeaderName = HeaderName::from_static("pindah-guests");
/// By which token it is known.
pub const TOKEN: HeaderName = HeaderName::from_static("pindah-token");

/// What the name of a user begins with that is a node; no other's does.
pub const AS_NODE: &str = "node:";

/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long a node may take for the head of its answer: longer than any wait that can be asked for.
const ANSWER_DEADLINE: Duration = Duration::from_secs(75);

/// Why another node does not answer.
#[derive(Debug, Error)]
pub enum PeerError {
    /// There is none.
    #[error("there is no node {0}; `pindah node list` shows what there is")]
    Unknown(String),
    /// It has not been heard of, or does not take the connection.
    #[error("node {node} cannot be reached: {reason}")]
    Unreachable {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// It took the connection and says nothing.
    #[error("node {node} has not answered for {} s", ANSWER_DEADLINE.as_secs())]
    Timeout {
        /// The node.
        node: String,
    },
    /// It refuses, and says why.
    #[error("node {node}: {message}")]
    Refused {
        /// The node.
        node: String,
        /// One sentence.
        message: String,
    },
    /// An answer that its API does not give.
    #[error("node {node} gave an answer that it should not: {reason}")]
    Answer {
        /// The node.
        node: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The cluster's other nodes, as one of them sees them.
#[derive(Clone)]
pub struct Peers {
    node: String,
    nodes: Collection<NodeRecord>,
    alive: Collection<NodeAlive>,
    store: Arc<dyn Store>,
    http: Arc<Mutex<reqwest::Client>>,
}

impl Peers {
    /// As `node` sees them, which proves itself by `certificate`.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn new(
        node: &str,
        store: Arc<dyn Store>,
        certificate: &NodeCertificate,
    ) -> Result<Self, AuthorityError> {
        Ok(Self {
            node: node.to_owned(),
            nodes: Collection::new(Arc::clone(&store)),
            alive: Collection::new(Arc::clone(&store)),
            store,
            http: Arc::new(Mutex::new(client(certificate)?)),
        })
    }

    /// Uses another certificate from now on.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn renew(&self, certificate: &NodeCertificate) -> Result<(), AuthorityError> {
        let new = client(certificate)?;
        *self.http.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn http(&self) -> reqwest::Client {
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        http.clone()
    }

    /// This node.
    pub fn this(&self) -> &str {
        &self.node
    }

    /// All nodes, this one included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all(&self) -> Result<Vec<NodeRecord>, StoreError> {
        let all = self.nodes.all().await?;
        Ok(all.into_iter().map(|stored| stored.value).collect())
    }

    /// A node.
    ///
    /// # Errors
    /// [`PeerError::Unknown`], [`PeerError::Store`].
    pub async fn find(&self, node: &str) -> Result<NodeRecord, PeerError> {
        let unknown = || PeerError::Unknown(node.chars().take(64).collect());
        if !crate::domain::is_label(node) {
            return Err(unknown());
        }
        let found = self.nodes.get(node).await?;
        found.map(|stored| stored.value).ok_or_else(unknown)
    }

    /// Whether a node's lease is there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_alive(&self, node: &str) -> Result<bool, StoreError> {
        Ok(self.alive.get(node).await?.is_some())
    }

    /// Where a node's own port is. One whose lease is gone is not even tried, if leases count.
    async fn base(&self, node: &str) -> Result<String, PeerError> {
        let record = self.find(node).await?;
        let unreachable = |reason: &str| PeerError::Unreachable {
            node: node.to_owned(),
            reason: reason.to_owned(),
        };
        let leases_count = self.store.settled(Duration::ZERO).await;
        if leases_count && !self.is_alive(node).await? {
            return Err(unreachable("its agent has not been heard of"));
        }
        let ports = record.ports();
        let ports = ports.ok_or_else(|| unreachable("its record has no valid port"))?;
        let address = std::net::SocketAddr::new(record.address, ports.nodes);
        Ok(format!("https://{address}"))
    }

    /// A request of this node's own, to `path` under `/api/v1`.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn request(
        &self,
        node: &str,
        method: Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, PeerError> {
        let url = format!("{}/api/v1{path}", self.base(node).await?);
        let as_node = Principal {
            user: format!("{AS_NODE}{}", self.node),
            grants: Grants {
                role: Some(Role::Admin),
                ..Grants::default()
            },
            token: String::new(),
        };
        let headers = self.headers(&as_node);
        Ok(self.http().request(method, url).headers(headers))
    }

    /// A request of this node's own whose answer is data.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        node: &str,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, PeerError> {
        let mut request = self.request(node, method, path).await?;
        if let Some(body) = body {
            request = request.json(body);
        }
        let bytes = self.bytes(node, request).await?;
        let data: Data<T> = serde_json::from_slice(&bytes).map_err(|error| PeerError::Answer {
            node: node.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(data.data)
    }

    /// The body of the answer to a request.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn bytes(
        &self,
        node: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Vec<u8>, PeerError> {
        let answer = self.answer(node, request.timeout(ANSWER_DEADLINE)).await?;
        let status = answer.status();
        let node = node.to_owned();
        let bytes = match answer.bytes().await {
            Ok(bytes) => bytes.to_vec(),
            Err(error) => {
                let reason = crate::causes::chain(&error.without_url());
                return Err(PeerError::Unreachable { node, reason });
            }
        };
        if status.is_success() {
            return Ok(bytes);
        }
        Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => PeerError::Refused {
                node,
                message: body.error.message,
            },
            Err(_) => PeerError::Answer {
                node,
                reason: format!("status {status}"),
            },
        })
    }

    fn headers(&self, principal: &Principal) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let grants = &principal.grants;
        let guests = Some(&grants.guests).filter(|guests| !guests.is_empty());
        for (name, text) in [
            (FROM, Some(self.node.clone())),
            (USER, Some(principal.user.clone())),
            (ROLE, grants.role.map(|role| role.to_string())),
            (
                GUESTS,
                guests.and_then(|guests| serde_json::to_string(guests).ok()),
            ),
            (TOKEN, Some(principal.token.clone())),
        ] {
            let text = text.as_deref().map(HeaderValue::from_str);
            if let Some(Ok(value)) = text {
                headers.insert(name, value);
            }
        }
        headers
    }

    /// Passes a request on, whatever its body and answer are, a WebSocket too.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn forward(
        &self,
        node: &str,
        principal: &Principal,
        mut request: Request,
    ) -> Result<Response, PeerError> {
        let base = self.base(node).await?;
        let path = request.uri().path_and_query();
        let url = format!("{base}{}", path.map_or("/", |path| path.as_str()));
        let upgrade = request.headers().contains_key(header::UPGRADE);
        let client_side = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;
        for name in [
            header::HOST,
            header::AUTHORIZATION,
            header::COOKIE,
            FROM,
            USER,
            ROLE,
            GUESTS,
            TOKEN,
        ] {
            headers.remove(name);
        }
        if !upgrade {
            remove_hop_by_hop(&mut headers);
        }
        headers.extend(self.headers(principal));
        let mut passed_on = self.http().request(parts.method, url).headers(headers);
        let sent = Arc::new(Mutex::new(Instant::now()));
        if !upgrade {
            let sent = Arc::clone(&sent);
            // As long as it is on its way nobody is late.
            let pieces = body.into_data_stream().inspect(move |_| {
                *sent.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            });
            passed_on = passed_on.body(reqwest::Body::wrap_stream(pieces));
        }
        let answer = self.answer_since(node, passed_on, &sent).await?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        let mut response = Response::new(Body::empty());
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(client_side) = client_side {
                tokio::spawn(join(client_side, answer));
            }
        } else {
            remove_hop_by_hop(&mut headers);
            *response.body_mut() = Body::from_stream(answer.bytes_stream());
        }
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// Sends a request; its answer's head has a deadline, its body none.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`], [`PeerError::Timeout`].
    pub async fn answer(
        &self,
        node: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, PeerError> {
        let sent = Mutex::new(Instant::now());
        self.answer_since(node, request, &sent).await
    }

    /// The same, but for a body that takes its time: the last of it that was sent is at `sent`.
    async fn answer_since(
        &self,
        node: &str,
        request: reqwest::RequestBuilder,
        sent: &Mutex<Instant>,
    ) -> Result<reqwest::Response, PeerError> {
        let node = node.to_owned();
        let late = || *sent.lock().unwrap_or_else(PoisonError::into_inner) + ANSWER_DEADLINE;
        let mut answer = std::pin::pin!(request.send());
        loop {
            match tokio::time::timeout_at(late(), &mut answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    return Err(PeerError::Unreachable {
                        node,
                        reason: crate::causes::chain(&error.without_url()),
                    });
                }
                Err(_) if late() > Instant::now() => {}
                Err(_) => return Err(PeerError::Timeout { node }),
            }
        }
    }
}

fn client(certificate: &NodeCertificate) -> Result<reqwest::Client, AuthorityError> {
    reqwest::Client::builder()
        .use_preconfigured_tls(certificate.client()?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(5))
        .build()
        .map_err(|error| AuthorityError::Verifier(error.to_string()))
}

/// What speaks of one connection, not of the request (RFC 9110, section 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        HeaderName::from_static("keep-alive"),
    ] {
        headers.remove(name);
    }
}

/// Both halves of a WebSocket, until either ends.
async fn join(client_side: hyper::upgrade::OnUpgrade, answer: reqwest::Response) {
    let (Ok(client), Ok(mut node)) = (client_side.await, answer.upgrade().await) else {
        return;
    };
    // Whichever ended it, there is nobody left to tell.
    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut node).await;
}
