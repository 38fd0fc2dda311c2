//! DHCP and DNS for guests: Debian's `dnsmasq`, with a configuration of ours and on our bridge only.
//!
//! Like a guest it is a session of its own and outlives the agent, which finds it again by the
//! number that it wrote down. It is started anew only if what it should do has changed, or the bridge
//! is another one of the same name, which it would not hear.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::NetworkError;
use super::link::Link;
use crate::domain::{Guest, Subnet};
use crate::supervisor::Identity;

const CONFIG: &str = "dnsmasq.conf";
const IDENTITY: &str = "dnsmasq.json";
const LEASES: &str = "leases";
const LOG: &str = "dnsmasq.log";
/// How long a wrong configuration takes to be complained about.
const START_TIME: Duration = Duration::from_millis(200);
/// How long the wait before it is started again is at most.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// Keeps it running; ends with us, while the process goes on.
pub(super) struct Dnsmasq {
    keeper: tokio::task::JoinHandle<()>,
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// An address that is given out.
#[derive(Debug, PartialEq, Eq)]
struct Lease {
    mac: String,
    address: Ipv4Addr,
}

impl Dnsmasq {
    /// Adopts the one that runs, or starts one.
    pub(super) async fn start(
        bridge: &Link,
        subnet: Subnet,
        directory: &Path,
    ) -> Result<Self, NetworkError> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o755).create(directory);
        made.map_err(|source| write_error(directory, source))?;
        let path = directory.join(CONFIG);
        let wanted = configuration(bridge, subnet, directory);
        let unchanged = fs::read_to_string(&path).is_ok_and(|is| is == wanted);
        let running = find(directory);
        let identity = match running {
            Some(identity) if unchanged => identity,
            running => {
                if let Some(old) = running {
                    stop(&old).await;
                }
                fs::write(&path, wanted).map_err(|source| write_error(&path, source))?;
                launch(directory).await?
            }
        };
        let directory = directory.to_owned();
        Ok(Self {
            keeper: tokio::spawn(keep(identity, directory)),
        })
    }
}

/// Ends the one whose files lie in `directory`, if there is one; nobody may keep it any more.
pub(super) async fn end(directory: &Path) {
    if let Some(identity) = find(directory) {
        stop(&identity).await;
    }
}

/// Starts it again whenever it ends.
async fn keep(mut identity: Identity, directory: PathBuf) {
    let mut back_off = Duration::from_secs(1);
    loop {
        if let Err(error) = identity.ended().await {
            tracing::warn!("dnsmasq cannot be watched: {error}");
            tokio::time::sleep(BACK_OFF_MAX).await;
            continue;
        }
        tracing::warn!(
            "dnsmasq has ended; it starts again in {} s",
            back_off.as_secs()
        );
        tokio::time::sleep(back_off).await;
        match launch(&directory).await {
            Ok(started) => {
                identity = started;
                back_off = Duration::from_secs(1);
            }
            Err(error) => {
                tracing::error!("{}", crate::causes::chain(&error));
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
        }
    }
}

async fn stop(identity: &Identity) {
    let ended = identity.kill().map_err(|error| error.to_string());
    if let Err(error) = ended {
        tracing::warn!("dnsmasq cannot be stopped: {error}");
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), identity.ended()).await;
}

fn find(directory: &Path) -> Option<Identity> {
    let bytes = fs::read(directory.join(IDENTITY)).ok()?;
    let identity: Identity = serde_json::from_slice(&bytes).ok()?;
    identity.is_alive().then_some(identity)
}

async fn launch(directory: &Path) -> Result<Identity, NetworkError> {
    let failed = |reason: String| NetworkError::Program {
        program: "dnsmasq",
        reason,
    };
    let log_path = directory.join(LOG);
    let log = fs::File::create(&log_path).map_err(|source| write_error(&log_path, source))?;
    let mut child = Command::new("setsid")
        .arg("dnsmasq")
        .arg("--keep-in-foreground")
        .arg(format!("--conf-file={}", directory.join(CONFIG).display()))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let pid = child.id().unwrap_or_default();
    let ended = tokio::time::timeout(START_TIME, child.wait()).await;
    if let Ok(status) = ended {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        let line = log.lines().rev().find(|line| !line.trim().is_empty());
        let line = line.unwrap_or("is Debian's dnsmasq-base installed?").trim();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        return Err(failed(format!("{status}: {line}")));
    }
    // Dropped, the child is reaped by tokio when it ends.
    let identity = Identity::of(pid).map_err(|error| failed(error.to_string()))?;
    let path = directory.join(IDENTITY);
    let bytes = serde_json::to_vec(&identity).map_err(|error| failed(error.to_string()))?;
    fs::write(&path, bytes).map_err(|source| write_error(&path, source))?;
    // The log names guests' addresses; only its owner need read it.
    let _ = fs::set_permissions(&log_path, fs::Permissions::from_mode(0o600));
    Ok(identity)
}

fn write_error(path: &Path, source: std::io::Error) -> NetworkError {
    NetworkError::Write {
        path: path.to_owned(),
        source,
    }
}

fn configuration(bridge: &Link, subnet: Subnet, directory: &Path) -> String {
    let (first, last) = subnet.guests();
    let (address, mask) = (subnet.address(), subnet.mask());
    let leases = directory.join(LEASES);
    let (bridge, index) = (&bridge.name, bridge.index);
    format!(
        "# Written by pindahd at each start; for the interface with the number {index}.
interface={bridge}
except-interface=lo
bind-interfaces
listen-address={address}
dhcp-range={first},{last},{mask},12h
dhcp-option=option:router,{address}
dhcp-option=option:dns-server,{address}
dhcp-leasefile={leases}
dhcp-authoritative
dhcp-no-override
domain-needed
bogus-priv
no-hosts
no-ping
pid-file=
log-facility=-
",
        leases = leases.display()
    )
}

/// What it has given to the guest's interfaces.
pub(super) fn addresses(directory: &Path, guest: &Guest) -> Vec<Ipv4Addr> {
    let of_guest = leases(directory).into_iter().filter(|lease| {
        let mut interfaces = guest.interfaces.iter();
        interfaces.any(|interface| interface.mac == lease.mac)
    });
    of_guest.map(|lease| lease.address).collect()
}

/// What dnsmasq has given out: `expiry mac address name client-id` a line.
fn leases(directory: &Path) -> Vec<Lease> {
    let text = fs::read_to_string(directory.join(LEASES)).unwrap_or_default();
    text.lines().filter_map(parse_lease).collect()
}

fn parse_lease(line: &str) -> Option<Lease> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    Some(Lease {
        mac: fields.next()?.to_owned(),
        address: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_file_gives_mac_and_address() {
        let lease = parse_lease("1760000000 52:54:00:00:00:01 10.87.0.9 web 01:52").unwrap();
        assert_eq!(lease.mac, "52:54:00:00:00:01");
        assert_eq!(lease.address, Ipv4Addr::new(10, 87, 0, 9));
        assert_eq!(parse_lease("duid 00:01"), None);
    }
}
