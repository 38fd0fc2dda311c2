//! One virtual switch: a network namespace without a name, with a bridge in
//! it and a tap for each server.
//!
//! The namespace lives as long as a descriptor or a process holds it, so a
//! killed harness leaves nothing behind. The harness itself is 10.9.0.254 in
//! it; server *n* is 10.9.0.*n*.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

use crate::output::tail;
use crate::process::{BoundChild, Inheritance};

/// The harness's own address on the switch.
pub const HOST_ADDRESS: &str = "10.9.0.254";

/// How many servers there may be on a switch.
const PORTS: u8 = 200;

/// A switch and the namespace that it lives in.
pub struct Network {
    namespace: Arc<OwnedFd>,
    ports: AtomicU8,
}

/// One server's place on the switch.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name of the tap in the namespace.
    pub tap: String,
    /// MAC address of the server's network card.
    pub mac: String,
    /// IPv4 address of the server.
    pub address: String,
}

impl Port {
    fn new(number: u8) -> Self {
        Self {
            tap: format!("t{number}"),
            mac: format!("52:54:00:09:00:{number:02x}"),
            address: format!("10.9.0.{number}"),
        }
    }

    /// All that a switch can have.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (1..=PORTS).map(Self::new)
    }
}

impl Network {
    /// Makes the namespace and the bridge.
    ///
    /// # Errors
    /// If the host refuses: not root, or no network namespaces.
    pub fn new() -> Result<Self> {
        let namespace = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (not root?)")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })
        .join()
        .ok()
        .context("the thread that makes the network namespace panicked")??;
        let network = Self {
            namespace: Arc::new(namespace),
            ports: AtomicU8::new(0),
        };
        network.run("ip link set lo up")?;
        network.run("ip link add br0 type bridge")?;
        network.run(&format!("ip addr add {HOST_ADDRESS}/24 dev br0"))?;
        network.run("ip link set dev br0 up")?;
        Ok(network)
    }

    /// Adds a tap to the bridge.
    ///
    /// # Errors
    /// If `ip` fails (no `/dev/net/tun`?), or 200 servers are on the switch.
    pub fn add_port(&self) -> Result<Port> {
        let number = self.ports.fetch_add(1, Ordering::Relaxed) + 1;
        if number > PORTS {
            bail!("more than {PORTS} servers on one switch");
        }
        let port = Port::new(number);
        let tap = &port.tap;
        self.run(&format!("ip tuntap add {tap} mode tap"))?;
        self.run(&format!("ip link set dev {tap} master br0"))?;
        self.run(&format!("ip link set dev {tap} up"))?;
        Ok(port)
    }

    /// Lays a cable to another switch's namespace: a network card `cable` in each, with these
    /// addresses, and `bits_per_s` from one to the other.
    ///
    /// # Errors
    /// If `ip` or `tc` fails.
    pub fn join(&self, other: &Self, addresses: [&str; 2], bits_per_s: u64) -> Result<()> {
        self.cable(other, "cable")?;
        for (network, address) in [self, other].into_iter().zip(addresses) {
            network.run(&format!("ip addr add {address} dev cable"))?;
            // Offloads make one packet of many, which no switch between hosts has ever seen.
            network.run("ip link set dev cable gso_max_segs 1")?;
            network.run(&format!(
                "tc qdisc add dev cable root tbf rate {bits_per_s} burst 64kb limit 512kb"
            ))?;
        }
        Ok(())
    }

    /// Connects both by a cable whose ends are called `link`.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn cable(&self, other: &Self, link: &str) -> Result<()> {
        let descriptor = other.namespace.as_raw_fd();
        let there = format!("/proc/{}/fd/{descriptor}", std::process::id());
        self.run(&format!(
            "ip link add {link} type veth peer name {link} netns {there}"
        ))?;
        for network in [self, other] {
            network.run(&format!("ip link set dev {link} up"))?;
        }
        Ok(())
    }

    /// Runs a shell command in the namespace, as the host sees it, and returns
    /// what it printed.
    ///
    /// # Errors
    /// If it fails or lasts longer than a minute.
    pub fn run(&self, command: &str) -> Result<String> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .stdin(std::process::Stdio::null());
        shell.stdout(writer.try_clone()?).stderr(writer);
        let mut child = BoundChild::spawn(shell, self.inheritance())?;
        let collector = thread::spawn(move || {
            let mut printed = Vec::new();
            let _ = std::io::Read::read_to_end(&mut reader, &mut printed);
            printed
        });
        let status = child.wait_until(Instant::now() + Duration::from_secs(60))?;
        child.kill();
        let printed = collector.join().unwrap_or_default();
        match status {
            Some(status) if status.success() => Ok(String::from_utf8_lossy(&printed).into_owned()),
            Some(status) => bail!("`{command}` on the switch: {status}\n{}", tail(&printed)),
            None => bail!("`{command}` on the switch did not end\n{}", tail(&printed)),
        }
    }

    /// Runs `action` on a thread inside the namespace: its sockets are on the switch.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or `action` fails.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.namespace.as_ref(), CloneFlags::CLONE_NEWNET)?;
                    action()
                })
                .join()
                .map_err(|panic| std::panic::resume_unwind(panic))
                .unwrap_or_else(|error: anyhow::Error| Err(error))
        })
    }

    /// What a process gets to live in the namespace.
    pub(crate) fn inheritance(&self) -> Inheritance {
        Inheritance {
            namespace: Some(self.namespace.clone()),
            descriptors: Vec::new(),
        }
    }
}
