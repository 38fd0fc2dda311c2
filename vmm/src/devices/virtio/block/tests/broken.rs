//! Drivers that break the rules.

use std::sync::Arc;

use pindah_vmm_api::DiskCache;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::raw::resources;
use super::rig::*;
use crate::devices::virtio::block::chain::{Chain, MAX_DESCRIPTORS, total};
use crate::devices::virtio::block::request::{Action, Limits, parse};
use crate::devices::virtio::testing::{Buffer, DriverQueue, memory, readable, writable};
use crate::memory::GuestMemory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Makes one chain available that `build` writes from descriptor 0 on, and sees the device fail
/// and come back after a reset.
fn breaks(name: &str, build: impl Fn(&DriverQueue)) {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &options());
    rig.memory
        .write_obj([0_u64; 2], GuestAddress(DATA))
        .unwrap();
    build(&rig.queues[0]);
    rig.queues[0].publish(0);
    rig.queues[0].kick();
    let signalled = rig.interrupt.wait(|signalled| signalled.needs_reset);
    assert_eq!(signalled.queues, [0], "{name}");
    // What comes then stays where it is.
    rig.push(0, IN, 0, &[writable(DATA, 512)]);
    rig.queues[0].kick();
    rig.reset();
    rig.activate();
    assert_eq!(rig.read(0, 512), [0; 512], "{name}");
}

#[test]
fn broken_chains_need_a_reset_and_work_after_it() {
    let header = readable(DATA, 16);
    let status = writable(DATA + 64, 1);
    breaks("loop", |queue| {
        queue.write_descriptor(0, header, NEXT, 1);
        queue.write_descriptor(1, header, NEXT, 0);
    });
    breaks("next beyond the table", |queue| {
        queue.write_descriptor(0, header, NEXT, 256);
    });
    breaks("no status", |queue| queue.write_descriptor(0, header, 0, 0));
    breaks("short header", |queue| {
        queue.write_descriptor(0, readable(DATA, 15), NEXT, 1);
        queue.write_descriptor(1, status, WRITE, 0);
    });
    breaks("readable after writable", |queue| {
        queue.write_descriptor(0, header, NEXT, 1);
        queue.write_descriptor(1, status, NEXT | WRITE, 2);
        queue.write_descriptor(2, header, 0, 0);
    });
    for (address, len) in [
        (u64::MAX - 7, 16),
        (1 << 40, 16),
        (DATA, 0),
        (0x1ff_fff8, 16),
    ] {
        let bad = Buffer {
            address,
            len,
            writable: false,
        };
        breaks("buffer outside RAM or empty", |queue| {
            queue.write_descriptor(0, header, NEXT, 1);
            queue.write_descriptor(1, bad, NEXT, 2);
            queue.write_descriptor(2, status, WRITE, 0);
        });
    }
    for (address, len) in [
        (DATA, 8),
        (DATA, 0),
        (DATA, 17),
        (DATA, 0x10_0000),
        (u64::MAX, 16),
    ] {
        breaks("indirect table", |queue| {
            queue.write_descriptor(0, readable(address, len), INDIRECT, 0);
        });
    }
    breaks("indirect with next", |queue| {
        queue.write_descriptor(0, readable(DATA, 32), INDIRECT | NEXT, 1);
        queue.write_descriptor(1, status, WRITE, 0);
    });
}

#[test]
fn indirect_tables_are_served_and_do_not_nest() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &options());
    let table = DATA + 0x1000;
    let put = |rig: &Rig, index: u64, buffer: Buffer, flags: u16, next: u16| {
        let words = [
            buffer.address,
            u64::from(buffer.len) | u64::from(flags) << 32 | u64::from(next) << 48,
        ];
        rig.memory
            .write_obj(words, GuestAddress(table + 16 * index))
            .unwrap();
    };
    rig.memory
        .write_obj([u64::from(IN), 0], GuestAddress(DATA))
        .unwrap();
    put(&rig, 0, readable(DATA, 16), NEXT, 2);
    put(&rig, 2, writable(DATA + 0x2000, 512), NEXT | WRITE, 1);
    put(&rig, 1, writable(DATA + 0x3000, 1), WRITE, 0);
    rig.queues[0].write_descriptor(5, readable(table, 48), INDIRECT, 0);
    rig.queues[0].publish(5);
    rig.queues[0].kick();
    assert_eq!(rig.queues[0].wait_used(), (5, 513));
    put(&rig, 0, readable(table, 48), INDIRECT, 0);
    rig.queues[0].publish(5);
    rig.queues[0].kick();
    rig.interrupt.wait(|signalled| signalled.needs_reset);
}

#[test]
fn ring_with_more_chains_than_it_holds_needs_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &options());
    let index = GuestAddress(rig.queues[0].available_ring() + 2);
    rig.memory.write_obj(257_u16, index).unwrap();
    rig.queues[0].kick();
    rig.interrupt.wait(|signalled| signalled.needs_reset);
    rig.reset();
    rig.activate();
    assert_eq!(rig.read(0, 512), [0; 512]);
}

fn descriptor() -> impl Strategy<Value = (Buffer, u16, u16)> {
    let address = prop_oneof![8 => 0_u64..0x20_0000, 1 => any::<u64>()];
    let len = prop_oneof![6 => 1_u32..5000, 2 => 0_u32..32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0_u16..4, 1 => 0_u16..8];
    (address, len, flags, 0_u16..18).prop_map(|(address, len, flags, next)| {
        let buffer = Buffer {
            address,
            len,
            writable: flags & WRITE != 0,
        };
        (buffer, flags, next)
    })
}

/// A chain as a driver would write it, in the first descriptors.
fn sound(memory: &GuestMemory, queue: &DriverQueue, kind: u32, sector: u64, parts: &[u32]) {
    memory
        .write_obj([u64::from(kind), sector], GuestAddress(0x10_0000))
        .unwrap();
    queue.write_descriptor(0, readable(0x10_0000, 16), NEXT, 1);
    let flags = if kind == IN { WRITE | NEXT } else { NEXT };
    for (index, &len) in (1..).zip(parts) {
        let at = 0x11_0000 + u64::from(index) * 0x2000;
        queue.write_descriptor(index, readable(at, len), flags, index + 1);
    }
    let last = parts.len() as u16 + 1;
    queue.write_descriptor(last, writable(0x10_0100, 1), WRITE, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chains_of_any_shape_never_panic_and_stay_within_the_disk(
        kind in prop_oneof![Just(IN), Just(OUT), Just(DISCARD), Just(WRITE_ZEROES), any::<u32>()],
        sector in prop_oneof![0_u64..2000, any::<u64>()],
        parts in proptest::collection::vec(1_u32..4096, 0..8),
        changes in proptest::collection::vec((0_u16..16, descriptor()), 0..3),
        head in 0_u16..18,
        content in any::<[u64; 4]>(),
    ) {
        let memory = memory(2);
        let driver = DriverQueue::new(&memory, 0x1000, 16);
        memory.write_obj(content, GuestAddress(0x11_2000)).unwrap();
        sound(&memory, &driver, kind, sector, &parts);
        for &(index, (buffer, flags, next)) in &changes {
            driver.write_descriptor(index, buffer, flags, next);
        }
        let head = if changes.is_empty() { 0 } else { head };
        let limits = Limits { capacity_sectors: 1000, read_only: false };
        let mut chain = Chain::default();
        let request = chain
            .walk(&memory, &driver.queue(), head)
            .and_then(|()| parse(&memory, &mut chain, limits));
        prop_assert!(chain.readable.len() + chain.writable.len() <= MAX_DESCRIPTORS);
        if changes.is_empty() {
            prop_assert!(request.is_ok());
        }
        if let Ok(request) = request {
            prop_assert!(memory.read_obj::<u8>(request.status).is_ok());
            if let Action::Submit(operation) = request.action {
                prop_assert!(operation.offset + operation.len <= 1000 * 512);
                if kind == IN && head == 0 && changes.is_empty() {
                    prop_assert_eq!(total(&chain.writable), operation.len);
                }
            }
        }
    }
}

#[test]
fn sound_chain_of_the_longest_kind_is_walked_and_one_longer_is_not() {
    let memory: Arc<GuestMemory> = memory(2);
    let driver = DriverQueue::new(&memory, 0x1000, 16);
    for (entries, fits) in [(MAX_DESCRIPTORS, true), (MAX_DESCRIPTORS + 1, false)] {
        for index in 0..entries {
            let last = index + 1 == entries;
            let flags = if last { 0 } else { NEXT };
            let next = if last { 0 } else { index as u64 + 1 };
            let words = [0x10_0000, 1 | u64::from(flags) << 32 | next << 48];
            let at = GuestAddress(0x8_0000 + 16 * index as u64);
            memory.write_obj(words, at).unwrap();
        }
        let table = readable(0x8_0000, 16 * entries as u32);
        driver.write_descriptor(0, table, INDIRECT, 0);
        let walked = Chain::default().walk(&memory, &driver.queue(), 0);
        assert_eq!(walked.is_ok(), fits, "{walked:?}");
    }
}
