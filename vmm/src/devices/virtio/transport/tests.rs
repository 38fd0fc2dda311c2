//! The transport as a driver sees it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::pci::msix::tests::FakeRouter;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{DriverQueue, memory, writable};
use crate::devices::virtio::{ActivateError, Activation, Interrupt};

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const SLOT: u8 = 3;
const BASE: u64 = 0xc001_8000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;

/// What a test sees of its device.
#[derive(Default)]
struct Seen {
    active: Option<(u64, Vec<u16>)>,
    kicks: Vec<Arc<EventFd>>,
    interrupt: Option<Arc<dyn Interrupt>>,
    activations: u32,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    refuse: AtomicBool,
}

/// A device with two queues and eight bytes of configuration, whose "work" moves positions.
struct FakeDevice {
    shared: Arc<Shared>,
    queues: Vec<(u16, Queue)>,
    config: [u8; 8],
}

impl VirtioDevice for FakeDevice {
    fn id(&self) -> &'static str {
        "fake0"
    }
    fn device_type(&self) -> u16 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }
    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | 1
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (&byte, at) in data.iter().zip(offset as usize..) {
            if let Some(register) = self.config.get_mut(at) {
                *register = byte;
            }
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.shared.refuse.load(Ordering::SeqCst) {
            return Err(ActivateError::Backend {
                id: "fake0".to_owned(),
                action: "test",
                source: io::ErrorKind::Other.into(),
            });
        }
        let mut seen = self.shared.seen.lock().unwrap();
        seen.activations += 1;
        let indices = activation.queues.iter().map(|queue| queue.index);
        seen.active = Some((activation.features, indices.collect()));
        seen.interrupt = Some(activation.interrupt);
        for active in activation.queues {
            let mut queue = active.queue;
            queue.set_next_avail(queue.next_avail() + 3);
            queue.set_next_used(queue.next_used() + 2);
            self.queues.push((active.index, queue));
            seen.kicks.push(active.kick);
        }
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        let mut seen = self.shared.seen.lock().unwrap();
        *seen = Seen {
            activations: seen.activations,
            ..Seen::default()
        };
        std::mem::take(&mut self.queues)
    }
    fn save(&self) -> Result<Section, StateError> {
        Section::new("fake", "fake0", 1, &self.config)
    }
    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        self.config = section.parse(1)?;
        Ok(())
    }
}

#[derive(Default)]
struct FakeNotifier(Mutex<BTreeMap<u64, EventFd>>);

impl Notifier for FakeNotifier {
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let before = self.0.lock().unwrap().insert(address, event.try_clone()?);
        assert!(before.is_none(), "registered twice");
        Ok(())
    }
    fn unregister(&self, address: u64, _: &EventFd) -> io::Result<()> {
        let before = self.0.lock().unwrap().remove(&address);
        assert!(before.is_some(), "was not registered");
        Ok(())
    }
}

struct Machine {
    bus: Arc<Bus>,
    memory: Arc<GuestMemory>,
    router: Arc<FakeRouter>,
    notifier: Arc<FakeNotifier>,
    shared: Arc<Shared>,
    transport: Arc<Transport>,
}

impl Machine {
    fn new() -> Self {
        Self::with_bus(Arc::default())
    }

    fn with_bus(bus: Arc<Bus>) -> Self {
        let (memory, router) = (memory(1), Arc::new(FakeRouter::default()));
        let (notifier, shared) = (Arc::<FakeNotifier>::default(), Arc::<Shared>::default());
        let device = Box::new(FakeDevice {
            shared: Arc::clone(&shared),
            queues: Vec::new(),
            config: *b"abcdefgh",
        });
        let transport = Transport::new(
            SLOT,
            device,
            Arc::clone(&memory),
            Arc::clone(&bus),
            24,
            router.clone(),
            notifier.clone(),
        );
        Self {
            transport: transport.unwrap(),
            bus,
            memory,
            router,
            notifier,
            shared,
        }
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.bus.read(BASE + offset, &mut data));
        data
    }

    fn read8(&self, offset: u64) -> u8 {
        self.read::<1>(offset)[0]
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write(&self, offset: u64, data: &[u8]) {
        assert!(self.bus.write(BASE + offset, data));
    }

    fn config_read(&self, offset: u8) -> u32 {
        let mut data = [0; 4];
        self.transport.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn config_write(&self, offset: u8, value: u32) {
        self.transport.config_write(offset, &value.to_le_bytes());
    }

    /// Offset of the capability whose first bytes after the pointer match.
    fn capability(&self, id: u8, cfg_type: Option<u8>) -> u8 {
        let mut at = self.config_read(0x34) as u8;
        while at != 0 {
            let [found, next, _, kind] = self.config_read(at).to_le_bytes();
            if found == id && cfg_type.is_none_or(|cfg_type| cfg_type == kind) {
                return at;
            }
            at = next;
        }
        panic!("no capability {id:#x} {cfg_type:?}");
    }

    fn accept_features(&self, features: u64) {
        self.write(0x14, &[1]);
        self.write(0x14, &[3]);
        for half in 0..2_u32 {
            self.write(0x08, &half.to_le_bytes());
            let value = (features >> (32 * half)) as u32;
            self.write(0x0c, &value.to_le_bytes());
        }
        self.write(0x14, &[0x0b]);
    }

    fn set_up_queue(&self, index: u16, driver: &DriverQueue, size: u16) {
        self.write(0x16, &index.to_le_bytes());
        self.write(0x18, &size.to_le_bytes());
        self.write(0x1a, &(index + 1).to_le_bytes());
        self.write(0x20, &driver.descriptor_table().to_le_bytes());
        self.write(0x28, &(driver.available_ring() as u32).to_le_bytes());
        self.write(
            0x2c,
            &((driver.available_ring() >> 32) as u32).to_le_bytes(),
        );
        self.write(0x30, &driver.used_ring().to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
    }

    /// All that a driver does: MSI-X, features, both queues, DRIVER_OK.
    fn start(&self) {
        for vector in 0..3_u64 {
            let at = TABLE + 16 * vector;
            self.write(at, &0xfee0_0000_u64.to_le_bytes());
            self.write(at + 8, &(0x40 + vector as u32).to_le_bytes());
            self.write(at + 12, &0_u32.to_le_bytes());
        }
        let msix = self.capability(0x11, None);
        self.transport.config_write(msix + 2, &[0, 0x80]);
        self.accept_features(VERSION_1 | EVENT_IDX);
        assert_eq!(self.read8(0x14), 0x0b);
        self.write(0x10, &0_u16.to_le_bytes());
        self.set_up_queue(0, &DriverQueue::new(&self.memory, 0x1_0000, 128), 128);
        self.set_up_queue(1, &DriverQueue::new(&self.memory, 0x2_0000, 64), 64);
        self.write(0x14, &[0x0f]);
    }

    fn active(&self) -> Option<(u64, Vec<u16>)> {
        self.shared.seen.lock().unwrap().active.clone()
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        let seen = self.shared.seen.lock().unwrap();
        Arc::clone(seen.interrupt.as_ref().unwrap())
    }
}

#[test]
fn identity_is_a_virtio_1_block_device() {
    let machine = Machine::new();
    assert_eq!(machine.config_read(0x00), 0x1042_1af4);
    assert_eq!(machine.config_read(0x08), 0x0100_0001);
    assert_eq!(machine.config_read(0x2c), 0x1042_1af4);
    assert_eq!(u64::from(machine.config_read(0x20)), BASE);
    let notify = machine.capability(9, Some(2));
    assert_eq!(machine.config_read(notify + 8), 0x3000);
    assert_eq!(machine.config_read(notify + 16), 4);
    for (cfg_type, offset) in [(1, 0), (3, 0x1000), (4, 0x2000)] {
        let at = machine.capability(9, Some(cfg_type));
        assert_eq!(machine.config_read(at + 4), 4, "all in BAR 4");
        assert_eq!(machine.config_read(at + 8), offset);
    }
    let msix = machine.capability(0x11, None);
    assert_eq!(machine.config_read(msix) >> 16, 2, "three vectors");
    assert_eq!(machine.config_read(msix + 4), 0x4004);
    assert_eq!(machine.config_read(msix + 8), 0x5004);
}

#[test]
fn driver_that_follows_the_specification_runs_the_device() {
    let machine = Machine::new();
    machine.write(0x00, &1_u32.to_le_bytes());
    assert_eq!(machine.read32(0x04), 1, "VERSION_1 is offered");
    assert_eq!(machine.read16(0x12), 2);
    machine.start();
    assert_eq!(machine.read8(0x14), 0x0f);
    assert_eq!(machine.active(), Some((VERSION_1 | EVENT_IDX, vec![0, 1])));
    machine.interrupt().signal_queue(1);
    assert_eq!(machine.router.take_messages(), [(0xfee0_0000, 0x42)]);
    machine.interrupt().signal_config();
    assert_eq!(machine.router.take_messages(), [(0xfee0_0000, 0x40)]);
    assert_eq!(machine.read8(ISR), 2);
    assert_eq!(machine.read8(ISR), 0, "reading clears");
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [1, VERSION_1 | 2, 0] {
        let machine = Machine::new();
        machine.accept_features(features);
        assert_eq!(machine.read8(0x14), 3, "{features:#x}");
    }
}

#[test]
fn features_stand_after_features_ok() {
    let machine = Machine::new();
    machine.accept_features(VERSION_1);
    machine.write(0x08, &0_u32.to_le_bytes());
    machine.write(0x0c, &1_u32.to_le_bytes());
    assert_eq!(machine.read32(0x0c), 0);
}

#[test]
fn driver_ok_without_features_ok_needs_reset() {
    let machine = Machine::new();
    machine.write(0x14, &[7]);
    assert_eq!(machine.read8(0x14), 0x47);
    assert_eq!(machine.active(), None);
    machine.write(0x14, &[0]);
    assert_eq!(machine.read8(0x14), 0);
    machine.start();
    assert_eq!(machine.read8(0x14), 0x0f);
}

#[test]
fn status_bits_are_not_taken_away() {
    let machine = Machine::new();
    machine.start();
    machine.write(0x14, &[0x0b]);
    assert_eq!(machine.read8(0x14), 0x0f);
    assert!(machine.active().is_some());
}

#[test]
fn queue_size_that_is_bad_is_not_accepted() {
    let machine = Machine::new();
    assert_eq!(machine.read16(0x18), 256);
    for size in [0_u16, 3, 512, 0xffff] {
        machine.write(0x18, &size.to_le_bytes());
        assert_eq!(machine.read16(0x18), 256, "{size}");
    }
    machine.write(0x18, &2_u16.to_le_bytes());
    assert_eq!(machine.read16(0x18), 2);
}

#[test]
fn queue_that_does_not_exist_has_size_zero() {
    let machine = Machine::new();
    machine.write(0x16, &2_u16.to_le_bytes());
    machine.write(0x18, &2_u16.to_le_bytes());
    machine.write(0x1c, &1_u16.to_le_bytes());
    machine.write(0x1a, &1_u16.to_le_bytes());
    assert_eq!(machine.read16(0x18), 0);
    assert_eq!(machine.read16(0x1c), 0);
    assert_eq!(machine.read16(0x1a), 0xffff);
}

#[test]
fn vector_that_does_not_exist_becomes_no_vector() {
    let machine = Machine::new();
    for at in [0x10, 0x1a] {
        machine.write(at, &2_u16.to_le_bytes());
        assert_eq!(machine.read16(at), 2);
        machine.write(at, &3_u16.to_le_bytes());
        assert_eq!(machine.read16(at), 0xffff);
    }
}

#[test]
fn rings_outside_ram_need_reset() {
    let machine = Machine::new();
    machine.accept_features(VERSION_1);
    for (at, address) in [(0x20, 1_u64 << 40), (0x28, 0x1000), (0x30, 0x2000)] {
        machine.write(at, &address.to_le_bytes());
    }
    machine.write(0x1c, &1_u16.to_le_bytes());
    machine.write(0x14, &[0x0f]);
    assert_eq!(machine.read8(0x14), 0x4f);
    assert_eq!(machine.active(), None);
}

#[test]
fn queue_that_is_enabled_does_not_change() {
    let machine = Machine::new();
    machine.start();
    machine.write(0x16, &0_u16.to_le_bytes());
    machine.write(0x20, &0_u64.to_le_bytes());
    machine.write(0x18, &2_u16.to_le_bytes());
    machine.write(0x1c, &0_u16.to_le_bytes());
    assert_eq!(machine.read32(0x20), 0x1_0000);
    assert_eq!(machine.read16(0x18), 128);
    assert_eq!(machine.read16(0x1c), 1);
}

#[test]
fn device_that_refuses_needs_reset_and_says_so() {
    let machine = Machine::new();
    machine.shared.refuse.store(true, Ordering::SeqCst);
    machine.start();
    assert_eq!(machine.read8(0x14), 0x4f);
    assert!(machine.transport.needs_reset());
    assert_eq!(machine.router.take_messages(), [(0xfee0_0000, 0x40)]);
    machine.shared.refuse.store(false, Ordering::SeqCst);
    machine.write(0x14, &[0]);
    machine.start();
    assert_eq!(machine.read8(0x14), 0x0f);
}

#[test]
fn broken_rings_need_reset_once() {
    let machine = Machine::new();
    machine.start();
    machine.interrupt().needs_reset();
    machine.interrupt().needs_reset();
    assert_eq!(machine.read8(0x14), 0x4f);
    assert_eq!(machine.read8(0x15), 1, "one configuration change");
    assert_eq!(machine.router.take_messages(), [(0xfee0_0000, 0x40)]);
}

#[test]
fn reset_by_status_stops_the_device_and_forgets_queues() {
    let machine = Machine::new();
    machine.start();
    machine.write(0x14, &[0]);
    assert_eq!(machine.active(), None);
    assert_eq!(machine.read8(0x14), 0);
    machine.write(0x16, &0_u16.to_le_bytes());
    assert_eq!(machine.read16(0x18), 256);
    assert_eq!(machine.read16(0x1c), 0);
    assert_eq!(machine.read16(0x1a), 0xffff);
    assert_eq!(machine.router.connected().len(), 3, "MSI-X stays");
}

#[test]
fn notification_that_reaches_us_kicks() {
    let machine = Machine::new();
    machine.start();
    let kicks = machine.shared.seen.lock().unwrap().kicks.clone();
    machine.write(NOTIFY + 4, &1_u16.to_le_bytes());
    machine.write(NOTIFY + 0xffc, &[1, 0, 0, 0]);
    assert!(kicks[0].read().is_err());
    assert_eq!(kicks[1].read().unwrap(), 1);
}

#[test]
fn ioeventfds_follow_the_bar() {
    let machine = Machine::new();
    let addresses = || -> Vec<u64> {
        let registered = machine.notifier.0.lock().unwrap();
        registered.keys().copied().collect()
    };
    assert_eq!(addresses(), [BASE + NOTIFY, BASE + NOTIFY + 4]);
    machine.config_write(0x20, 0xd000_0000);
    assert_eq!(addresses(), [0xd000_3000, 0xd000_3004]);
    assert!(!machine.bus.read(BASE, &mut [0; 4]));
    assert!(machine.bus.read(0xd000_0000, &mut [0; 4]));
    machine.config_write(0x04, 0);
    assert!(addresses().is_empty());
    assert!(!machine.bus.read(0xd000_0000, &mut [0; 4]));
    machine.config_write(0x20, 0xffff_ffff);
    machine.config_write(0x04, 2);
    assert!(addresses().is_empty(), "sizing maps nothing");
    machine.config_write(0x20, 0xe000_0000);
    assert_eq!(addresses(), [0xe000_3000, 0xe000_3004]);
    machine.transport.reset();
    assert_eq!(addresses(), [BASE + NOTIFY, BASE + NOTIFY + 4]);
    let (bus, notifier) = (machine.bus, machine.notifier);
    drop(machine.transport);
    assert!(notifier.0.lock().unwrap().is_empty());
    assert!(!bus.read(BASE, &mut [0; 4]));
}

#[test]
fn bar_whose_place_is_taken_is_mapped_once_it_is_free() {
    let machine = Machine::new();
    let other = Arc::new(Bar(Weak::new()));
    machine.bus.insert(0xd000_1000, 0x1000, other).unwrap();
    machine.config_write(0x20, 0xd000_0000);
    assert!(!machine.bus.read(0xd000_0000, &mut [0; 4]));
    machine.bus.remove(0xd000_1000);
    machine.config_write(0x04, 2);
    assert!(machine.bus.read(0xd000_0000, &mut [0; 4]));
}

#[test]
fn device_configuration_is_the_device_s() {
    let machine = Machine::new();
    assert_eq!(machine.read::<8>(DEVICE), *b"abcdefgh");
    machine.write(DEVICE + 2, b"xy");
    assert_eq!(machine.read::<4>(DEVICE + 1), *b"bxye");
    assert_eq!(machine.read::<4>(DEVICE + 6), *b"gh\0\0");
}

#[test]
fn window_in_configuration_space_reaches_the_bar() {
    let machine = Machine::new();
    let window = machine.capability(9, Some(5));
    machine.transport.config_write(window + 4, &[4]);
    machine.config_write(window + 8, DEVICE as u32);
    machine.config_write(window + 12, 4);
    assert_eq!(machine.config_read(window + 16).to_le_bytes(), *b"abcd");
    machine.config_write(window + 8, 0x14);
    machine.config_write(window + 12, 1);
    machine.config_write(window + 16, 1);
    assert_eq!(machine.read8(0x14), 1);
    for (bar, offset, len) in [(0, 0, 4), (4, 2, 4), (4, 0x8000, 4), (4, 0, 3), (4, 0, 0)] {
        machine.transport.config_write(window + 4, &[bar]);
        machine.config_write(window + 8, offset);
        machine.config_write(window + 12, len);
        machine.config_write(window + 16, 0x5555_5555);
        assert_eq!(machine.config_read(window + 16), 0x5555_5555);
    }
    assert_eq!(machine.read8(0x14), 1);
}

#[test]
fn pause_keeps_the_queues_and_resume_gives_them_back() {
    let machine = Machine::new();
    machine.start();
    machine.transport.pause();
    assert_eq!(machine.active(), None);
    machine.transport.pause();
    machine.transport.resume();
    assert_eq!(machine.active(), Some((VERSION_1 | EVENT_IDX, vec![0, 1])));
    for kick in &machine.shared.seen.lock().unwrap().kicks {
        assert_eq!(kick.read().unwrap(), 1, "resume kicks");
    }
    machine.transport.resume();
    assert_eq!(machine.shared.seen.lock().unwrap().activations, 2);
}

#[test]
fn reset_while_paused_leaves_nothing_to_resume() {
    let machine = Machine::new();
    machine.start();
    machine.transport.pause();
    machine.transport.reset();
    machine.transport.resume();
    assert_eq!(machine.active(), None);
    assert_eq!(machine.read8(0x14), 0);
    assert!(machine.router.connected().is_empty());
}

#[test]
fn save_while_the_device_runs_is_refused() {
    let machine = Machine::new();
    machine.start();
    assert!(matches!(
        machine.transport.save(),
        Err(StateError::Invalid { .. })
    ));
}

#[test]
fn save_restore_save_gives_the_same_and_the_device_goes_on() {
    let source = Machine::new();
    source.start();
    source.config_write(0x20, 0xd000_0000);
    source.bus.write(0xd000_0000 + DEVICE, b"ABCD");
    source
        .bus
        .write(0xd000_0000 + TABLE + 2 * 16 + 12, &[1, 0, 0, 0]);
    source.interrupt().signal_queue(1);
    source.interrupt().signal_config();
    assert_eq!(source.router.take_messages(), [(0xfee0_0000, 0x40)]);
    source.transport.pause();
    let saved = source.transport.save().unwrap();

    let target = Machine::new();
    target.transport.restore(&saved).unwrap();
    assert_eq!(target.transport.save().unwrap(), saved);
    assert_eq!(target.active(), None);
    target.transport.resume();
    assert_eq!(target.active(), Some((VERSION_1 | EVENT_IDX, vec![0, 1])));
    let mut pending = [0; 8];
    assert!(target.bus.read(0xd000_0000 + PENDING, &mut pending));
    assert_eq!(pending, [4, 0, 0, 0, 0, 0, 0, 0]);
    target.bus.write(0xd000_0000 + TABLE + 2 * 16 + 12, &[0; 4]);
    assert_eq!(target.router.take_messages(), [(0xfee0_0000, 0x42)]);
    target.transport.pause();
    let core = target.transport.lock_core();
    let core::Phase::Ready(queues) = &core.phase else {
        panic!("no queues");
    };
    assert_eq!(queues[0].1.next_avail(), 6, "positions go on");
    assert!(queues[0].1.event_idx_enabled());
}

#[test]
fn functions_that_have_swapped_places_are_restored() {
    let bus = Arc::<Bus>::default();
    let machine = Machine::with_bus(Arc::clone(&bus));
    machine.config_write(0x20, 0xd000_0000);
    let moved = machine.transport.save().unwrap();
    drop(machine);

    let target = Machine::with_bus(Arc::clone(&bus));
    target.config_write(0x20, 0xe000_0000);
    let other = Machine::with_bus(Arc::clone(&bus));
    other.config_write(0x20, 0xd000_0000);
    let home = target.transport.save().unwrap();
    target.transport.restore(&moved).unwrap();
    other.transport.restore(&home).unwrap();
    target.transport.resume();
    other.transport.resume();
    assert!(bus.read(0xd000_0000, &mut [0; 4]));
    assert!(bus.read(0xe000_0000, &mut [0; 4]));
}

/// What guests that were saved by this version hold. A difference here means that they cannot
/// move to the changed program: fields may come with a default, but registers that a running
/// guest has read must stay where they are.
#[test]
fn saved_state_is_what_version_1_wrote() {
    let golden = include_str!("golden/virtio-pci.v1.json");
    let golden: Vec<Section> = serde_json::from_str(golden).unwrap();
    let source = Machine::new();
    source.start();
    source.transport.pause();
    let saved = source.transport.save().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(saved, golden, "{text}");

    let target = Machine::new();
    target.transport.restore(&golden).unwrap();
    target.transport.resume();
    assert_eq!(target.active(), Some((VERSION_1 | EVENT_IDX, vec![0, 1])));
}

/// Changes one field of the transport's saved state.
fn change(sections: &[Section], path: &[&str], value: impl Into<ciborium::Value>) -> Vec<Section> {
    let mut sections = sections.to_vec();
    let mut place = &mut sections[0].body;
    for name in path {
        place = match place {
            ciborium::Value::Map(fields) => {
                let field = fields
                    .iter_mut()
                    .find(|(key, _)| key.as_text() == Some(name));
                &mut field.unwrap().1
            }
            ciborium::Value::Array(items) => &mut items[name.parse::<usize>().unwrap()],
            _ => panic!("{name}"),
        };
    }
    *place = value.into();
    sections
}

#[test]
fn hostile_state_is_refused() {
    let source = Machine::new();
    source.start();
    source.transport.pause();
    let saved = source.transport.save().unwrap();
    let target = Machine::new();
    let hostile = [
        change(&saved, &["queues", "0", "size"], 512),
        change(&saved, &["queues", "0", "size"], 0),
        change(&saved, &["queues", "1", "size"], 48),
        change(&saved, &["queues", "0", "descriptor_table"], u64::MAX),
        change(&saved, &["queues", "0", "used_ring"], 1_u64 << 40),
        change(&saved, &["queues"], ciborium::Value::Array(Vec::new())),
        change(&saved, &["driver_features"], VERSION_1 | 2),
        change(&saved, &["driver_features"], 0),
        change(&saved, &["status"], 0x0b),
        saved[..1].to_vec(),
        saved[1..].to_vec(),
    ];
    for (case, sections) in hostile.iter().enumerate() {
        assert!(target.transport.restore(sections).is_err(), "case {case}");
        target.transport.resume();
        assert_eq!(target.active(), None, "case {case}");
    }
    target.transport.restore(&saved).unwrap();
    target.transport.resume();
    assert!(target.active().is_some());
}

#[derive(Clone, Debug)]
enum Access {
    Config(u8, Vec<u8>, bool),
    Bar(u64, Vec<u8>, bool),
    Pause,
    Resume,
    Reset,
    SaveRestore,
}

/// Accesses that find their way to registers that matter more often than chance would.
fn access() -> impl Strategy<Value = Access> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..=1),
        prop::collection::vec(any::<u8>(), 2..=2),
        prop::collection::vec(any::<u8>(), 4..=4),
        prop::collection::vec(any::<u8>(), 8..=8),
        prop::collection::vec(any::<u8>(), 0..=16),
        Just(vec![1]),
        Just(vec![0x0b]),
        Just(vec![0x0f]),
        Just(vec![1, 0]),
        Just(vec![0, 0, 1, 0]),
        Just(vec![4, 0, 0, 0]),
    ];
    let config = (
        prop_oneof![any::<u8>(), 0x04..0x24_u8, 0x40..0xc0_u8],
        bytes.clone(),
    );
    let offset = prop_oneof![
        4 => 0..0x40_u64,
        1 => 0x1000..0x1004_u64,
        1 => 0x2000..0x2010_u64,
        1 => 0x3000..0x3010_u64,
        2 => 0x4000..0x4040_u64,
        1 => 0x5000..0x5010_u64,
        1 => 0..0x8000_u64,
        1 => any::<u64>(),
    ];
    prop_oneof![
        10 => (config, any::<bool>())
            .prop_map(|((offset, data), write)| Access::Config(offset, data, write)),
        20 => (offset, bytes, any::<bool>())
            .prop_map(|(offset, data, write)| Access::Bar(offset, data, write)),
        1 => Just(Access::Pause),
        2 => Just(Access::Resume),
        1 => Just(Access::Reset),
        1 => Just(Access::SaveRestore),
    ]
}

proptest! {
    #[test]
    fn random_accesses_never_panic_and_a_driver_still_works_after(
        started in any::<bool>(),
        accesses in prop::collection::vec(access(), 1..120),
    ) {
        let machine = Machine::new();
        if started {
            machine.start();
        }
        for access in accesses {
            match access {
                Access::Config(offset, data, true) => machine.transport.config_write(offset, &data),
                Access::Config(offset, mut data, false) => {
                    machine.transport.config_read(offset, &mut data);
                }
                Access::Bar(offset, data, true) => machine.transport.write(offset, &data),
                Access::Bar(offset, mut data, false) => machine.transport.read(offset, &mut data),
                Access::Pause => machine.transport.pause(),
                Access::Resume => machine.transport.resume(),
                Access::Reset => machine.transport.reset(),
                Access::SaveRestore => {
                    machine.transport.pause();
                    let saved = machine.transport.save().unwrap();
                    machine.transport.restore(&saved).unwrap();
                    prop_assert_eq!(machine.transport.save().unwrap(), saved);
                }
            }
        }
        machine.transport.pause();
        machine.transport.reset();
        machine.transport.resume();
        machine.start();
        prop_assert_eq!(machine.read8(0x14), 0x0f);
    }
}

/// The fields of saved state that a hostile peer would try.
const FIELDS: [&[&str]; 14] = [
    &["status"],
    &["isr"],
    &["config_vector"],
    &["queue_select"],
    &["driver_features"],
    &["running"],
    &["queues", "0", "size"],
    &["queues", "0", "enabled"],
    &["queues", "0", "vector"],
    &["queues", "1", "available_ring"],
    &["queues", "1", "next_avail"],
    &["queues", "1", "next_used"],
    &["msix", "entries", "1", "address"],
    &["msix", "entries", "1", "pending"],
];

proptest! {
    #[test]
    fn random_state_is_refused_or_restored_and_a_driver_still_works_after(
        changes in prop::collection::vec(
            (0..FIELDS.len(), prop_oneof![any::<u64>(), 0..=0xffff_u64, 0..2_u64]), 1..6),
        registers in prop::collection::vec(any::<u8>(), 0..300),
        with_registers in any::<bool>(),
    ) {
        let source = Machine::new();
        source.start();
        source.transport.pause();
        let mut sections = source.transport.save().unwrap();
        for (field, value) in changes {
            let is_flag = matches!(FIELDS[field].last(), Some(&("running" | "enabled" | "pending")));
            sections = if is_flag {
                change(&sections, FIELDS[field], value % 2 == 1)
            } else {
                change(&sections, FIELDS[field], value)
            };
        }
        if with_registers {
            let registers = registers.into_iter().map(ciborium::Value::from).collect();
            let registers = ciborium::Value::Array(registers);
            sections = change(&sections, &["config", "registers"], registers);
        }

        let target = Machine::new();
        if target.transport.restore(&sections).is_ok() {
            let saved = target.transport.save().unwrap();
            target.transport.restore(&saved).unwrap();
            prop_assert_eq!(target.transport.save().unwrap(), saved);
        }
        target.transport.resume();
        target.transport.pause();
        target.transport.reset();
        target.transport.resume();
        target.start();
        prop_assert_eq!(target.read8(0x14), 0x0f);
    }
}

/// Threads that do at once what vCPUs and the control thread do: nothing blocks for good.
#[test]
fn registers_and_lifecycle_at_once_do_not_deadlock() {
    let (memory, bus) = (memory(1), Arc::<Bus>::default());
    let router = Arc::new(FakeRouter::default());
    let transport = Transport::new(
        SLOT,
        Box::new(Rng::new("rng").unwrap()),
        Arc::clone(&memory),
        bus,
        24,
        router.clone(),
        Arc::new(FakeNotifier::default()),
    )
    .unwrap();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 64);
    for _ in 0..32 {
        driver.push(&[writable(0x8_0000, 4096)]);
    }
    let rounds = 0..300_u32;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in rounds.clone() {
                for (offset, data) in [
                    (0x14_u64, &[0][..]),
                    (0x08, &1_u32.to_le_bytes()),
                    (0x0c, &1_u32.to_le_bytes()),
                    (0x14, &[0x0b]),
                    (0x20, &driver.descriptor_table().to_le_bytes()),
                    (0x28, &driver.available_ring().to_le_bytes()),
                    (0x30, &driver.used_ring().to_le_bytes()),
                    (0x18, &64_u16.to_le_bytes()),
                    (0x1a, &1_u16.to_le_bytes()),
                    (0x1c, &1_u16.to_le_bytes()),
                    (0x14, &[0x0f]),
                    (NOTIFY, &[0, 0]),
                ] {
                    transport.write(offset, data);
                }
            }
        });
        scope.spawn(|| {
            for round in rounds.clone() {
                transport.config_write(0x20, &(0xd000_0000 + (round << 16)).to_le_bytes());
                transport.config_write(0x42, &[0, 0x80 | (round as u8 & 1) << 6]);
                transport.write(TABLE + 16 + 12, &[round as u8 & 1, 0, 0, 0]);
                transport.read(PENDING, &mut [0; 8]);
                transport.read(0x14, &mut [0]);
            }
        });
        scope.spawn(|| {
            for round in rounds.clone() {
                transport.pause();
                if round % 3 == 0 {
                    transport.reset();
                }
                transport.resume();
            }
        });
    });
    transport.pause();
    transport.save().unwrap();
}
