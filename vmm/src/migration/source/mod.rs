//! The source: brings the guest's memory over while it runs, then the guest.
//!
//! ```text
//! prepare ─► precopy ⟲ rounds ─► switchover ─┬─► the guest has left
//!    │           │            before COMMIT  ├─► it goes on here (Aborted, or won back)
//!    └───────────┴── any failure ────────────┴─► in doubt: it stands still
//!                └► it goes on here
//!
//! hybrid: precopy ─► leave ─► switchover ─► postcopy ─┬─► the guest has left
//!                                    RUNNING          └─► it is lost: it stands still for good
//! ```

mod encoding;
mod error;
mod postcopy;
mod precopy;
mod sender;
mod switchover;
mod throttle;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use pindah_vmm_api::{MigrateRequest, MigrationMode, MigrationPhase, MigrationReport, PauseReason};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub use encoding::EncodingThread;
pub use error::MigrationError;
use precopy::{Ending, Precopy};
use sender::{Connections, Sender};
use throttle::Throttle;

use super::clocks::Exchange;
use super::connection::Connection;
use super::pages::{Encoder, EncoderOptions};
use super::priority::Priority;
use super::progress::Progress;
use super::protocol::{
    ANSWER_TIMEOUT, Channel, Hello, Kind, Preamble, Reason, Rehearsed, VERSION, Welcome,
};
use super::tls::Identity;
use crate::clock::now_unix_ns;
use crate::vm::migratable::MigrationSource;

/// How long storage may take for the requests in flight.
const QUIESCE: Duration = Duration::from_secs(10);

/// What a source has to send with.
pub struct Links<'a> {
    /// The control connection.
    pub control: TcpStream,
    /// Data connections, one at least.
    pub data: Vec<TcpStream>,
    /// In hybrid mode: that for pages that are waited for.
    pub urgent: Option<TcpStream>,
    /// Who we are.
    pub identity: Identity,
    /// Encodes what is sent.
    pub encoding: &'a EncodingThread,
}

/// Moves the guest. On success it runs at the destination and never again here; the caller lets
/// the machine end.
///
/// # Errors
/// [`MigrationError`]; the guest goes on here, but for [`MigrationError::InDoubt`] and
/// [`MigrationError::Lost`].
pub fn migrate(
    guest: &dyn MigrationSource,
    request: &MigrateRequest,
    links: Links<'_>,
    priority: Priority,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    let outcome = attempt(guest, request, links, priority, progress);
    priority.restore();
    let cancelled = progress.cancel().is_set();
    if outcome.is_ok() {
        progress.update(|status| status.phase = MigrationPhase::Completed);
    }
    outcome.map_err(|error| match error {
        final_ @ (MigrationError::InDoubt { .. } | MigrationError::Lost { .. }) => final_,
        _ if cancelled => MigrationError::Cancelled,
        error => error,
    })
}

fn attempt(
    guest: &dyn MigrationSource,
    request: &MigrateRequest,
    links: Links<'_>,
    priority: Priority,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    let thread = links.encoding;
    let mut connections = connect(request, links, progress)?;
    greet(guest, request, &mut connections)?;
    let rehearsal = rehearse(guest, &mut connections.control)?;
    let options = EncoderOptions {
        compression: request.compression,
        delta_cache_bytes: delta_cache_bytes(guest, request),
    };
    let encoder = Encoder::new(guest.memory(), options);
    let mut sender = Sender::new(
        connections,
        thread.begin(encoder, priority),
        request.bandwidth_bytes_per_s,
        priority,
        Throttle::new(guest),
        progress,
    );
    guest.start_dirty_log()?;
    let mut precopy = Precopy::new(guest, request, rehearsal, progress);
    let outcome = precopy.run(&mut sender).and_then(|ending| {
        sender.end_low_priority();
        if ending == Ending::LeavePages {
            postcopy::leave(&precopy.pending, &mut sender)?;
        }
        switchover::run(guest, request, precopy, ending, &mut sender, progress)
    });
    if let Err(MigrationError::Lost { after }) = &outcome {
        tracing::error!(after, "the guest is lost");
    } else if let Err(error) = &outcome {
        // Whoever waits there need not wait for the connection's end.
        let cancelled = progress.cancel().is_set();
        let error = if cancelled {
            &MigrationError::Cancelled
        } else {
            error
        };
        let reason = Reason {
            message: crate::causes::chain(error),
        };
        sender.control.ignore_cancel();
        let soon = Instant::now() + Duration::from_secs(1);
        let _ = sender.control.send_message(Kind::Cancel, &reason, soon);
        if let Err(error) = guest.stop_dirty_log() {
            tracing::warn!("the guest runs on, slower: {error}");
        }
    }
    outcome
}

fn connect(
    request: &MigrateRequest,
    links: Links<'_>,
    progress: &Progress,
) -> Result<Connections, MigrationError> {
    let migration = random_id();
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let open = |stream, channel, number| {
        let preamble = Preamble {
            version: VERSION,
            channel,
            number,
            migration,
        };
        Connection::connect(
            stream,
            &links.identity,
            request.server_name.as_deref(),
            preamble,
            deadline,
            progress.cancel(),
        )
    };
    let control = open(links.control, Channel::Control, 0)?;
    let data = links.data.into_iter().zip(0..);
    let data = data.map(|(stream, number)| open(stream, Channel::Data, number));
    let data = data.collect::<Result<_, _>>()?;
    let urgent = links.urgent;
    let urgent = urgent.map(|stream| open(stream, Channel::Urgent, 0));
    Ok(Connections {
        control,
        data,
        urgent: urgent.transpose()?,
    })
}

fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    // Two migrations to one destination at a time are refused anyway: an id that is not random
    // does no harm.
    let _ = rustix::rand::getrandom(&mut id[..], rustix::rand::GetRandomFlags::empty());
    id
}

/// Says what comes, and hears that the destination can take it.
fn greet(
    guest: &dyn MigrationSource,
    request: &MigrateRequest,
    connections: &mut Connections,
) -> Result<(), MigrationError> {
    let may_leave_pages = request.mode == MigrationMode::Hybrid;
    let region = |region: &crate::memory::GuestRegion| (region.start_addr().0, region.len());
    let hello = Hello {
        vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        config: guest.config().clone(),
        regions: guest.memory().iter().map(region).collect(),
        data_connections: connections.data.len() as u8,
        verify_memory: request.verify_memory,
        may_leave_pages,
    };
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let control = &mut connections.control;
    control.send_message(Kind::Hello, &hello, deadline)?;
    let welcome: Welcome = answer(control, Kind::Welcome, deadline)?;
    tracing::info!(welcome.vmm_version, "the destination is ready");
    if welcome.may_leave_pages == may_leave_pages {
        Ok(())
    } else {
        Err(MigrationError::Refused(
            "it knows nothing of hybrid mode".to_owned(),
        ))
    }
}

/// What the dry run has shown.
#[derive(Clone, Copy, Debug)]
struct Rehearsal {
    /// What a switchover will take without any page.
    fixed_cost: Duration,
    /// By how much the destination's wall clock is ahead, in nanoseconds.
    clock_ahead_ns: i64,
}

/// Has the destination try on the guest's state as it is now: what it does not take shows before
/// anything is sent, and what it must prepare for is prepared. The guest stands for the moment in
/// which its state is saved.
fn rehearse(
    guest: &dyn MigrationSource,
    control: &mut Connection,
) -> Result<Rehearsal, MigrationError> {
    let quiesced = guest.quiesce(Instant::now() + QUIESCE);
    let start = Instant::now();
    let ran = quiesced.and_then(|()| guest.pause(PauseReason::Migration));
    let saved = ran.and_then(|ran| {
        let saved = guest.save();
        if ran {
            guest.resume()?;
        }
        saved
    });
    guest.unquiesce();
    let bytes = saved?.encode()?;
    let here = start.elapsed();
    let (asked_unix_ns, sent) = (now_unix_ns(), Instant::now());
    let deadline = sent + ANSWER_TIMEOUT;
    control.send_frame(Kind::Rehearse, &bytes, deadline)?;
    let rehearsed: Rehearsed = answer(control, Kind::Rehearsed, deadline)?;
    let there = sent.elapsed();
    let clocks = Exchange {
        asked: asked_unix_ns,
        came: rehearsed.came_unix_ns,
        answered: rehearsed.answered_unix_ns,
        heard: now_unix_ns(),
    };
    let clock_ahead_ns = match clocks.came {
        0 => 0,
        _ => clocks.ahead_ns(),
    };
    let restore_us = rehearsed.restore_us;
    tracing::debug!(?here, ?there, restore_us, clock_ahead_ns, "rehearsed");
    Ok(Rehearsal {
        // There and back, with the state on the way: the destination's word of how long it took
        // is part of it.
        fixed_cost: here + there,
        clock_ahead_ns,
    })
}

/// The body of the next message, which must be of this kind.
fn answer<T: serde::de::DeserializeOwned>(
    control: &mut Connection,
    kind: Kind,
    deadline: Instant,
) -> Result<T, MigrationError> {
    let frame = control.receive(deadline)?;
    match frame.kind {
        found if found == kind => Ok(frame.message()?),
        Kind::Refuse | Kind::Aborted => {
            let Reason { message } = frame.message()?;
            Err(MigrationError::Refused(message))
        }
        _ => Err(MigrationError::Unexpected("a message out of turn")),
    }
}

/// Half of the guest's RAM unless the request says otherwise, and half of what the host has free.
fn delta_cache_bytes(guest: &dyn MigrationSource, request: &MigrateRequest) -> u64 {
    let wanted_mib = request
        .delta_cache_mib
        .unwrap_or(guest.config().memory.size_mib / 2);
    let host = rustix::system::sysinfo();
    let free = (host.freeram + host.bufferram) * u64::from(host.mem_unit);
    (wanted_mib << 20).min(free / 2)
}
