//! `pindah-vmm receive`: builds a machine that waits for its guest.

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use pindah_vmm::memory::userfault::Userfault;
use pindah_vmm::migration::destination::{Incoming, Postcopier};
use pindah_vmm::migration::tls::Identity;
use pindah_vmm::migration::worker::Job;
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::termination::block_signals;

use super::guest::MachineArguments;
use super::protection::ProtectionArguments;
use super::run::{self, ProcessArguments};

/// Arguments of `receive`.
#[derive(Debug, Args)]
pub struct ReceiveArguments {
    /// Where `pindah-vmm send` finds this machine. Of several ports (`FIRST-LAST`) the first that
    /// is free is taken.
    #[arg(long, value_name = "ADDRESS:PORT[-LAST]")]
    listen: Listen,
    #[command(flatten)]
    protection: ProtectionArguments,
    /// End when no guest has begun to come by then, in seconds.
    #[arg(long, default_value_t = 60, value_name = "S")]
    timeout_s: u64,
    /// As at its source but for paths and taps.
    #[command(flatten)]
    machine: MachineArguments,
    #[command(flatten)]
    process: ProcessArguments,
}

/// A host with the ports of which one is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listen {
    /// A name or an address; one of IPv6 in brackets.
    host: String,
    ports: RangeInclusive<u16>,
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be ADDRESS:PORT, or ADDRESS:FIRST-LAST with FIRST <= LAST";
        let (host, ports) = text.rsplit_once(':').ok_or(FORM)?;
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().map_err(|_| FORM);
        let ports = port(first)?..=port(last)?;
        if host.is_empty() || ports.is_empty() {
            return Err(FORM);
        }
        Ok(Self {
            host: host.to_owned(),
            ports,
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.ports.start(), self.ports.end());
        write!(formatter, "{}:{first}", self.host)?;
        if first == last {
            return Ok(());
        }
        write!(formatter, "-{last}")
    }
}

impl Listen {
    fn bind(&self) -> io::Result<TcpListener> {
        let mut taken = None;
        for port in self.ports.clone() {
            match TcpListener::bind(format!("{}:{port}", self.host)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = Some(error),
                bound => return bound,
            }
        }
        // There is at least one port.
        Err(taken.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }
}

/// Waits for a guest and runs it until it ends.
pub fn receive(arguments: ReceiveArguments) -> anyhow::Result<ExitReason> {
    let config = arguments.machine.load()?;
    let identity = match arguments.protection.open()? {
        Some(keys) => Identity::Tls(keys.read()?),
        None => Identity::Plain,
    };
    let listener = arguments.listen.bind();
    let listener = listener.with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr().context("the listening socket")?;
    // Whoever wants hybrid mode hears why if there is none.
    let userfault = Userfault::open();
    let prepared = run::prepare(&config, &arguments.process)?;
    block_signals().context("cannot block signals")?;
    let postcopier = Postcopier::spawn(userfault).context("cannot start the post-copy thread")?;
    // Its disks are its source's until the guest is here, and so are their locks.
    let built = run::build(&config, prepared)?;
    let job = Job::Receive(Incoming {
        listener,
        identity,
        timeout: Duration::from_secs(arguments.timeout_s),
        postcopier: Some(postcopier),
    });
    built.vm.silence().context("cannot silence the network")?;
    say_where(&address)?;
    built.migrator.start(job)?;
    Ok(run::wait(built))
}

/// Whoever starts the source needs it, and may have left the port to the host.
fn say_where(address: &SocketAddr) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "listening on {address}").context("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_takes_one_port_or_several() {
        for text in ["0.0.0.0:4444", "[::1]:0", "10.0.0.1:49152-49215"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in [
            "4444",
            ":4444",
            "10.0.0.1:",
            "10.0.0.1:2-1",
            "10.0.0.1:1-65536",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn listen_passes_over_ports_in_use_and_fails_when_all_are() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = taken.local_addr().unwrap().port();
        let only = format!("127.0.0.1:{first}").parse::<Listen>().unwrap();
        assert_eq!(only.bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);

        let last = first.saturating_add(9);
        let several = format!("127.0.0.1:{first}-{last}")
            .parse::<Listen>()
            .unwrap();
        let bound = several.bind().unwrap().local_addr().unwrap().port();
        assert!(bound > first && bound <= last, "{bound}");
    }
}
