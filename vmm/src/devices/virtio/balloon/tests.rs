//! The balloon as its driver and its handle see it.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{
    Buffer, DriverQueue, FakeInterrupt, activation, memory, readable, wait_until, writable,
};

const PAGE: u64 = 4096;
/// Where chains' content is put.
const CONTENT: u64 = 0x8_0000;
/// Pages that the driver gives back.
const PAGES: u64 = 0x10_0000;

struct Rig {
    memory: Arc<GuestMemory>,
    balloon: Balloon,
    queues: Vec<DriverQueue>,
}

impl Rig {
    fn new(config: &BalloonConfig) -> Self {
        let memory = memory(4);
        for page in (PAGES..4 << 20).step_by(PAGE as usize) {
            memory.write_obj(page, GuestAddress(page)).unwrap();
        }
        let balloon = Balloon::new("balloon", config, &memory, 3).unwrap();
        let mut queues: Vec<DriverQueue> = Vec::new();
        for _ in 0..balloon.queues {
            let base = queues.last().map_or(0, DriverQueue::end);
            queues.push(DriverQueue::new(&memory, base, 128));
        }
        Self {
            memory,
            balloon,
            queues,
        }
    }

    fn activate(&mut self, features: u64) -> Arc<FakeInterrupt> {
        let queues: Vec<_> = (0..).zip(&self.queues).collect();
        let (activation, interrupt) = activation(&self.memory, features, &queues);
        self.balloon.activate(activation).unwrap();
        interrupt
    }

    /// Whether the pages at these addresses still hold their address.
    fn held(&self, pages: &[u64]) -> Vec<bool> {
        let content = pages.iter().map(|page| {
            let content: u64 = self.memory.read_obj(GuestAddress(*page)).unwrap();
            assert!(content == *page || content == 0);
            content == *page
        });
        content.collect()
    }

    fn request(&mut self, queue: usize, buffers: &[Buffer]) {
        let head = self.queues[queue].push(buffers);
        self.queues[queue].kick();
        assert_eq!(self.queues[queue].wait_used(), (head, 0));
    }

    fn write_pages(&self, pages: &[u64]) -> Buffer {
        for (page, at) in pages.iter().zip((CONTENT..).step_by(4)) {
            let number = (page / PAGE) as u32;
            self.memory.write_obj(number, GuestAddress(at)).unwrap();
        }
        readable(CONTENT, 4 * pages.len() as u32)
    }

    fn write_stats(&self, at: u64, free: u64) -> Buffer {
        self.memory.write_obj(4_u16, GuestAddress(at)).unwrap();
        self.memory.write_obj(free, GuestAddress(at + 2)).unwrap();
        readable(at, 10)
    }
}

fn plain() -> BalloonConfig {
    BalloonConfig {
        stats_interval_s: 0,
        free_page_reporting: false,
        ..BalloonConfig::default()
    }
}

fn free_bytes(handle: &BalloonHandle) -> Option<u64> {
    handle.stats()?.free_bytes
}

#[test]
fn features_and_queues_follow_the_configuration() {
    let rig = Rig::new(&plain());
    assert_eq!(rig.balloon.queue_sizes().len(), 2);
    assert_eq!(rig.balloon.features() & 0x3f, 1 << 2);
    let rig = Rig::new(&BalloonConfig::default());
    assert_eq!(rig.balloon.queue_sizes().len(), 4);
    assert_eq!(rig.balloon.features() & 0x3f, 0b11_0110);
}

#[test]
fn inflated_pages_go_and_come_back_as_zero() {
    let mut rig = Rig::new(&plain());
    rig.activate(rig.balloon.features());
    let pages = [PAGES + 2 * PAGE, PAGES, PAGES + PAGE, PAGES + 5 * PAGE];
    let buffer = rig.write_pages(&pages);
    rig.request(0, &[buffer]);
    assert_eq!(rig.held(&pages), [false; 4]);
    assert_eq!(rig.held(&[PAGES + 3 * PAGE, PAGES + 4 * PAGE]), [true; 2]);
    rig.request(1, &[buffer]);
    rig.memory.write_obj(PAGES, GuestAddress(PAGES)).unwrap();
    assert_eq!(rig.held(&[PAGES]), [true]);
}

#[test]
fn page_numbers_outside_ram_are_passed_over() {
    let mut rig = Rig::new(&plain());
    let interrupt = rig.activate(rig.balloon.features());
    let buffer = rig.write_pages(&[u64::from(u32::MAX) * PAGE, 4 << 20, PAGES]);
    rig.request(0, &[buffer]);
    assert_eq!(rig.held(&[PAGES]), [false]);
    assert!(!interrupt.signalled().needs_reset);
}

#[test]
fn buffer_outside_ram_needs_reset() {
    let mut rig = Rig::new(&plain());
    let interrupt = rig.activate(rig.balloon.features());
    rig.queues[0].push(&[readable(4 << 20, 4)]);
    rig.queues[0].kick();
    interrupt.wait(|signalled| signalled.needs_reset);
    assert_eq!(rig.balloon.deactivate().len(), 2);
}

#[test]
fn target_reaches_the_driver_and_actual_the_handle() {
    let mut rig = Rig::new(&plain());
    let handle = rig.balloon.handle();
    handle.set_target_mib(1).unwrap();
    let interrupt = rig.activate(rig.balloon.features());
    let before = interrupt.signalled().config;
    handle.set_target_mib(2).unwrap();
    interrupt.wait(|signalled| signalled.config == before + 1);
    let mut register = [0; 4];
    rig.balloon.read_config(0, &mut register);
    assert_eq!(u32::from_le_bytes(register), 512);
    rig.balloon.write_config(4, &512_u32.to_le_bytes());
    assert_eq!((handle.target_mib(), handle.actual_mib()), (2, 2));
    let refused = TargetError {
        target_mib: 4,
        most_mib: 3,
    };
    assert_eq!(handle.set_target_mib(4), Err(refused));
    assert!(handle.set_target_mib(u64::MAX).is_err());
    assert_eq!(handle.target_mib(), 2);
}

#[test]
fn target_set_while_parked_is_announced_on_activation() {
    let mut rig = Rig::new(&plain());
    rig.activate(rig.balloon.features());
    rig.balloon.deactivate();
    rig.balloon.handle().set_target_mib(3).unwrap();
    let interrupt = rig.activate(rig.balloon.features());
    interrupt.wait(|signalled| signalled.config == 1);
}

#[test]
fn driver_that_starts_anew_holds_nothing() {
    let mut rig = Rig::new(&plain());
    rig.activate(rig.balloon.features());
    rig.balloon.write_config(4, &256_u32.to_le_bytes());
    assert_eq!(rig.balloon.handle().actual_mib(), 1);
    rig.balloon.deactivate();
    rig.activate(rig.balloon.features());
    assert_eq!(rig.balloon.handle().actual_mib(), 0);
}

#[test]
fn registers_that_are_read_only_stay() {
    let mut rig = Rig::new(&plain());
    rig.balloon.write_config(0, &[0xff; 12]);
    let mut image = [0xaa; 20];
    rig.balloon.read_config(0, &mut image);
    assert_eq!(image[..4], [0; 4]);
    assert_eq!(image[4..8], [0xff; 4]);
    assert_eq!(image[8..], [0; 12]);
    rig.balloon.read_config(u64::MAX, &mut image);
    assert_eq!(image, [0; 20]);
    rig.balloon.write_config(u64::MAX, &[0xff; 4]);
}

#[test]
fn reported_pages_go_and_are_counted() {
    let mut rig = Rig::new(&BalloonConfig::default());
    rig.activate(rig.balloon.features());
    let buffers = [
        writable(PAGES, 0x8000),
        writable(PAGES + 0x1_0000, 0x8000),
        writable(8 << 20, 0x1000),
    ];
    rig.request(3, &buffers);
    assert_eq!(
        rig.held(&[PAGES, PAGES + 0x7000, PAGES + 0x8000, PAGES + 0x1_0000]),
        [false, false, true, false]
    );
    assert_eq!(rig.balloon.handle().metrics().reported_free_bytes, 0x1_0000);
}

#[test]
fn reported_pages_with_poison_keep_it() {
    let mut rig = Rig::new(&BalloonConfig::default());
    rig.balloon.write_config(12, &0xaa_u32.to_le_bytes());
    rig.activate(rig.balloon.features());
    rig.request(3, &[writable(PAGES, 0x8000)]);
    assert_eq!(rig.held(&[PAGES]), [true]);
}

#[test]
fn reporting_without_statistics_is_the_third_queue() {
    let mut rig = Rig::new(&BalloonConfig::default());
    rig.activate(rig.balloon.features() & !features::STATS_VQ);
    rig.request(2, &[writable(PAGES, 0x8000)]);
    assert_eq!(rig.held(&[PAGES]), [false]);
}

#[test]
fn statistics_are_asked_for_again_and_again() {
    let config = BalloonConfig {
        stats_interval_s: 1,
        ..BalloonConfig::default()
    };
    let mut rig = Rig::new(&config);
    let handle = rig.balloon.handle();
    assert_eq!(handle.stats(), None);
    let buffer = rig.write_stats(CONTENT, 100);
    let head = rig.queues[2].push(&[buffer]);
    rig.activate(rig.balloon.features());
    assert_eq!(free_bytes(&handle), Some(100));
    for free in [200, 300] {
        assert_eq!(
            rig.queues[2].wait_used(),
            (head + (free / 100) as u16 - 2, 0)
        );
        let buffer = rig.write_stats(CONTENT, free);
        rig.queues[2].push(&[buffer]);
        rig.queues[2].kick();
        wait_until("statistics", || free_bytes(&handle) == Some(free));
    }
}

#[test]
fn statistics_buffer_survives_pause_and_resume() {
    let mut rig = Rig::new(&BalloonConfig::default());
    let buffer = rig.write_stats(CONTENT, 100);
    rig.queues[2].push(&[buffer]);
    rig.activate(rig.balloon.features());
    assert_eq!(free_bytes(&rig.balloon.handle()), Some(100));
    let queues = rig.balloon.deactivate();
    assert_eq!(queues[2].1.next_avail(), 0, "it was never taken");
    assert_eq!(rig.queues[2].pop_used(), None);
}

#[test]
fn save_restore_save_gives_the_same() {
    let mut rig = Rig::new(&BalloonConfig::default());
    let buffer = rig.write_stats(CONTENT, 100);
    rig.queues[2].push(&[buffer]);
    rig.activate(rig.balloon.features());
    rig.balloon.handle().set_target_mib(2).unwrap();
    rig.balloon.write_config(4, &300_u32.to_le_bytes());
    rig.balloon.write_config(12, &0x55_u32.to_le_bytes());
    rig.request(3, &[writable(PAGES, 0x1000)]);
    rig.balloon.deactivate();
    let saved = rig.balloon.save().unwrap();

    let mut other = Rig::new(&BalloonConfig::default());
    other.balloon.restore(&saved).unwrap();
    assert_eq!(other.balloon.save().unwrap(), saved);
    let (metrics, before) = (
        other.balloon.handle().metrics(),
        rig.balloon.handle().metrics(),
    );
    assert_eq!(metrics, before);
    assert_eq!((metrics.target_mib, metrics.actual_mib), (2, 1));
}

#[test]
fn state_of_version_1_is_restored() {
    let golden = r#"{"kind": "virtio-balloon", "id": "balloon", "version": 1, "body":
        {"num_pages": 512, "actual": 256, "poison": 0, "reported_bytes": 4096,
         "guest": {"time_unix_ms": 1, "free_bytes": 100}}}"#;
    let golden: Section = serde_json::from_str(golden).unwrap();
    let mut rig = Rig::new(&BalloonConfig::default());
    rig.balloon.restore(&golden).unwrap();
    assert_eq!(rig.balloon.save().unwrap(), golden);
}

#[test]
fn state_with_a_target_beyond_ram_is_refused() {
    let mut rig = Rig::new(&BalloonConfig::default());
    let state = BalloonState {
        num_pages: 3 * 256 + 1,
        actual: 0,
        poison: 0,
        reported_bytes: 0,
        guest: None,
    };
    let section = Section::new(KIND, "balloon", VERSION, &state).unwrap();
    assert!(rig.balloon.restore(&section).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A driver that puts anything on any queue, in rings that hold anything.
    #[test]
    fn random_rings_never_panic(
        noise in prop::collection::vec(any::<u16>(), 64..512),
        heads in prop::collection::vec((0..4_usize, 0..140_u16), 1..20),
    ) {
        let mut rig = Rig::new(&BalloonConfig::default());
        for queue in 0..4 {
            for (index, words) in noise.chunks_exact(4).enumerate().take(128) {
                let buffer = Buffer {
                    address: u64::from(words[0]) << (words[1] % 16),
                    len: u32::from(words[1]),
                    writable: false,
                };
                rig.queues[queue].write_descriptor(index as u16, buffer, words[2] % 8, words[3] % 130);
            }
        }
        rig.activate(rig.balloon.features());
        for (queue, head) in heads {
            rig.queues[queue].publish(head);
            rig.queues[queue].kick();
        }
        prop_assert_eq!(rig.balloon.deactivate().len(), 4);
    }
}
