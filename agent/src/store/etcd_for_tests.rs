//! One etcd for all tests of this process, with the TLS that a cluster has. It ends with us.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{EtcdAccess, EtcdStore, Store};
use crate::security::Authority;

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A store of its own under a prefix of its own, and a directory to hold. `None`, and said so, if
/// etcd is not installed.
pub(super) async fn etcd() -> Option<(tempfile::TempDir, Arc<dyn Store>)> {
    static ACCESS: OnceLock<Option<EtcdAccess>> = OnceLock::new();
    static PREFIXES: AtomicU32 = AtomicU32::new(0);
    let access = ACCESS.get_or_init(start).as_ref()?;
    let prefix = format!("test{}/", PREFIXES.fetch_add(1, Ordering::Relaxed));
    let store = EtcdStore::connect(access, &prefix).await.unwrap();
    assert!(ready(&store).await, "etcd does not answer");
    Some((tempfile::tempdir().unwrap(), Arc::new(store)))
}

async fn ready(store: &EtcdStore) -> bool {
    for _ in 0..300 {
        if store.has_majority(Duration::from_secs(5)).await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

fn start() -> Option<EtcdAccess> {
    if Command::new("etcd").arg("--version").output().is_err() {
        eprintln!("skipped: etcd is not installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path()).unwrap();
    let certificate = authority.issue(&["127.0.0.1".to_owned()]).unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("cert.pem"), certificate.chain_pem()).unwrap();
    std::fs::write(path("key.pem"), &certificate.key).unwrap();
    let endpoint = format!("https://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let cluster = format!("test={peer}");
    // setpriv ends it with the thread that starts it: one that lives as long as this process.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "etcd", "--name", "test"])
        .args(["--logger", "zap", "--log-level", "error"])
        .arg("--data-dir")
        .arg(path("data"))
        .args(["--listen-client-urls", &endpoint])
        .args(["--advertise-client-urls", &endpoint])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &cluster])
        .arg("--client-cert-auth")
        .arg("--trusted-ca-file")
        .arg(path("ca.pem"))
        .arg("--cert-file")
        .arg(path("cert.pem"))
        .arg("--key-file")
        .arg(path("key.pem"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::thread::spawn(move || {
        let ended = command.spawn().and_then(|mut child| child.wait());
        drop(directory);
        panic!("etcd has ended: {ended:?}");
    });
    Some(EtcdAccess {
        endpoint,
        authority: certificate.authority,
        certificate: certificate.certificate,
        key: certificate.key,
    })
}
