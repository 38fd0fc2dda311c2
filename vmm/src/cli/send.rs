//! `pindah-vmm send`: connects, passes the sockets to the guest's VMM and tells how it goes.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use pindah_vmm::api::client::Client;
use pindah_vmm::vm::termination::{block_signals, signal_fd};
use pindah_vmm_api::report::{StatusLine, Summary};
use pindah_vmm_api::{
    Compression, Encryption, Event, EventKind, MigrateRequest, MigrationMode, MigrationStatus,
};

use super::options::{parse_choice, parse_mib, parse_size};
use super::protection::ProtectionArguments;

const PATH: &str = "/api/v1/migrate";
/// How long all connections together may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `send`.
#[derive(Debug, Args)]
pub struct SendArguments {
    /// The guest's API socket.
    #[arg(long, value_name = "SOCKET")]
    api: PathBuf,
    #[command(flatten)]
    protection: ProtectionArguments,
    /// What becomes of a guest that writes faster than the link carries. precopy: it is held until
    /// it writes less. hybrid: it runs at the destination before all of its memory is there; if
    /// the link or this host fails until it is, the guest is lost.
    #[arg(long, default_value = "precopy", value_name = "MODE",
          value_parser = parse_choice::<MigrationMode>)]
    mode: MigrationMode,
    /// Connections for memory, 1 to 4.
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=4))]
    connections: u8,
    /// Stop the guest only when it is predicted to stand no longer than this, in milliseconds.
    #[arg(long, default_value_t = 25, value_name = "MS")]
    downtime_ms: u64,
    /// Give up when the switchover has not come by then, in seconds.
    #[arg(long, default_value_t = 600, value_name = "S")]
    timeout_s: u64,
    /// Send no more than this in a second: 50M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bandwidth: Option<u64>,
    /// How memory is compressed: auto, none, lz4 or zstd.
    #[arg(long, default_value = "auto", value_parser = parse_choice::<Compression>)]
    compression: Compression,
    /// Most memory for what the destination holds, to send differences [default: half the
    /// guest's].
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    delta_cache: Option<u64>,
    /// Compare all memory at the end, while the guest stands: for tests.
    #[arg(long)]
    verify_memory: bool,
    /// Where `pindah-vmm receive` listens.
    #[arg(value_name = "HOST:PORT")]
    destination: String,
}

/// Moves a guest. Succeeds only if it runs at its destination.
pub fn send(arguments: &SendArguments) -> anyhow::Result<()> {
    let keys = arguments.protection.open()?;
    let mut client = Client::connect(&arguments.api)?;
    // Before the request, so that nothing is missed.
    let events = Client::connect(&arguments.api)?.events(None)?;
    let sockets = connect(
        &arguments.destination,
        1 + usize::from(arguments.connections)
            + usize::from(arguments.mode == MigrationMode::Hybrid),
    )?;
    let files = keys.iter().flat_map(|keys| &keys.0).map(AsFd::as_fd);
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).chain(files).collect();
    block_signals().context("cannot block signals")?;
    let signals = signal_fd().context("cannot wait for signals")?;
    let _: MigrationStatus =
        client.post_with_descriptors(PATH, &request(arguments), &descriptors)?;
    drop((sockets, keys));
    let api = arguments.api.clone();
    std::thread::spawn(move || cancel_on_signals(&signals, &api));
    follow(events)
}

fn request(arguments: &SendArguments) -> MigrateRequest {
    let encryption = arguments.protection.encryption();
    let is_tls = encryption == Encryption::Tls;
    MigrateRequest {
        mode: arguments.mode,
        data_connections: arguments.connections,
        encryption,
        server_name: is_tls.then(|| host(&arguments.destination).to_owned()),
        downtime_target_ms: arguments.downtime_ms,
        timeout_s: arguments.timeout_s,
        bandwidth_bytes_per_s: arguments.bandwidth,
        compression: arguments.compression,
        delta_cache_mib: arguments.delta_cache,
        verify_memory: arguments.verify_memory,
    }
}

/// The host in `host:port` or `[address]:port`.
fn host(destination: &str) -> &str {
    let host = destination
        .rsplit_once(':')
        .map_or(destination, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// That many connections to the first of the host's addresses that answers.
fn connect(destination: &str, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let addresses: Vec<SocketAddr> = destination
        .to_socket_addrs()
        .with_context(|| format!("{destination} is no host and port that are known"))?
        .collect();
    let mut failed = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        // What is left is shared by those that are.
        let left = deadline.saturating_duration_since(Instant::now());
        let end = Instant::now() + left / (addresses.len() - index) as u32;
        match connect_all(address, count, end) {
            Ok(streams) => return Ok(streams),
            Err(error) => failed.push(format!("{address}: {error}")),
        }
    }
    bail!("cannot connect to {destination} ({})", failed.join("; "));
}

fn connect_all(
    address: &SocketAddr,
    count: usize,
    deadline: Instant,
) -> std::io::Result<Vec<TcpStream>> {
    (0..count)
        .map(|_| {
            let left = deadline.saturating_duration_since(Instant::now());
            TcpStream::connect_timeout(address, left.max(Duration::from_millis(1)))
        })
        .collect()
}

/// The guest's VMM decides whether it is still time.
fn cancel_on_signals(mut signals: &File, api: &Path) {
    // `struct signalfd_siginfo` (signalfd(2)).
    let mut signal = [0; 128];
    while signals.read_exact(&mut signal).is_ok() {
        let cancelled =
            Client::connect(api).and_then(|mut client| client.command::<()>("DELETE", PATH, None));
        match cancelled {
            Ok(()) => eprintln!("pindah-vmm: giving up"),
            Err(error) => eprintln!("pindah-vmm: not given up: {error}"),
        }
    }
}

fn follow<E: std::error::Error + Send + Sync + 'static>(
    events: impl Iterator<Item = Result<Event, E>>,
) -> anyhow::Result<()> {
    for event in events {
        match event?.kind {
            EventKind::MigrationProgress { status } => say(&StatusLine(&status))?,
            EventKind::MigrationCompleted { report } => return say(&Summary(&report)),
            EventKind::MigrationFailed {
                reason, lost: true, ..
            } => bail!("the guest is lost, and stands still here and there: {reason}"),
            EventKind::MigrationFailed {
                reason,
                in_doubt: false,
                ..
            } => bail!("the guest goes on here: {reason}"),
            EventKind::MigrationFailed { reason, .. } => bail!(
                "the guest stands still here, because it may run at its destination: {reason}"
            ),
            EventKind::Lagged => {
                bail!("the events were lost; GET {PATH} on the API socket tells how it goes")
            }
            _ => {}
        }
    }
    bail!("the VMM has ended, and has not said how the migration went");
}

fn say(text: &impl Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use pindah_vmm_api::MigrationReport;

    use super::*;

    fn event(kind: EventKind) -> Event {
        Event {
            sequence: 1,
            time_unix_ms: 0,
            kind,
        }
    }

    #[test]
    fn host_is_what_a_certificate_carries() {
        for (destination, expected) in [
            ("node2:7000", "node2"),
            ("10.0.0.2:7000", "10.0.0.2"),
            ("[fd00::2]:7000", "fd00::2"),
        ] {
            assert_eq!(host(destination), expected);
        }
    }

    #[test]
    fn connect_gives_sockets_or_names_every_address_and_why() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(connect(&address, 3).unwrap().len(), 3);
        drop(listener);
        let error = connect(&address, 1).unwrap_err().to_string();
        let expected = format!("cannot connect to {address} ({address}: Connection refused");
        assert!(error.starts_with(&expected), "{error}");
        assert!(connect("127.0.0.1", 1).is_err());
    }

    #[test]
    fn only_a_completed_migration_is_a_success() {
        let report = Box::new(MigrationReport::default());
        let failed = |in_doubt, lost| EventKind::MigrationFailed {
            reason: "cancelled".into(),
            in_doubt,
            lost,
        };
        for (last, expected) in [
            (Some(EventKind::MigrationCompleted { report }), None),
            (Some(failed(false, false)), Some("goes on here: cancelled")),
            (
                Some(failed(true, false)),
                Some("may run at its destination"),
            ),
            (Some(failed(false, true)), Some("guest is lost")),
            (Some(EventKind::Lagged), Some("events were lost")),
            (None, Some("the VMM has ended")),
        ] {
            let events = [EventKind::MigrationStarted].into_iter().chain(last);
            let error = follow(events.map(|kind| Ok::<_, std::io::Error>(event(kind))))
                .err()
                .map(|error| error.to_string());
            match (error, expected) {
                (None, None) => {}
                (Some(error), Some(expected)) => assert!(error.contains(expected), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
