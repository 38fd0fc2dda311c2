//! What a device's threads, its transport and its handle share.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::features;
use super::mac::MacAddress;
use super::tap::Tap;
use crate::devices::virtio::Interrupt;

/// What the driver has set through the control queue, and what it was asked there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commands {
    /// Its address.
    pub mac: MacAddress,
    /// Queue pairs in use.
    pub pairs: u16,
    /// Guest offloads; `None`: all that were negotiated.
    pub offloads: Option<u64>,
    /// The driver is asked to announce itself, and has not answered yet (5.1.6.5.4).
    pub announce: bool,
}

/// The time between activation and deactivation.
struct Session {
    features: u64,
    interrupt: Arc<dyn Interrupt>,
}

/// Locks are taken in the order of the fields, none while the driver is signalled.
pub(super) struct Shared {
    /// The device's id.
    pub id: String,
    /// The queues of the tap.
    pub taps: Vec<Tap>,
    /// What the driver is told.
    pub mtu: Option<u16>,
    /// What passes.
    pub counters: Counters,
    mac: MacAddress,
    session: Mutex<Option<Session>>,
    commands: Mutex<Commands>,
    /// The first so many queues of the tap get packets.
    attached: AtomicUsize,
    /// Tells the pair of this index that it was attached or detached.
    changed: Vec<Option<EventFd>>,
    link_up: AtomicBool,
    gone: AtomicBool,
    complained: AtomicBool,
}

impl Shared {
    pub(super) fn new(id: &str, mac: MacAddress, mtu: Option<u16>, taps: Vec<Tap>) -> Self {
        let attached = AtomicUsize::new(taps.len());
        // The first pair is always in use.
        let changed = (0..taps.len()).map(|index| match index {
            0 => None,
            _ => EventFd::new(EFD_NONBLOCK).ok(),
        });
        Self {
            id: id.to_owned(),
            mtu,
            counters: Counters::default(),
            mac,
            session: Mutex::new(None),
            commands: Mutex::new(initial_commands(mac)),
            attached,
            changed: changed.collect(),
            taps,
            link_up: AtomicBool::new(true),
            gone: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        }
    }

    pub(super) fn commands(&self) -> MutexGuard<'_, Commands> {
        self.commands.lock().expect("no holder panics")
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().expect("no holder panics")
    }

    /// Back to what the configuration says.
    pub(super) fn forget_commands(&self) {
        *self.commands() = initial_commands(self.mac);
    }

    /// Sets the tap up for a driver with these features.
    ///
    /// # Errors
    /// What was tried, and the kernel's answer. A tap that is gone is no error.
    pub(super) fn start(
        &self,
        features: u64,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<(), (&'static str, io::Error)> {
        *self.session() = Some(Session {
            features,
            interrupt,
        });
        let (pairs, offloads) = {
            let commands = self.commands();
            (commands.pairs, commands.offloads)
        };
        let negotiated = features::guest_offloads(features);
        let offloads = offloads.map_or(negotiated, |wanted| wanted & negotiated);
        let result = match self.apply_offloads(offloads) {
            Ok(()) => self.apply_pairs(pairs).map_err(|error| {
                let action = "cannot attach and detach the tap's queues";
                (action, error)
            }),
            Err(error) => Err(("cannot set the tap's offloads", error)),
        };
        match result {
            Err(_) if !self.taps[0].is_alive() => {
                self.tap_gone();
                Ok(())
            }
            result => result,
        }
    }

    /// The driver is gone for now.
    pub(super) fn stop(&self) {
        *self.session() = None;
    }

    /// Features that were negotiated; none while there is no driver.
    pub(super) fn features(&self) -> u64 {
        self.session()
            .as_ref()
            .map_or(0, |session| session.features)
    }

    /// Tells the driver to look at the device's configuration. Returns whether there is one.
    pub(super) fn signal_config(&self) -> bool {
        let interrupt = {
            let session = self.session();
            session
                .as_ref()
                .map(|session| Arc::clone(&session.interrupt))
        };
        interrupt
            .inspect(|interrupt| interrupt.signal_config())
            .is_some()
    }

    /// Asks the driver to announce itself. Returns whether it can.
    pub(super) fn announce(&self) -> bool {
        if self.features() & (1 << VIRTIO_NET_F_GUEST_ANNOUNCE) == 0 {
            return false;
        }
        self.commands().announce = true;
        self.signal_config()
    }

    pub(super) fn is_link_up(&self) -> bool {
        self.link_up.load(Ordering::SeqCst) && !self.gone.load(Ordering::SeqCst)
    }

    /// Plugs the cable in, or out.
    pub(super) fn set_link(&self, up: bool) {
        if self.link_up.swap(up, Ordering::SeqCst) != up {
            self.signal_config();
        }
    }

    /// Whether the tap's interface was removed under us.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// The tap's interface was removed: the guest loses its link and runs on.
    pub(super) fn tap_gone(&self) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            tracing::warn!("{}: the tap is gone, the link is down from now on", self.id);
            self.signal_config();
        }
    }

    /// The tap cannot be read, and yet is there: said once.
    pub(super) fn complain(&self, error: &io::Error) {
        if !self.complained.swap(true, Ordering::SeqCst) {
            tracing::warn!("{}: cannot read from the tap: {error}", self.id);
        }
    }

    /// Whether packets come to this queue of the tap.
    pub(super) fn is_attached(&self, index: usize) -> bool {
        index < self.attached.load(Ordering::SeqCst)
    }

    /// Readable when [`Self::is_attached`] may have changed for this pair.
    pub(super) fn changed(&self, index: usize) -> Option<&EventFd> {
        self.changed.get(index)?.as_ref()
    }

    /// Lets packets come to the first `pairs` queues of the tap.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn apply_pairs(&self, pairs: u16) -> io::Result<()> {
        let wanted = usize::from(pairs).clamp(1, self.taps.len());
        let current = self.attached.load(Ordering::SeqCst);
        for index in wanted..current {
            // First, so that the pair does not take the detached queue for one that is gone.
            self.attached.store(wanted, Ordering::SeqCst);
            self.taps[index].set_attached(false)?;
            self.tell(index);
        }
        for index in current..wanted {
            self.taps[index].set_attached(true)?;
            self.attached.store(index + 1, Ordering::SeqCst);
            self.tell(index);
        }
        Ok(())
    }

    fn tell(&self, index: usize) {
        if let Some(changed) = self.changed(index) {
            let _ = changed.write(1);
        }
    }

    /// Tells the tap what the guest can take. It is the same for all its queues.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn apply_offloads(&self, offloads: u64) -> io::Result<()> {
        self.taps[0].set_offload(features::tap_offloads(offloads))
    }

    /// Writes one frame to the network behind the tap.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        let header = [0_u8; super::HEADER_BYTES];
        let buffers = [&header[..], frame].map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        });
        // SAFETY: both buffers are slices that outlive the call, which only reads them.
        unsafe { self.taps[0].write(&buffers) }.map(drop)
    }

    /// The queue's descriptor.
    pub(super) fn tap_fd(&self, index: usize) -> i32 {
        self.taps[index].as_raw_fd()
    }

    /// What the link is set to, without regard to the tap.
    pub(super) fn link_setting(&self) -> bool {
        self.link_up.load(Ordering::SeqCst)
    }

    /// Takes saved state.
    pub(super) fn load(&self, commands: Commands, link_up: bool) {
        *self.commands() = commands;
        self.link_up.store(link_up, Ordering::SeqCst);
    }
}

fn initial_commands(mac: MacAddress) -> Commands {
    Commands {
        mac,
        pairs: 1,
        offloads: None,
        announce: false,
    }
}
