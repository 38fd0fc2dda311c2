//! The site's own certificate authority, made at the first start; it signs the nodes' certificates.
//!
//! In a cluster every node has its key: each signs its own certificate, and renews it when it
//! likes. A node's certificate serves its API, and proves it to other nodes and to etcd.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

use super::hex;
use crate::files;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";
/// Another authority, that of a cluster which the node is entering.
const STAGED_CERTIFICATE: &str = "ca.pem.staged";
const STAGED_KEY: &str = "ca-key.pem.staged";
const NAME: &str = "Pindah site authority";
/// How long a node's certificate is good. It is made anew long before.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

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
    /// The authority's certificate is there without its key.
    #[error("{0} has ca.pem and no ca-key.pem: both are needed, or neither")]
    Half(PathBuf),
    /// The certificate or key.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("cannot use the certificate")]
    Tls(#[from] rustls::Error),
    /// TLS does not take the authority.
    #[error("cannot use the authority: {0}")]
    Verifier(String),
}

/// The site's authority.
pub struct Authority {
    pem: String,
    key_pem: String,
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
            // A key alone is what an agent leaves that was killed as it made or removed them.
            (false, _) => make(&certificate, &key)?,
            (true, true) => {}
            (true, false) => return Err(AuthorityError::Half(directory.to_owned())),
        }
        Self::from_pem(read(&certificate)?, read(&key)?)
    }

    /// The authority with this certificate and key.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`]: they are none.
    pub fn from_pem(pem: String, key_pem: String) -> Result<Self, AuthorityError> {
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key_pem)?)?;
        Ok(Self {
            pem,
            key_pem,
            issuer,
        })
    }

    /// Makes this the authority in `directory`, in the place of the one there.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn install(&self, directory: &Path) -> Result<(), AuthorityError> {
        self.stage(directory)?;
        Self::adopt_staged(directory)
    }

    /// Lays this beside the authority in `directory`, to take its place by [`Self::adopt_staged`].
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn stage(&self, directory: &Path) -> Result<(), AuthorityError> {
        remove(directory, [STAGED_CERTIFICATE, STAGED_KEY])?;
        write(&directory.join(STAGED_KEY), &self.key_pem)?;
        write(&directory.join(STAGED_CERTIFICATE), &self.pem)
    }

    /// Whether another authority lies beside the one in `directory`, all of it or what is left to
    /// adopt.
    pub fn is_staged(directory: &Path) -> bool {
        directory.join(STAGED_CERTIFICATE).exists()
    }

    /// Puts the staged authority in the place of the one in `directory`; also what is left of that
    /// when it was cut short.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn adopt_staged(directory: &Path) -> Result<(), AuthorityError> {
        for (staged, name) in [(STAGED_KEY, KEY), (STAGED_CERTIFICATE, CERTIFICATE)] {
            let path = directory.join(staged);
            if_there("rename", &path, fs::rename(&path, directory.join(name)))?;
        }
        Ok(())
    }

    /// Removes a staged authority. One that has begun to be adopted is adopted.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn unstage(directory: &Path) -> Result<(), AuthorityError> {
        if Self::is_staged(directory) && !directory.join(STAGED_KEY).exists() {
            return Self::adopt_staged(directory);
        }
        remove(directory, [STAGED_CERTIFICATE, STAGED_KEY])
    }

    /// Removes the authority in `directory`; the next [`Self::open`] makes a new one.
    ///
    /// # Errors
    /// [`AuthorityError::File`].
    pub fn remove(directory: &Path) -> Result<(), AuthorityError> {
        remove(directory, [CERTIFICATE, KEY])
    }

    /// The certificate that clients trust, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key, as PEM: for a node that joins.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the certificate, in hexadecimal digits: what a join token holds.
    ///
    /// # Errors
    /// [`AuthorityError::Verifier`].
    pub fn fingerprint(&self) -> Result<String, AuthorityError> {
        let certificate = CertificateDer::from_pem_slice(self.pem.as_bytes());
        let certificate = certificate.map_err(|error| verifier(&error))?;
        Ok(fingerprint(&certificate))
    }

    /// A certificate for a node with these host names and addresses, with a new key.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`].
    pub fn issue(&self, names: &[String]) -> Result<NodeCertificate, AuthorityError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        name(&mut params, "pindahd");
        // It is good from ever on: a host whose clock was reset by an empty battery may say 2010.
        params.not_after = (SystemTime::now() + VALID).into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(NodeCertificate {
            authority: self.pem.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// SHA-256 of a certificate, in hexadecimal digits.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(digest(&SHA256, certificate.as_ref()).as_ref())
}

fn verifier(error: &dyn std::fmt::Display) -> AuthorityError {
    AuthorityError::Verifier(error.to_string())
}

/// A node's certificate.
#[derive(Clone)]
pub struct NodeCertificate {
    /// The authority that signed it, as PEM.
    pub authority: String,
    /// The certificate, as PEM.
    pub certificate: String,
    /// Its key, as PEM.
    pub key: String,
}

impl NodeCertificate {
    /// The certificate and its authority's, as PEM: who knows only the latter's fingerprint finds
    /// it there.
    pub fn chain_pem(&self) -> String {
        format!("{}{}", self.certificate, self.authority)
    }

    fn parts(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let chain = CertificateDer::pem_slice_iter(self.chain_pem().as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| verifier(&error))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        Ok((chain, key.map_err(|error| verifier(&error))?))
    }

    fn roots(&self) -> Result<RootCertStore, AuthorityError> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes());
        roots.add(authority.map_err(|error| verifier(&error))?)?;
        Ok(roots)
    }

    /// TLS for a server that everybody may talk to.
    ///
    /// # Errors
    /// [`AuthorityError::Tls`].
    pub fn server(&self) -> Result<Arc<ServerConfig>, AuthorityError> {
        let (chain, key) = self.parts()?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }

    /// TLS for a server that only nodes of the cluster may talk to.
    ///
    /// # Errors
    /// [`AuthorityError::Tls`], [`AuthorityError::Verifier`].
    pub fn server_for_nodes(&self) -> Result<Arc<ServerConfig>, AuthorityError> {
        let (chain, key) = self.parts()?;
        let roots = Arc::new(self.roots()?);
        let nodes = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(nodes.map_err(|error| verifier(&error))?)
            .with_single_cert(chain, key)?;
        Ok(Arc::new(config))
    }

    /// TLS for a client that talks to other nodes as a node.
    ///
    /// # Errors
    /// [`AuthorityError::Tls`].
    pub fn client(&self) -> Result<ClientConfig, AuthorityError> {
        let (chain, key) = self.parts()?;
        Ok(ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)?)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
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
    write(key, &pair.serialize_pem())?;
    write(certificate, &signed.pem())
}

/// Removes files, in this order.
fn remove(directory: &Path, names: [&str; 2]) -> Result<(), AuthorityError> {
    for name in names {
        let path = directory.join(name);
        if_there("remove", &path, fs::remove_file(&path))?;
    }
    Ok(())
}

/// What was `done` to a file that may be gone already.
fn if_there(action: &'static str, path: &Path, done: io::Result<()>) -> Result<(), AuthorityError> {
    match done {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AuthorityError::File {
            action,
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), AuthorityError> {
    let written = files::replace(path, text.as_bytes());
    written.map_err(|source| AuthorityError::File {
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
        let names = ["node1".to_owned(), "127.0.0.1".to_owned()];
        let certificate = second.issue(&names).unwrap();
        certificate.server().unwrap();
        certificate.server_for_nodes().unwrap();
        certificate.client().unwrap();
        fs::remove_file(key).unwrap();
        assert!(matches!(
            Authority::open(directory.path()),
            Err(AuthorityError::Half(_))
        ));
        fs::remove_file(directory.path().join(CERTIFICATE)).unwrap();
        Authority::open(directory.path()).unwrap();
        fs::remove_file(directory.path().join(CERTIFICATE)).unwrap();
        Authority::open(directory.path()).unwrap();
    }

    #[test]
    fn staged_authority_is_adopted_or_not_wherever_that_was_cut_short() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (directory, path) = (ours.path(), |name| ours.path().join(name));
        let own = Authority::open(directory).unwrap();
        let other = Authority::open(theirs.path()).unwrap();
        let now = || Authority::open(directory).unwrap().pem;
        other.stage(directory).unwrap();
        assert_eq!(
            (now(), Authority::is_staged(directory)),
            (own.pem.clone(), true)
        );
        Authority::unstage(directory).unwrap();
        assert_eq!(
            (now(), Authority::is_staged(directory)),
            (own.pem.clone(), false)
        );
        // Killed before all of it lay there.
        other.stage(directory).unwrap();
        fs::remove_file(path(STAGED_CERTIFICATE)).unwrap();
        assert!(!Authority::is_staged(directory));
        Authority::unstage(directory).unwrap();
        assert_eq!(now(), own.pem);
        // Killed before all of it was adopted.
        other.stage(directory).unwrap();
        fs::rename(path(STAGED_KEY), path(KEY)).unwrap();
        Authority::unstage(directory).unwrap();
        assert_eq!((now(), Authority::is_staged(directory)), (other.pem, false));
        assert_eq!(fs::read_dir(directory).unwrap().count(), 2);
    }
}
