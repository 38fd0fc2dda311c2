//! The network between source and destination.
//!
//! Two network namespaces with a veth pair, shaped by `tc-tbf(8)` on both sides, or one namespace
//! with its loopback. They have no names: the kernel takes them back when the last descriptor and
//! the last process in them are gone.
//!
//! The shaper stands for a port of a switch: it lets bursts of half a millisecond pass and keeps
//! [`BUFFER_KIB`] KiB, 21 ms at 100 Mbit/s and 2 ms at 1 Gbit/s. What does not fit is dropped.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::network::{received, run};

/// What a port of the switch keeps.
const BUFFER_KIB: u32 = 256;
/// Where destinations listen: nobody else is in the namespace.
const PORT: u16 = 4444;
/// Both ends of the pair, each in its own namespace.
const INTERFACE: &str = "veth0";
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is between the two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// Loopback.
    Unlimited,
    /// Mbit/s in each direction.
    Mbit(u32),
}

impl Speed {
    /// Its part of a case's name.
    pub fn name(self) -> String {
        match self {
            Self::Unlimited => "lo".to_owned(),
            Self::Mbit(rate) => rate.to_string(),
        }
    }
}

/// The link, and what we hold in its namespaces.
pub struct Link {
    speed: Speed,
    source: Side,
    destination: Option<Side>,
}

/// Connects to the destination.
pub struct Connector {
    namespace: Arc<OwnedFd>,
    address: SocketAddr,
}

impl Connector {
    /// That many connections.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(&self, count: usize) -> Result<Vec<TcpStream>> {
        let connect = || {
            (0..count)
                .map(|_| TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT))
                .collect::<std::io::Result<Vec<_>>>()
                .with_context(|| format!("connecting to {}", self.address))
        };
        inside(&self.namespace, connect)
    }
}

/// One end.
struct Side {
    namespace: Arc<OwnedFd>,
    counters: Mutex<File>,
}

impl Link {
    /// Makes it.
    ///
    /// # Errors
    /// If the host refuses: no right to it, no veth or tbf in the kernel.
    pub fn new(speed: Speed) -> Result<Self> {
        let Speed::Mbit(rate) = speed else {
            let source = inside_new(|| run("ip", &["link", "set", "lo", "up"]))?;
            return Ok(Self {
                speed,
                source,
                destination: None,
            });
        };
        let destination = inside_new(|| Ok(()))?;
        let descriptor = destination.namespace.as_raw_fd();
        let peer = format!("/proc/{}/fd/{descriptor}", std::process::id());
        let source = inside_new(|| {
            run(
                "ip",
                &[
                    "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns",
                    &peer,
                ],
            )?;
            set_up(SOURCE, rate)
        })?;
        inside(&destination.namespace, || set_up(DESTINATION, rate))?;
        Ok(Self {
            speed,
            source,
            destination: Some(destination),
        })
    }

    /// Where the destination listens.
    pub fn address(&self) -> SocketAddr {
        let address = match self.speed {
            Speed::Unlimited => Ipv4Addr::LOCALHOST,
            Speed::Mbit(_) => DESTINATION,
        };
        (address, PORT).into()
    }

    /// Whether others could share it.
    pub fn is_shared(&self) -> bool {
        self.destination.is_some()
    }

    /// For processes on the source's side.
    pub fn source(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.source.namespace)
    }

    /// For processes on the destination's side.
    pub fn destination(&self) -> Arc<OwnedFd> {
        let side = self.destination.as_ref().unwrap_or(&self.source);
        Arc::clone(&side.namespace)
    }

    /// Makes connections from the source's side.
    pub fn connector(&self) -> Connector {
        Connector {
            namespace: self.source(),
            address: self.address(),
        }
    }

    /// Bytes that it has carried since it was made, in both directions, with all headers.
    ///
    /// # Errors
    /// If the counters cannot be read.
    pub fn bytes(&self) -> Result<u64> {
        let Some(destination) = &self.destination else {
            return self.source.received("lo");
        };
        Ok(self.source.received(INTERFACE)? + destination.received(INTERFACE)?)
    }
}

impl Side {
    fn here() -> Result<Self> {
        let open = |path| File::open(path).with_context(|| format!("opening {path}"));
        Ok(Self {
            namespace: Arc::new(open("/proc/thread-self/ns/net")?.into()),
            counters: Mutex::new(open("/proc/thread-self/net/dev")?),
        })
    }

    fn received(&self, interface: &str) -> Result<u64> {
        let mut file = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text)?;
        let (_, bytes) = received(&text, interface)
            .with_context(|| format!("{interface} is not in /proc/net/dev"))?;
        Ok(bytes)
    }
}

/// Does something in a new namespace.
fn inside_new(work: impl FnOnce() -> Result<()> + Send) -> Result<Side> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (not root?)")?;
        // A kernel without IPv6 has no such file, and then no frames of its own on the link.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        work()?;
        Side::here()
    })
}

/// Does something in a namespace.
fn inside<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
        work()
    })
}

/// A namespace is a thread's: what is done in another one is done there, so that we can stay.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .ok()
        .context("the thread in the network namespace panicked")?
}

/// One end of the pair.
fn set_up(address: Ipv4Addr, rate_mbit: u32) -> Result<()> {
    let address = format!("{address}/24");
    let rate = format!("{rate_mbit}mbit");
    // Half a millisecond, but three full frames at least.
    let burst = format!("{}b", (rate_mbit * 1_000_000 / 8 / 2000).max(3 * 1514));
    let limit = format!("{}b", BUFFER_KIB << 10);
    run("ip", &["link", "set", "lo", "up"])?;
    run("ip", &["addr", "add", &address, "dev", INTERFACE])?;
    run("ip", &["link", "set", "dev", INTERFACE, "up"])?;
    let shaper = ["tbf", "rate", &rate, "burst", &burst, "limit", &limit];
    let arguments = [&["qdisc", "add", "dev", INTERFACE, "root"], &shaper[..]].concat();
    run("tc", &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_speed_is_that_of_cases() {
        assert_eq!(Speed::Unlimited.name(), "lo");
        assert_eq!(Speed::Mbit(100).name(), "100");
    }
}
