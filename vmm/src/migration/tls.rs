//! Encryption of a connection: TLS 1.3, both sides authenticated by one authority's certificates.
//!
//! Nothing is resumed and no tickets are sent: a migration's connections are made once. Both roles
//! come from one identity, so that a machine that may receive may also send.

use std::sync::Arc;

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{
    NoServerSessionStorage, UnbufferedServerConnection, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

use super::buffer::Buffer;

/// What a side is on its connections.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Nobody: plain text, both ways.
    Plain,
    /// Somebody with a certificate, who talks to nobody without.
    Tls(TlsIdentity),
}

/// A certificate with its key, and the authorities to trust.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Why there is no identity.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{what}: no valid PEM")]
    Pem {
        /// Which: `the authorities`, `the certificate`, `the private key`.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds other things.
    #[error("{what}: there is none in the file")]
    Missing {
        /// As above.
        what: &'static str,
    },
    /// An authority's certificate cannot be used.
    #[error("the authorities cannot be used")]
    Authorities(#[source] rustls::Error),
    /// The same, found later.
    #[error("the authorities cannot be used")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key do not work, or not together.
    #[error("certificate and private key cannot be used")]
    Certificate(#[source] rustls::Error),
}

const AUTHORITIES: &str = "the authorities' certificates";
const CERTIFICATE: &str = "the certificate";
const KEY: &str = "the private key";

impl TlsIdentity {
    /// Reads PEM: the certificates of the authorities to trust, our certificate with what leads
    /// from it to one of them, and its private key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn from_pem(authorities: &[u8], chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(AUTHORITIES, authorities)? {
            roots.add(certificate).map_err(TlsError::Authorities)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(CERTIFICATE, chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => TlsError::Missing { what: KEY },
            source => TlsError::Pem { what: KEY, source },
        })?;
        let provider = Arc::new(provider());
        Ok(Self {
            client: Arc::new(client(&provider, &roots, chain.clone(), key.clone_key())?),
            server: Arc::new(server(&provider, &roots, chain, key)?),
        })
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() {
        return Err(TlsError::Missing { what });
    }
    Ok(certificates)
}

/// Whether this CPU computes AES-GCM in hardware.
fn has_fast_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// The fastest cipher first: without the instructions for AES that is ChaCha20.
fn provider() -> CryptoProvider {
    let aes = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    let chacha = cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let cipher_suites = if has_fast_aes() {
        vec![aes[0], aes[1], chacha]
    } else {
        vec![chacha, aes[0], aes[1]]
    };
    CryptoProvider {
        cipher_suites,
        ..default_provider()
    }
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Certificate)?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // The source asks for what is fast there; without AES here, what is fast here decides.
    config.ignore_client_order = !has_fast_aes();
    Ok(config)
}

/// Why a session is not made or does not go on.
#[derive(Debug, Error)]
pub enum TlsRefusal {
    /// There must be a name to look for in the other side's certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    Name(String),
    /// TLS says no; see [`words`].
    #[error("{}", words(.0))]
    Tls(rustls::Error),
}

/// One connection's state of TLS.
pub(super) enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Something was done; ask again.
    Again,
    /// What was to be sent is encrypted.
    Encrypted,
    /// What is outgoing must reach the other side before anything more can come.
    Transmit,
    /// There is nothing to do before more comes in.
    Idle,
    /// The other side has ended the session.
    Closed,
}

impl Session {
    pub fn client(identity: &TlsIdentity, server_name: &str) -> Result<Self, TlsRefusal> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| TlsRefusal::Name(server_name.to_owned()))?;
        UnbufferedClientConnection::new(Arc::clone(&identity.client), name)
            .map(Self::Client)
            .map_err(TlsRefusal::Tls)
    }

    pub fn server(identity: &TlsIdentity) -> Result<Self, TlsRefusal> {
        UnbufferedServerConnection::new(Arc::clone(&identity.server))
            .map(Self::Server)
            .map_err(TlsRefusal::Tls)
    }

    /// Whether the other side has not yet proved who it is.
    pub fn is_handshaking(&self) -> bool {
        match self {
            Self::Client(session) => session.is_handshaking(),
            Self::Server(session) => session.is_handshaking(),
        }
    }

    /// After a step has failed: what the other side is told, to the end of `outgoing`. No step may
    /// follow.
    pub fn take_alert(&mut self, outgoing: &mut Buffer) {
        // With nothing to read, so that what failed is not tried again. There is always one more
        // when TLS wants to write, and nothing else is looked at first.
        let (mut nothing, mut plain) = (Buffer::default(), Buffer::default());
        while self.wants_write()
            && let Ok(Step::Again) = self.step(&mut nothing, &mut plain, outgoing, None)
        {}
    }

    fn wants_write(&self) -> bool {
        match self {
            Self::Client(session) => session.wants_write(),
            Self::Server(session) => session.wants_write(),
        }
    }

    /// Takes one record from `incoming` to `plain`, or encrypts `send` to the end of `outgoing`,
    /// whichever TLS wants first.
    pub fn step(
        &mut self,
        incoming: &mut Buffer,
        plain: &mut Buffer,
        outgoing: &mut Buffer,
        send: Option<&[u8]>,
    ) -> Result<Step, TlsRefusal> {
        let records = incoming.filled_mut();
        let (discard, step) = match self {
            Self::Client(session) => {
                step(session.process_tls_records(records), plain, outgoing, send)
            }
            Self::Server(session) => {
                step(session.process_tls_records(records), plain, outgoing, send)
            }
        };
        incoming.take(discard);
        step.map_err(TlsRefusal::Tls)
    }
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Buffer,
    outgoing: &mut Buffer,
    send: Option<&[u8]>,
) -> (usize, Result<Step, rustls::Error>) {
    let mut discard = status.discard;
    let step = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    plain.append(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            encode(outgoing, 0, |room| match data.encode(room) {
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size)),
                other => other.map_err(|_| None),
            })
            .map(|()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Transmit)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match send {
            None => Ok(Step::Idle),
            Some(bytes) => encode(outgoing, sealed_len(bytes.len()), |room| {
                match traffic.encrypt(bytes, room) {
                    Err(EncryptError::InsufficientSize(size)) => Err(Some(size)),
                    other => other.map_err(|_| None),
                }
            })
            .map(|()| Step::Encrypted),
        },
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Idle),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::Closed),
        Ok(_) => Err(rustls::Error::General("early data, which is off".into())),
    };
    (discard, step)
}

/// Most bytes that records take for `bytes` of data: header, type and tag each (RFC 8446, 5.2),
/// and an update of keys.
fn sealed_len(bytes: usize) -> usize {
    bytes + (bytes.div_ceil(16 << 10) + 1) * (5 + 1 + 16) + 64
}

/// Has `write` fill room at the end of `outgoing`, again with more if it says that it needs more.
fn encode(
    outgoing: &mut Buffer,
    mut least: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Result<(), rustls::Error> {
    loop {
        match write(outgoing.room(least)) {
            Ok(count) => {
                outgoing.commit(count);
                return Ok(());
            }
            Err(Some(size)) if size.required_size > least => least = size.required_size,
            Err(_) => return Err(rustls::Error::EncryptError),
        }
    }
}

/// What went wrong, for a person who has to put it right.
fn words(error: &rustls::Error) -> String {
    use rustls::Error::{
        AlertReceived, InvalidCertificate, InvalidMessage, NoCertificatesPresented,
    };
    let text = match error {
        NoCertificatesPresented => "the other side shows no certificate",
        InvalidMessage(_) => "what the other side sends is not TLS 1.3",
        // An authority of the same name with another key is another authority.
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the other side's certificate is of an authority that is not trusted here"
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the other side's certificate has expired"
        }
        InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the other side's certificate is not valid yet: are the clocks right?",
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => return format!("the other side's certificate has another name: {error}"),
        AlertReceived(alert) => return refused(*alert),
        other => return other.to_string(),
    };
    text.to_owned()
}

fn refused(alert: AlertDescription) -> String {
    let why = match alert {
        // webpki's BadSignature is told as the second.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it does not trust the authority of our certificate"
        }
        AlertDescription::CertificateRequired => "it wants a certificate",
        AlertDescription::CertificateExpired => "our certificate has expired",
        AlertDescription::BadCertificate => "our certificate is not what it expects: its name?",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        other => return format!("the other side refuses: {other:?}"),
    };
    format!("the other side refuses: {why}")
}
