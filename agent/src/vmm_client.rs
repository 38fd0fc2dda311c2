//! The sole user of a VMM's API socket.
//!
//! Each request has a connection of its own: they are rare, local, and cannot then wait for one
//! another.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{Stream, stream};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pindah_vmm_api::{
    BalloonTarget, DiskLimits, DiskResize, ErrorBody, Event, Metrics, MigrateRequest,
    MigrationStatus, ResumeRequest, VmInfo,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::descriptors::WithDescriptors;

/// The protocol that a console's connection goes on in.
const CONSOLE_PROTOCOL: &str = "pindah-console";
/// How long a VMM may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const ANSWER_MAX: usize = 4 << 20;
/// Longest event, in bytes.
const EVENT_MAX: usize = 1 << 20;

/// Why a VMM gives no answer, or a bad one.
#[derive(Debug, Error)]
pub enum VmmError {
    /// Nobody listens.
    #[error("the guest's VMM does not answer")]
    Connect(#[source] io::Error),
    /// The connection broke, or what came is no HTTP.
    #[error("the connection to the guest's VMM broke")]
    Connection(#[from] hyper::Error),
    /// No answer in time.
    #[error("the guest's VMM has not answered for {} s", TIMEOUT.as_secs())]
    Timeout,
    /// An answer that is not what its API says.
    #[error("the guest's VMM gave an answer that it should not: {0}")]
    Protocol(String),
    /// It refuses, and says why.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// One line.
        message: String,
    },
}

/// A VMM, by its socket.
#[derive(Clone, Debug)]
pub struct VmmClient {
    socket: PathBuf,
}

/// A console's connection: raw bytes both ways.
pub type Console = TokioIo<hyper::upgrade::Upgraded>;

impl VmmClient {
    /// The VMM that listens, or will, at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// How the guest is doing.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn info(&self) -> Result<VmInfo, VmmError> {
        self.get("/api/v1/vm").await
    }

    /// What the VMM has counted.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn metrics(&self) -> Result<Metrics, VmmError> {
        self.get("/api/v1/metrics").await
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn pause(&self) -> Result<(), VmmError> {
        self.command("pause").await
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn resume(&self) -> Result<(), VmmError> {
        let body = ResumeRequest::default();
        self.order(Method::POST, "/api/v1/vm/resume", &body).await
    }

    /// Takes the disks' locks anew where a disk has failed; the guest stands, and still does.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn relock(&self) -> Result<(), VmmError> {
        self.command("relock").await
    }

    /// Starts the machine anew.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn reset(&self) -> Result<(), VmmError> {
        self.command("reset").await
    }

    /// Asks the guest to shut down (ACPI 6.5, 4.8.3.1).
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn press_power_button(&self) -> Result<(), VmmError> {
        self.command("power-button").await
    }

    /// Switches off at once; the process ends.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn power_off(&self) -> Result<(), VmmError> {
        self.command("power-off").await
    }

    /// Makes a disk `size_bytes` large, and tells the guest.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn resize_disk(&self, id: &str, size_bytes: u64) -> Result<(), VmmError> {
        let path = format!("/api/v1/disks/{id}");
        self.order(Method::PATCH, &path, &DiskResize { size_bytes })
            .await
    }

    /// Gives a disk these limits, and no others.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn limit_disk(&self, id: &str, limits: &DiskLimits) -> Result<(), VmmError> {
        let path = format!("/api/v1/disks/{id}/limits");
        self.order(Method::PUT, &path, limits).await
    }

    /// Asks the guest to give back `target_mib` of its RAM.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn set_balloon(&self, target_mib: u64) -> Result<(), VmmError> {
        self.order(
            Method::PUT,
            "/api/v1/balloon",
            &BalloonTarget { target_mib },
        )
        .await
    }

    /// Begins to move the guest over these connected sockets, and files with TLS's keys: in the
    /// order that [`MigrateRequest`] says.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn migrate(
        &self,
        request: &MigrateRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), VmmError> {
        let body =
            serde_json::to_vec(request).map_err(|error| VmmError::Protocol(error.to_string()))?;
        let request = json_request(Method::POST, "/api/v1/migrate", body)?;
        self.answer(request, descriptors).await.map(|_| ())
    }

    /// How the guest's migration goes, or went; that to this VMM, where it waits for its guest.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn migration(&self) -> Result<MigrationStatus, VmmError> {
        self.get("/api/v1/migrate").await
    }

    /// Gives the migration up, if that is still possible.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn cancel_migration(&self) -> Result<(), VmmError> {
        let request = json_request(Method::DELETE, "/api/v1/migrate", Vec::new())?;
        self.answer(request, Vec::new()).await.map(|_| ())
    }

    /// The events from now on. The stream ends when the VMM does.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn events(
        &self,
    ) -> Result<impl Stream<Item = Result<Event, VmmError>> + Send + use<>, VmmError> {
        let request = json_request(Method::GET, "/api/v1/events", Vec::new())?;
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let lines = Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        };
        Ok(stream::unfold(lines, |mut lines| async move {
            let event = lines.next().await?;
            Some((event, lines))
        }))
    }

    /// Attaches to the serial port: what the guest wrote last comes first.
    ///
    /// # Errors
    /// [`VmmError`].
    pub async fn attach_serial(&self) -> Result<Console, VmmError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/v1/consoles/serial/attach")
            .header(HOST, "vmm")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, CONSOLE_PROTOCOL)
            .body(Full::new(Bytes::new()))
            .map_err(|error| VmmError::Protocol(error.to_string()))?;
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    async fn command(&self, name: &str) -> Result<(), VmmError> {
        let path = format!("/api/v1/vm/{name}");
        let request = json_request(Method::POST, &path, Vec::new())?;
        self.answer(request, Vec::new()).await.map(|_| ())
    }

    async fn order(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), VmmError> {
        let body =
            serde_json::to_vec(body).map_err(|error| VmmError::Protocol(error.to_string()))?;
        let request = json_request(method, path, body)?;
        self.answer(request, Vec::new()).await.map(|_| ())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, VmmError> {
        let request = json_request(Method::GET, path, Vec::new())?;
        let body = self.answer(request, Vec::new()).await?;
        serde_json::from_slice(&body).map_err(|error| VmmError::Protocol(error.to_string()))
    }

    async fn answer(
        &self,
        request: Request<Full<Bytes>>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Bytes, VmmError> {
        let answer = async {
            let response = self.send_with(request, descriptors).await?;
            if response.status().is_success() {
                collect(response).await
            } else {
                Err(refusal(response).await)
            }
        };
        let answer = tokio::time::timeout(TIMEOUT, answer).await;
        answer.unwrap_or(Err(VmmError::Timeout))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, VmmError> {
        self.send_with(request, Vec::new()).await
    }

    async fn send_with(
        &self,
        request: Request<Full<Bytes>>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Response<Incoming>, VmmError> {
        let connect = UnixStream::connect(&self.socket);
        let stream = connect.await.map_err(VmmError::Connect)?;
        let stream = WithDescriptors::new(stream, descriptors);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer, or with the console or the stream that the answer is.
        tokio::spawn(connection.with_upgrades());
        Ok(sender.send_request(request).await?)
    }
}

fn json_request(
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, VmmError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "vmm")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| VmmError::Protocol(error.to_string()))
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, VmmError> {
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
    match body.await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(VmmError::Protocol(error.to_string())),
    }
}

async fn refusal(response: Response<Incoming>) -> VmmError {
    let status = response.status().as_u16();
    match collect(response).await {
        Ok(body) => match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => VmmError::Refused {
                status,
                message: body.error.message,
            },
            Err(error) => VmmError::Protocol(format!("status {status}: {error}")),
        },
        Err(error) => error,
    }
}

/// One event a line.
struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Event, VmmError>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event = serde_json::from_slice(&line);
                return Some(event.map_err(|error| VmmError::Protocol(error.to_string())));
            }
            if self.buffer.len() > EVENT_MAX {
                let message = format!("an event of more than {EVENT_MAX} bytes");
                return Some(Err(VmmError::Protocol(message)));
            }
            match self.body.frame().await? {
                Ok(frame) => self
                    .buffer
                    .extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}
