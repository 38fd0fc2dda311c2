//! What a client asks for, checked once: nothing behind this checks again.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use pindah_vmm_api::{Encryption, MigrateRequest, MigrationMode};
use rustix::net::sockopt::{socket_protocol, socket_type};
use rustix::net::{SocketType, getpeername, ipproto};
use rustls::pki_types::ServerName;
use thiserror::Error;

use super::tls::{Identity, TlsError, TlsIdentity};

/// Most data connections.
pub const MAX_DATA_CONNECTIONS: u8 = 4;
/// Longest PEM file, in bytes.
const MAX_PEM_BYTES: u64 = 256 << 10;

/// A request that can be done, with what came with it.
#[derive(Debug)]
pub struct Outgoing {
    /// What was asked for.
    pub request: MigrateRequest,
    /// The connected socket for messages.
    pub control: TcpStream,
    /// Those for pages.
    pub data: Vec<TcpStream>,
    /// In hybrid mode: that for pages that are waited for.
    pub urgent: Option<TcpStream>,
    /// With TLS: authorities, certificate with its chain, private key.
    pub keys: Option<Keys>,
}

/// Why a request cannot be done.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// A value that cannot be.
    #[error("{field} = {value}: {allowed}")]
    Value {
        /// Which one.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// Too few or too many.
    #[error(
        "this takes {expected} file descriptors by SCM_RIGHTS: the control socket, \
         data_connections sockets for data, in hybrid mode one for pages that are waited for and, \
         with TLS, the files with the authorities, the certificate and the private key; {came} came"
    )]
    Descriptors {
        /// How many it takes.
        expected: usize,
        /// How many there are.
        came: usize,
    },
    /// Something else.
    #[error("file descriptor {number} is no connected TCP socket")]
    Socket {
        /// Which one, from 0.
        number: usize,
    },
}

impl Outgoing {
    /// Checks a request and its descriptors, without waiting for anything.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn new(request: MigrateRequest, descriptors: Vec<OwnedFd>) -> Result<Self, RequestError> {
        check_values(&request)?;
        let data = usize::from(request.data_connections);
        let is_hybrid = request.mode == MigrationMode::Hybrid;
        let sockets = 1 + data + usize::from(is_hybrid);
        let files = match request.encryption {
            Encryption::Tls => 3,
            Encryption::Plaintext => 0,
        };
        let (expected, came) = (sockets + files, descriptors.len());
        if came != expected {
            return Err(RequestError::Descriptors { expected, came });
        }
        let mut descriptors = descriptors.into_iter();
        let mut streams = (0..)
            .zip(descriptors.by_ref().take(sockets))
            .map(|(number, descriptor)| stream(number, descriptor))
            .collect::<Result<Vec<_>, _>>()?;
        let keys = <[OwnedFd; 3]>::try_from(descriptors.collect::<Vec<_>>());
        Ok(Self {
            request,
            control: streams.remove(0),
            urgent: is_hybrid.then(|| streams.remove(data)),
            data: streams,
            keys: keys.ok().map(|files| Keys(files.map(File::from))),
        })
    }

    /// Who this side is. Reads files, which may take its time.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn identity(&self) -> Result<Identity, KeysError> {
        self.keys
            .as_ref()
            .map_or(Ok(Identity::Plain), |keys| keys.read().map(Identity::Tls))
    }
}

fn check_values(request: &MigrateRequest) -> Result<(), RequestError> {
    let refuse = |field, value: &dyn ToString, allowed| {
        Err(RequestError::Value {
            field,
            value: value.to_string(),
            allowed,
        })
    };
    let connections = request.data_connections;
    if !(1..=MAX_DATA_CONNECTIONS).contains(&connections) {
        return refuse("data_connections", &connections, "1 to 4");
    }
    if !(1..=60_000).contains(&request.downtime_target_ms) {
        let value = &request.downtime_target_ms;
        return refuse("downtime_target_ms", value, "1 to 60000");
    }
    if !(1..=604_800).contains(&request.timeout_s) {
        return refuse("timeout_s", &request.timeout_s, "1 to 604800");
    }
    if request.bandwidth_bytes_per_s == Some(0) {
        return refuse("bandwidth_bytes_per_s", &0, "1 or more, or absent");
    }
    if request.encryption == Encryption::Tls {
        let name = request.server_name.as_deref().unwrap_or_default();
        if ServerName::try_from(name).is_err() {
            let allowed = "a host name or IP address, which TLS looks for in the certificate";
            return refuse("server_name", &format!("{name:?}"), allowed);
        }
    }
    Ok(())
}

fn stream(number: usize, descriptor: OwnedFd) -> Result<TcpStream, RequestError> {
    let is_tcp = socket_type(&descriptor) == Ok(SocketType::STREAM)
        && socket_protocol(&descriptor) == Ok(Some(ipproto::TCP))
        && getpeername(&descriptor).is_ok();
    if is_tcp {
        Ok(TcpStream::from(descriptor))
    } else {
        Err(RequestError::Socket { number })
    }
}

/// Three open PEM files: authorities, certificate with its chain, private key.
#[derive(Debug)]
pub struct Keys(pub [File; 3]);

/// Why the keys cannot be used.
#[derive(Debug, Error)]
pub enum KeysError {
    /// A file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is too long.
    #[error("{what}: more than {MAX_PEM_BYTES} bytes")]
    TooLong {
        /// Which.
        what: &'static str,
    },
    /// What they hold is not what it should be.
    #[error("the keys for TLS")]
    Tls(#[from] TlsError),
}

impl Keys {
    /// Reads them.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn read(&self) -> Result<TlsIdentity, KeysError> {
        let [authorities, chain, key] = &self.0;
        Ok(TlsIdentity::from_pem(
            &read("the authorities' certificates", authorities)?,
            &read("the certificate", chain)?,
            &read("the private key", key)?,
        )?)
    }
}

fn read(what: &'static str, file: &File) -> Result<Vec<u8>, KeysError> {
    let mut bytes = Vec::new();
    file.take(MAX_PEM_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| KeysError::Read { what, source })?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(KeysError::TooLong { what });
    }
    Ok(bytes)
}
