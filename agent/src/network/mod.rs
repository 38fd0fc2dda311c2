//! The node's own network for guests: a bridge with NAT, DHCP and DNS, and the guests' taps.
//!
//! All that is made carries our names (the bridge's, `pt…` for taps, one nftables table), and
//! nothing else of the host is touched, but that NAT needs the host to forward IPv4. Everything is
//! applied again at each start; what is right already stays, so that guests notice nothing.

mod dnsmasq;
mod links;
mod nat;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::process::Command;

use crate::config::NetworkConfig;
use crate::domain::Guest;

/// Why there is no network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The kernel's routing socket.
    #[error("cannot {action} {interface}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// On which interface.
        interface: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// The socket itself.
    #[error("cannot open the kernel's routing socket")]
    Socket(#[source] std::io::Error),
    /// A tap.
    #[error("cannot create tap {tap}")]
    Tap {
        /// The tap.
        tap: String,
        /// Why.
        #[source]
        source: tokio_tun::Error,
    },
    /// An interface that should be there.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The bridge's name belongs to something else.
    #[error("{0} is there and is no bridge; set network.bridge to another name")]
    NoBridge(String),
    /// A program fails.
    #[error("{program} fails: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it says.
        reason: String,
    },
    /// A file.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The node's own network, applied.
pub struct Network {
    config: NetworkConfig,
    directory: PathBuf,
    links: links::Links,
    /// Whether it gives addresses; kept alive while we are.
    dnsmasq: Option<dnsmasq::Dnsmasq>,
}

impl Network {
    /// Applies `config`; files of its own lie in `directory`.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn apply(config: &NetworkConfig, directory: &Path) -> Result<Self, NetworkError> {
        let links = links::Links::open()?;
        links.ensure_bridge(config).await?;
        if config.nat {
            nat::apply(config).await?;
        }
        let dnsmasq = if config.dhcp {
            Some(dnsmasq::Dnsmasq::start(config, directory).await?)
        } else {
            None
        };
        Ok(Self {
            config: config.clone(),
            directory: directory.to_owned(),
            links,
            dnsmasq,
        })
    }

    /// Makes the guest's taps and connects them. Those that are there already are kept.
    ///
    /// # Errors
    /// [`NetworkError`]; taps made before the failure stay for [`Self::disconnect`].
    pub async fn connect(&self, guest: &Guest) -> Result<(), NetworkError> {
        for interface in &guest.interfaces {
            self.links
                .ensure_tap(&interface.tap, &self.config.bridge)
                .await?;
        }
        Ok(())
    }

    /// Removes the guest's taps. Nothing happens to those that are not there.
    pub async fn disconnect(&self, guest: &Guest) {
        for interface in &guest.interfaces {
            if let Err(error) = self.links.remove(&interface.tap).await {
                tracing::warn!("{}", crate::causes::chain(&error));
            }
        }
    }

    /// Addresses that the guest's interfaces got by DHCP.
    pub fn addresses(&self, guest: &Guest) -> Vec<Ipv4Addr> {
        if self.dnsmasq.is_none() {
            return Vec::new();
        }
        let leases = dnsmasq::leases(&self.directory);
        let of_guest = leases.into_iter().filter(|lease| {
            let mut interfaces = guest.interfaces.iter();
            interfaces.any(|interface| interface.mac == lease.mac)
        });
        of_guest.map(|lease| lease.address).collect()
    }
}

/// All addresses of this host.
///
/// # Errors
/// [`NetworkError`].
pub async fn host_addresses() -> Result<Vec<std::net::IpAddr>, NetworkError> {
    links::Links::open()?.addresses().await
}

/// Runs a program to its end, with `input` as its standard input.
async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<(), NetworkError> {
    use tokio::io::AsyncWriteExt;

    let failed = |reason: String| NetworkError::Program { program, reason };
    let mut child = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is Debian's package of it installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(input.as_bytes()).await;
        written.map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().await;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(failed(
        complaint
            .lines()
            .next()
            .unwrap_or("no reason given")
            .to_owned(),
    ))
}
