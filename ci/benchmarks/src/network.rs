//! A network namespace without a name, with a tap in it: the kernel takes both back when the last
//! descriptor and the last process in it are gone.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// The tap's name.
pub const TAP: &str = "tap0";
/// The guest's address, always the same, as the host remembers who has which IP address.
pub const GUEST_MAC: &str = "52:54:00:62:65:6e";
/// The host's address; the probe's default for `peer`.
const HOST_ADDRESS: &str = "10.0.0.1";
/// Where the probe sends its datagrams.
const PROBE_PORT: u16 = 0x5064;

/// The namespace and what we hold in it.
pub struct Network {
    namespace: Arc<OwnedFd>,
    counters: File,
    /// The probe's datagrams have where to go, and are dropped once its buffer is full: without
    /// it the host would answer with "port unreachable".
    _sink: UdpSocket,
}

/// What the tap has received from the guest since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// When it was read.
    pub at: Instant,
    /// Frames.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Network {
    /// Makes the namespace and the tap.
    ///
    /// # Errors
    /// If the host refuses: no right to it, no tun driver.
    pub fn new() -> Result<Self> {
        // A namespace is a thread's: this one goes there, so that we can stay.
        thread::spawn(make)
            .join()
            .ok()
            .context("the thread that makes the network namespace panicked")?
    }

    /// For processes that are to live in it.
    pub fn namespace(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.namespace)
    }

    /// Reads the tap's counters.
    pub fn count(&self) -> Result<Count> {
        let mut file = &self.counters;
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        let at = Instant::now();
        file.read_to_string(&mut text)?;
        let (packets, bytes) =
            received(&text, TAP).with_context(|| format!("{TAP} is not in /proc/net/dev"))?;
        Ok(Count { at, packets, bytes })
    }
}

fn make() -> Result<Network> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (not root?)")?;
    // A kernel without IPv6 has no such file, and then no frames of its own on the tap either.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    ip(&["link", "set", "lo", "up"])?;
    ip(&["tuntap", "add", "dev", TAP, "mode", "tap"])?;
    ip(&["addr", "add", &format!("{HOST_ADDRESS}/24"), "dev", TAP])?;
    ip(&["link", "set", "dev", TAP, "up"])?;
    let sink = UdpSocket::bind((HOST_ADDRESS, PROBE_PORT)).context("binding the datagram sink")?;
    let open = |path| File::open(path).with_context(|| format!("opening {path}"));
    Ok(Network {
        namespace: Arc::new(open("/proc/thread-self/ns/net")?.into()),
        counters: open("/proc/thread-self/net/dev")?,
        _sink: sink,
    })
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

/// Runs one of iproute2's programs, in the calling thread's namespace.
///
/// # Errors
/// With what it says.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program} (Debian package iproute2)"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), message.trim());
    }
    Ok(())
}

/// Packets and bytes that `interface` has received, by `/proc/net/dev` (proc(5)).
pub fn received(text: &str, interface: &str) -> Option<(u64, u64)> {
    let fields = text.lines().find_map(|line| {
        let (name, fields) = line.split_once(':')?;
        (name.trim() == interface).then_some(fields)
    })?;
    let mut numbers = fields.split_whitespace().map(str::parse::<u64>);
    let bytes = numbers.next()?.ok()?;
    let packets = numbers.next()?.ok()?;
    Some((packets, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets
    lo:       7       1    0    0    0     0          0         0        7       1
  tap0: 4210034   70165    0    3    0     0          0         0      126       3
";

    #[test]
    fn received_reads_the_named_interface() {
        assert_eq!(received(DEV, "tap0"), Some((70165, 4210034)));
        assert_eq!(received(DEV, "lo"), Some((1, 7)));
    }

    #[test]
    fn received_of_unknown_interface_is_none() {
        assert_eq!(received(DEV, "tap1"), None);
        assert_eq!(received("tap0: some\n", "tap0"), None);
    }
}
