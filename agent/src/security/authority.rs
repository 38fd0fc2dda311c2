//! The site's own certificate authority, made at the first start; it signs the node's certificate.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";
const NAME: &str = "Pindah site authority";

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A file.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One of the authority's two files is there without the other.
    #[error("{0} has one of ca.pem and ca-key.pem: both are needed, or neither")]
    Half(PathBuf),
    /// The certificate or key.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("cannot use the certificate")]
    Tls(#[from] rustls::Error),
}

/// The site's authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads the authority in `directory`, or makes it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
        match (certificate.exists(), key.exists()) {
            (false, false) => make(&certificate, &key)?,
            (true, true) => {}
            _ => return Err(AuthorityError::Half(directory.to_owned())),
        }
        let pem = read(&certificate)?;
        let key = KeyPair::from_pem(&read(&key)?)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
        Ok(Self { pem, issuer })
    }

    /// The certificate that clients trust, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// TLS for a server with these host names and addresses. Its key is new and kept nowhere.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn server(&self, names: &[String]) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        name(&mut params, "pindahd");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|reason| rustls::Error::General(reason.to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

fn name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

fn make(certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    name(&mut params, NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let signed = params.self_signed(&pair)?;
    write(key, 0o600, &pair.serialize_pem())?;
    write(certificate, 0o644, &signed.pem())
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), AuthorityError> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| AuthorityError::File {
            action: "write",
            path: path.to_owned(),
            source,
        })
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn authority_is_made_once_and_its_key_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::open(directory.path()).unwrap();
        let second = Authority::open(directory.path()).unwrap();
        assert_eq!(first.pem(), second.pem());
        let key = directory.path().join(KEY);
        let mode = fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        second
            .server(&["node1".to_owned(), "127.0.0.1".to_owned()])
            .unwrap();
        fs::remove_file(key).unwrap();
        assert!(matches!(
            Authority::open(directory.path()),
            Err(AuthorityError::Half(_))
        ));
    }
}
