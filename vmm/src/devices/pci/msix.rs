//! MSI-X: table, pending bits and message control (PCI Local Bus Specification 3.0, section
//! 6.8.2).
//!
//! Each vector is an eventfd. While the vector may fire, that eventfd is an irqfd and a write to
//! it reaches the guest without us. While it is masked it is nobody's, and its counter is the
//! pending bit.
//!
//! ```text
//! device ── trigger ──► eventfd ──┬─ unmasked: irqfd ─► LAPIC
//!                                 └─ masked: counter ─► pending bit
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// MSI-X's capability id.
pub const CAPABILITY_ID: u8 = 0x11;
/// The bits of message control that the guest may write.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_MASK;
/// Bytes that one vector takes in the table.
pub const ENTRY_SIZE: u64 = 16;
/// The most vectors that a function can have (the size field has 11 bits).
pub const MAX_VECTORS: u16 = 2048;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const ENTRY_MASKED: u32 = 1;

/// How vectors reach the interrupt controller.
pub trait MsiRouter: Send + Sync {
    /// Makes `event` raise the message `data` at `address` from now on: sets the route of `gsi`
    /// and assigns the irqfd. An event that is pending already is raised at once.
    ///
    /// # Errors
    /// What KVM answers; the vector then stays silent.
    fn connect(&self, gsi: u32, event: &EventFd, address: u64, data: u32) -> io::Result<()>;

    /// Undoes [`Self::connect`]. When this returns, `event` collects and is not read.
    ///
    /// # Errors
    /// What KVM answers.
    fn disconnect(&self, gsi: u32, event: &EventFd) -> io::Result<()>;
}

/// One vector of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Message address.
    #[serde(default)]
    pub address: u64,
    /// Message data.
    #[serde(default)]
    pub data: u32,
    /// Per-vector mask bit.
    #[serde(default = "masked")]
    pub masked: bool,
    /// Pending bit; only meaningful in saved state.
    #[serde(default)]
    pub pending: bool,
}

fn masked() -> bool {
    true
}

impl Default for MsixEntry {
    fn default() -> Self {
        Self {
            address: 0,
            data: 0,
            masked: true,
            pending: false,
        }
    }
}

/// Saved table and pending bits, one entry a vector. Message control is saved with configuration
/// space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The vectors.
    #[serde(default)]
    pub entries: Vec<MsixEntry>,
}

struct Table {
    entries: Vec<MsixEntry>,
    /// Vectors that are irqfds now.
    connected: Vec<bool>,
    control: u16,
}

/// MSI-X of one function.
pub struct Msix {
    router: Arc<dyn MsiRouter>,
    gsi_first: u32,
    events: Vec<Arc<EventFd>>,
    /// Copy of the enable bit for [`Self::trigger`], which takes no lock.
    enabled: AtomicBool,
    table: Mutex<Table>,
}

impl Msix {
    /// `vectors` vectors (1 to [`MAX_VECTORS`]) that use the GSIs from `gsi_first` on; MSI-X is
    /// off and every vector masked.
    ///
    /// # Errors
    /// No more file descriptors, or a number of vectors that cannot be.
    pub fn new(vectors: u16, gsi_first: u32, router: Arc<dyn MsiRouter>) -> io::Result<Self> {
        if !(1..=MAX_VECTORS).contains(&vectors) || gsi_first.checked_add(vectors.into()).is_none()
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let events = (0..vectors).map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?)));
        Ok(Self {
            router,
            gsi_first,
            events: events.collect::<io::Result<_>>()?,
            enabled: AtomicBool::new(false),
            table: Mutex::new(Table {
                entries: vec![MsixEntry::default(); vectors.into()],
                connected: vec![false; vectors.into()],
                control: 0,
            }),
        })
    }

    /// What follows id and next pointer in the capability: message control, table and pending
    /// bits in BAR `bar` at these offsets (multiples of 8).
    pub fn capability(&self, bar: u8, table_offset: u32, pba_offset: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.events.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pba_offset | u32::from(bar)).to_le_bytes());
        body
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.events.len() as u16
    }

    /// Whether the guest has switched MSI-X on.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The eventfd of a vector.
    pub fn event(&self, vector: u16) -> Option<&Arc<EventFd>> {
        self.events.get(usize::from(vector))
    }

    /// Raises `vector`; nothing happens when there is no such vector or MSI-X is off. Takes no
    /// lock.
    pub fn trigger(&self, vector: u16) {
        if self.enabled()
            && let Some(event) = self.event(vector)
        {
            // Fails only when the counter is full, and then it is pending anyway.
            let _ = event.write(1);
        }
    }

    /// The guest has written message control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.lock();
        let turned_on = control & !table.control & CONTROL_ENABLE != 0;
        if turned_on {
            // While MSI-X is off a kernel backend may have written; those were no messages.
            for event in &self.events {
                let _ = event.read();
            }
        }
        table.control = control & CONTROL_WRITABLE;
        let enabled = control & CONTROL_ENABLE != 0;
        self.enabled.store(enabled, Ordering::Release);
        self.update_all(&mut table);
    }

    /// Reads the table at `offset` bytes: naturally aligned dwords and qwords.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_aligned(offset, data.len()) {
            return;
        }
        let table = self.lock();
        let Some(entry) = table.entries.get((offset / ENTRY_SIZE) as usize) else {
            return;
        };
        let mut image = [0; ENTRY_SIZE as usize];
        image[..8].copy_from_slice(&entry.address.to_le_bytes());
        image[8..12].copy_from_slice(&entry.data.to_le_bytes());
        image[12..].copy_from_slice(&u32::from(entry.masked).to_le_bytes());
        let at = (offset % ENTRY_SIZE) as usize;
        data.copy_from_slice(&image[at..at + data.len()]);
    }

    /// Writes the table at `offset` bytes: naturally aligned dwords and qwords; others are lost.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !is_aligned(offset, data.len()) {
            return;
        }
        let vector = (offset / ENTRY_SIZE) as usize;
        let mut table = self.lock();
        let Some(entry) = table.entries.get(vector).copied() else {
            return;
        };
        let mut changed = entry;
        for (at, dword) in (offset % ENTRY_SIZE..).step_by(4).zip(data.chunks_exact(4)) {
            let value = u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]);
            match at {
                0 => changed.address = changed.address >> 32 << 32 | u64::from(value & !3),
                4 => changed.address = changed.address & 0xffff_ffff | u64::from(value) << 32,
                8 => changed.data = value,
                _ => changed.masked = value & ENTRY_MASKED != 0,
            }
        }
        if (changed.address, changed.data) != (entry.address, entry.data) {
            self.disconnect(&mut table, vector);
        }
        table.entries[vector] = changed;
        self.update(&mut table, vector);
    }

    /// Reads the pending bit array at `offset` bytes: naturally aligned dwords and qwords.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_aligned(offset, data.len()) {
            return;
        }
        let first = usize::try_from(offset.saturating_mul(8)).unwrap_or(usize::MAX);
        let table = self.lock();
        for vector in first..self.events.len().min(first.saturating_add(8 * data.len())) {
            if self.is_pending(&table, vector) {
                data[(vector - first) / 8] |= 1 << (vector % 8);
            }
        }
    }

    /// Power-on state: off, all masked, nothing pending.
    pub fn reset(&self) {
        let mut table = self.lock();
        self.enabled.store(false, Ordering::Release);
        table.control = 0;
        self.update_all(&mut table);
        table.entries.fill(MsixEntry::default());
        self.drain();
    }

    /// Forgets what is pending: the device behind has been reset.
    pub fn clear_pending(&self) {
        let table = self.lock();
        for (vector, event) in self.events.iter().enumerate() {
            if !table.connected[vector] {
                let _ = event.read();
            }
        }
    }

    /// Table and pending bits.
    pub fn save(&self) -> MsixState {
        let table = self.lock();
        let entries = table.entries.iter().enumerate().map(|(vector, entry)| {
            // That of a connected vector too, if KVM has not taken it yet: an interrupt too many
            // does no harm.
            let pending = is_readable(&self.events[vector]);
            MsixEntry { pending, ..*entry }
        });
        MsixState {
            entries: entries.collect(),
        }
    }

    /// Takes what [`Self::save`] gave, and message control: vectors are routed first, then those
    /// that were pending fire or wait. Surplus entries are ignored, missing ones are masked. A
    /// vector that is routed as it should be stays so: a route takes KVM up to a millisecond.
    pub fn restore(&self, state: &MsixState, control: u16) {
        let mut table = self.lock();
        table.control = control & CONTROL_WRITABLE;
        let enabled = control & CONTROL_ENABLE != 0;
        self.enabled.store(enabled, Ordering::Release);
        for vector in 0..self.events.len() {
            let mut entry = state.entries.get(vector).copied().unwrap_or_default();
            entry.address &= !3;
            entry.pending = false;
            let before = std::mem::replace(&mut table.entries[vector], entry);
            if (before.address, before.data) != (entry.address, entry.data) {
                self.disconnect(&mut table, vector);
            }
            if !table.connected[vector] {
                let _ = self.events[vector].read();
            }
            self.update(&mut table, vector);
        }
        for (event, entry) in self.events.iter().zip(&state.entries) {
            if entry.pending && enabled {
                let _ = event.write(1);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nobody panics under it")
    }

    fn drain(&self) {
        for event in &self.events {
            let _ = event.read();
        }
    }

    /// A vector that is connected has nothing pending: KVM has taken it.
    fn is_pending(&self, table: &Table, vector: usize) -> bool {
        !table.connected[vector] && is_readable(&self.events[vector])
    }

    fn update_all(&self, table: &mut Table) {
        for vector in 0..self.events.len() {
            self.update(table, vector);
        }
    }

    /// Connects or disconnects `vector` as its mask, the function's mask and the enable bit say.
    fn update(&self, table: &mut Table, vector: usize) {
        let entry = table.entries[vector];
        let fires = table.control & CONTROL_WRITABLE == CONTROL_ENABLE && !entry.masked;
        if !fires {
            self.disconnect(table, vector);
        } else if !table.connected[vector] {
            self.connect(table, vector);
        }
    }

    fn connect(&self, table: &mut Table, vector: usize) {
        let (gsi, event) = (self.gsi_first + vector as u32, &self.events[vector]);
        let MsixEntry { address, data, .. } = table.entries[vector];
        // KVM would leave an event that it finds to a thread of its own, and a machine that is
        // saved before that has run would lose it. One that is written now is raised at once.
        let was_pending = event.read().is_ok();
        match self.router.connect(gsi, event, address, data) {
            Ok(()) => table.connected[vector] = true,
            Err(error) => tracing::warn!(gsi, %error, "cannot route an MSI-X vector"),
        }
        if was_pending {
            let _ = event.write(1);
        }
    }

    fn disconnect(&self, table: &mut Table, vector: usize) {
        if !std::mem::take(&mut table.connected[vector]) {
            return;
        }
        let gsi = self.gsi_first + vector as u32;
        if let Err(error) = self.router.disconnect(gsi, &self.events[vector]) {
            tracing::warn!(gsi, %error, "cannot take an MSI-X vector's route away");
        }
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        let mut table = self.lock();
        for vector in 0..self.events.len() {
            self.disconnect(&mut table, vector);
        }
    }
}

fn is_aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

/// Whether the eventfd's counter is above zero. The counter stays.
fn is_readable(event: &EventFd) -> bool {
    let mut descriptor = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `descriptor` is one valid pollfd for the whole call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut descriptor, 1, 0) };
    ready == 1 && descriptor.revents & libc::POLLIN != 0
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Stands for KVM: remembers routes and takes the events of connected vectors.
    #[derive(Default)]
    pub(crate) struct FakeRouter {
        routes: Mutex<BTreeMap<u32, (EventFd, u64, u32)>>,
    }

    impl FakeRouter {
        /// The messages that would have been raised since the last call: (address, data).
        pub(crate) fn take_messages(&self) -> Vec<(u64, u32)> {
            let routes = self.routes.lock().unwrap();
            let fired = routes.values().filter(|(event, ..)| event.read().is_ok());
            fired.map(|(_, address, data)| (*address, *data)).collect()
        }

        pub(crate) fn connected(&self) -> Vec<u32> {
            self.routes.lock().unwrap().keys().copied().collect()
        }
    }

    impl MsiRouter for FakeRouter {
        fn connect(&self, gsi: u32, event: &EventFd, address: u64, data: u32) -> io::Result<()> {
            let event = event.try_clone()?;
            let before = self
                .routes
                .lock()
                .unwrap()
                .insert(gsi, (event, address, data));
            assert!(before.is_none(), "connected twice");
            Ok(())
        }

        fn disconnect(&self, gsi: u32, _: &EventFd) -> io::Result<()> {
            let before = self.routes.lock().unwrap().remove(&gsi);
            assert!(before.is_some(), "was not connected");
            Ok(())
        }
    }

    fn msix() -> (Arc<FakeRouter>, Msix) {
        let router = Arc::new(FakeRouter::default());
        let msix = Msix::new(3, 24, router.clone()).unwrap();
        (router, msix)
    }

    fn set_entry(msix: &Msix, vector: u64, address: u64, data: u32, masked: bool) {
        let base = vector * ENTRY_SIZE;
        msix.write_table(base, &address.to_le_bytes());
        msix.write_table(base + 8, &data.to_le_bytes());
        msix.write_table(base + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(msix: &Msix) -> u64 {
        let mut data = [0; 8];
        msix.read_pba(0, &mut data);
        u64::from_le_bytes(data)
    }

    #[test]
    fn unmasked_vector_fires_with_its_message() {
        let (router, msix) = msix();
        msix.set_control(0x8000);
        set_entry(&msix, 1, 0xfee0_1000, 0x41, false);
        assert_eq!(router.connected(), [25]);
        msix.trigger(1);
        assert_eq!(router.take_messages(), [(0xfee0_1000, 0x41)]);
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn masked_vector_is_pending_and_fires_when_unmasked() {
        let (router, msix) = msix();
        msix.set_control(0x8000);
        set_entry(&msix, 2, 0xfee0_0000, 0x42, false);
        msix.write_table(2 * 16 + 12, &1_u32.to_le_bytes());
        msix.trigger(2);
        assert_eq!(pending(&msix), 4);
        assert_eq!(pending(&msix), 4, "reading does not take it");
        assert_eq!(router.take_messages(), []);
        msix.write_table(2 * 16 + 12, &0_u32.to_le_bytes());
        assert_eq!(router.take_messages(), [(0xfee0_0000, 0x42)]);
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn function_mask_holds_all_vectors() {
        let (router, msix) = msix();
        msix.set_control(0xc000);
        set_entry(&msix, 0, 0xfee0_0000, 1, false);
        set_entry(&msix, 1, 0xfee0_0000, 2, false);
        msix.trigger(0);
        msix.trigger(1);
        assert_eq!(pending(&msix), 3);
        msix.set_control(0x8000);
        assert_eq!(router.take_messages(), [(0xfee0_0000, 1), (0xfee0_0000, 2)]);
    }

    #[test]
    fn vector_of_a_disabled_function_is_lost() {
        let (router, msix) = msix();
        set_entry(&msix, 0, 0xfee0_0000, 1, false);
        msix.trigger(0);
        msix.event(0).unwrap().write(1).unwrap();
        msix.set_control(0x8000);
        assert_eq!(router.take_messages(), []);
    }

    #[test]
    fn message_changed_while_unmasked_is_routed_anew() {
        let (router, msix) = msix();
        msix.set_control(0x8000);
        set_entry(&msix, 0, 0xfee0_0000, 1, false);
        msix.write_table(8, &7_u32.to_le_bytes());
        msix.trigger(0);
        assert_eq!(router.take_messages(), [(0xfee0_0000, 7)]);
    }

    #[test]
    fn table_reads_back_what_was_written() {
        let (_, msix) = msix();
        set_entry(&msix, 1, 0x1_fee0_1003, 0x41, false);
        let (mut qword, mut dword) = ([0; 8], [0; 4]);
        msix.read_table(16, &mut qword);
        assert_eq!(u64::from_le_bytes(qword), 0x1_fee0_1000);
        msix.read_table(24, &mut qword);
        assert_eq!(u64::from_le_bytes(qword), 0x41);
        msix.read_table(12, &mut dword);
        assert_eq!(u32::from_le_bytes(dword), 1, "vectors start masked");
        msix.read_table(48, &mut dword);
        assert_eq!(u32::from_le_bytes(dword), 0, "there is no vector 3");
        msix.write_table(u64::MAX - 7, &[0xff; 8]);
        msix.read_pba(u64::MAX - 7, &mut qword);
        assert_eq!(qword, [0; 8]);
    }

    #[test]
    fn save_restore_save_keeps_table_and_pending_bits() {
        let (_, source) = msix();
        source.set_control(0x8000);
        set_entry(&source, 0, 0xfee0_0000, 1, false);
        set_entry(&source, 1, 0xfee0_0000, 2, true);
        source.trigger(1);
        let saved = source.save();

        let (router, target) = msix();
        target.restore(&saved, 0x8000);
        assert_eq!(target.save(), saved);
        assert_eq!(router.connected(), [24]);
        target.write_table(16 + 12, &0_u32.to_le_bytes());
        assert_eq!(router.take_messages(), [(0xfee0_0000, 2)]);
    }

    #[test]
    fn pending_vector_that_is_restored_unmasked_fires() {
        let (router, target) = msix();
        let mut state = target.save();
        state.entries[0] = MsixEntry {
            address: 0xfee0_0000,
            data: 5,
            masked: false,
            pending: true,
        };
        target.restore(&state, 0x8000);
        assert_eq!(router.take_messages(), [(0xfee0_0000, 5)]);
    }

    #[test]
    fn reset_takes_all_routes_away() {
        let (router, msix) = msix();
        msix.set_control(0x8000);
        set_entry(&msix, 0, 0xfee0_0000, 1, false);
        msix.reset();
        assert!(router.connected().is_empty());
        assert_eq!(msix.save(), super::tests::msix().1.save());
        msix.set_control(0x8000);
        drop(msix);
        assert!(router.connected().is_empty());
    }
}
