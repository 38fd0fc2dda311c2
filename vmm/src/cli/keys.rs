//! `pindah-vmm keys`: certificates for migration, for sites that have none of their own.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// Name of the authority: its certificate need not be read to sign with its key.
const AUTHORITY: &str = "pindah-vmm migration";

/// Arguments of `keys`.
#[derive(Debug, Args)]
pub struct KeysArguments {
    /// The directory for ca.pem, cert.pem and key.pem, which `send` and `receive` take, and
    /// ca-key.pem, which only this command needs: whoever has it can take guests. If both files
    /// of the authority are there, only a certificate is made; copy them to make one for another
    /// machine.
    directory: PathBuf,
    /// The names and IP addresses by which this machine is reached.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Makes an authority, if there is none, and a certificate of it that does not expire.
pub fn keys(arguments: &KeysArguments) -> anyhow::Result<()> {
    let directory = &arguments.directory;
    let path = |name: &str| directory.join(name);
    for name in ["cert.pem", "key.pem"] {
        if path(name).exists() {
            bail!("{} is there already", path(name).display());
        }
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let params = CertificateParams::new(arguments.names.clone())
        .context("a name is neither a host name nor an IP address")?;
    let authority = match (path("ca.pem").exists(), path("ca-key.pem").exists()) {
        (false, false) => make_authority(&path("ca.pem"), &path("ca-key.pem"))?,
        (true, true) => load_authority(&path("ca.pem"), &path("ca-key.pem"))?,
        _ => bail!(
            "{} has one of ca.pem and ca-key.pem: both are needed, or neither",
            directory.display()
        ),
    };
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = of_machine(params)
        .signed_by(&key, &authority)
        .context("cannot sign the certificate")?;
    write_new(&path("key.pem"), 0o600, &key.serialize_pem())?;
    write_new(&path("cert.pem"), 0o644, &certificate.pem())?;
    println!(
        "{}: a certificate for {}",
        directory.display(),
        arguments.names.join(", ")
    );
    Ok(())
}

fn named(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
}

fn of_machine(mut params: CertificateParams) -> CertificateParams {
    named(&mut params, "pindah-vmm");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

fn of_authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    named(&mut params, AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn make_authority(certificate: &Path, key: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let pair = KeyPair::generate().context("cannot make the authority's key")?;
    let params = of_authority();
    let signed = params
        .self_signed(&pair)
        .context("cannot make the authority's certificate")?;
    write_new(key, 0o600, &pair.serialize_pem())?;
    write_new(certificate, 0o644, &signed.pem())?;
    Ok(Issuer::new(params, pair))
}

fn load_authority(certificate: &Path, key: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let pair = KeyPair::from_pem(&read(key)?)
        .with_context(|| format!("{} is no private key", key.display()))?;
    let der = pem_contents(&read(certificate)?)
        .with_context(|| format!("{} is no certificate", certificate.display()))?;
    let holds = |bytes: &[u8]| der.windows(bytes.len()).any(|window| window == bytes);
    if !holds(pair.public_key_raw()) || !holds(AUTHORITY.as_bytes()) {
        bail!(
            "{} and {} are not an authority that this command has made",
            certificate.display(),
            key.display()
        );
    }
    Ok(Issuer::new(of_authority(), pair))
}

fn pem_contents(text: &str) -> anyhow::Result<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    Ok(CertificateDer::from_pem_slice(text.as_bytes())?.to_vec())
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use pindah_vmm::migration::tls::TlsIdentity;

    use super::*;

    #[test]
    fn keys_are_made_once_private_and_usable() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let arguments = KeysArguments {
            directory: directory.path().to_owned(),
            names: vec!["node1".into(), "10.0.0.1".into()],
        };
        keys(&arguments).unwrap();
        for (name, expected) in [("key.pem", 0o600), ("ca-key.pem", 0o600)] {
            let mode = fs::metadata(path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, expected, "{name}");
        }
        let read = |name: &str| fs::read(path(name)).unwrap();
        TlsIdentity::from_pem(&read("ca.pem"), &read("cert.pem"), &read("key.pem")).unwrap();
        let again = keys(&arguments).unwrap_err().to_string();
        assert!(again.ends_with("is there already"), "{again}");

        let authority = read("ca.pem");
        for name in ["cert.pem", "key.pem"] {
            fs::remove_file(path(name)).unwrap();
        }
        keys(&arguments).unwrap();
        assert_eq!(read("ca.pem"), authority);

        fs::remove_file(path("cert.pem")).unwrap();
        fs::remove_file(path("key.pem")).unwrap();
        fs::write(
            path("ca-key.pem"),
            KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        let foreign = keys(&arguments).unwrap_err().to_string();
        assert!(foreign.contains("not an authority"), "{foreign}");
    }
}
