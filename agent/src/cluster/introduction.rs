//! The first words between a fresh node and a cluster: the node knows of the cluster only the
//! fingerprint in its token, and talks to nobody whose authority has another.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::join::{JoinAnswer, JoinRequest};
use super::{ClusterError, JoinToken};
use crate::api::{Data, ErrorBody};
use crate::causes::chain;
use crate::security::fingerprint;

/// The API's port if none is given.
const PORT: u16 = 7480;
/// How long the cluster may take to take us in.
const DEADLINE: Duration = Duration::from_secs(60);

/// Takes every server that the authority with this fingerprint vouches for, under whatever name.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ours = |certificate: &&CertificateDer<'_>| fingerprint(certificate) == self.fingerprint;
        let authority = intermediates.iter().find(ours).ok_or_else(|| {
            Error::General("it belongs to another cluster than the token".to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let algorithms = &self.provider.signature_verification_algorithms;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, &[], now, algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// `HOST:PORT` of an address that may lack its port.
fn with_port(address: &str) -> String {
    let address = address.trim().trim_start_matches("https://");
    if address.parse::<SocketAddr>().is_ok() {
        return address.to_owned();
    }
    if let Ok(ip) = address.parse::<IpAddr>() {
        return SocketAddr::new(ip, PORT).to_string();
    }
    match address.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => address.to_owned(),
        _ => format!("{address}:{PORT}"),
    }
}

/// Asks the node at `address` to let us in.
///
/// # Errors
/// [`ClusterError::Refused`].
pub(super) async fn introduce(
    address: &str,
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<JoinAnswer, ClusterError> {
    let address = with_port(address);
    let refused = |reason: String| ClusterError::Refused {
        address: address.clone(),
        reason,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned {
        fingerprint: token.fingerprint.clone(),
        provider: Arc::clone(&provider),
    };
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let http = reqwest::Client::builder()
        .use_preconfigured_tls(tls)
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .timeout(DEADLINE)
        .build()
        .map_err(|error| refused(error.to_string()))?;
    let url = format!("https://{address}/api/v1/cluster/members");
    let answer = http.post(url).json(request).send().await;
    let answer = answer.map_err(|error| refused(chain(&error.without_url())))?;
    let status = answer.status();
    let body = answer.bytes().await;
    let body = body.map_err(|error| refused(chain(&error.without_url())))?;
    if status.is_success() {
        let data: Result<Data<JoinAnswer>, _> = serde_json::from_slice(&body);
        return data
            .map(|data| data.data)
            .map_err(|error| refused(error.to_string()));
    }
    Err(match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => refused(body.error.message),
        Err(_) => refused(format!("status {status} without a reason")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_gets_the_default_port_if_it_has_none() {
        for (given, expected) in [
            ("10.0.0.1", "10.0.0.1:7480"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("fd00::1", "[fd00::1]:7480"),
            ("[fd00::1]:9", "[fd00::1]:9"),
            ("node1", "node1:7480"),
            ("node1.example.org:9", "node1.example.org:9"),
            ("https://node1", "node1:7480"),
        ] {
            assert_eq!(with_port(given), expected);
        }
    }
}
