//! Rings full of nonsense. The tap is a datagram socket, which behaves like one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::super::counters::Counters;
use super::super::ring::{self, BrokenRing};
use super::super::rx::RxQueue;
use super::super::tap::Tap;
use super::super::tx::TxQueue;
use super::driver::{Driver, RAM_BYTES, SIZE, WRITE};
use super::{LARGE, MERGEABLE, PLAIN};

#[derive(Clone, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        4 => 0x10_0000_u64..0x20_0000,
        1 => RAM_BYTES as u64 - 64..RAM_BYTES as u64 + 64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 0_u32..4096, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0_u16..4, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..SIZE, 1 => any::<u16>()];
    (address, length, flags, next).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

fn pair() -> (Tap, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Tap::unchecked(File::from(OwnedFd::from(ours))), theirs)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_rings_leave_device_and_neighbours_whole(
        table in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        heads in proptest::collection::vec(prop_oneof![8 => 0..SIZE, 1 => any::<u16>()], 0..40),
        runaway in prop_oneof![8 => Just(None), 1 => any::<u16>().prop_map(Some)],
        packets in proptest::collection::vec(12_usize..9000, 0..12),
        features in prop_oneof![Just(PLAIN), Just(MERGEABLE), Just(MERGEABLE | LARGE)],
    ) {
        let mut driver = Driver::new(features, 2);
        for ring in &mut driver.rings {
            for (slot, entry) in (0..).zip(&table) {
                let Descriptor { address, length, flags, next } = *entry;
                ring.descriptor(slot, address, length, flags, next);
            }
            for &head in &heads {
                ring.publish(head);
            }
            if let Some(index) = runaway {
                ring.set_avail(index);
            }
        }
        let (tap, wire) = pair();
        for &length in &packets {
            wire.send(&vec![length as u8; length]).unwrap();
        }
        let mut queues = driver.activation(driver.queues()).queues;
        let (transmit, receive) = (queues.pop().unwrap(), queues.pop().unwrap());
        let counters = Counters::default();
        let mut rx = RxQueue::new(receive, features);
        let mut broken = Vec::new();
        for _ in 0..3 {
            broken.extend(rx.process(&tap, &driver.memory, &*driver.signals, &counters.rx).err());
        }
        let spoilt = broken.len() as u16;
        let mut tx = TxQueue::new(transmit);
        for _ in 0..3 {
            let result = tx.process(Some(&tap), &driver.memory, &*driver.signals, &counters.tx);
            broken.extend(result.err());
            while wire.recv(&mut [0; 16]).is_ok() {}
        }
        for error in broken {
            let known = [BrokenRing::Ring, BrokenRing::Address, BrokenRing::Length];
            prop_assert!(known.contains(&error));
        }
        let metrics = counters.read("net0");
        prop_assert!(metrics.rx_packets + metrics.rx_dropped <= packets.len() as u64);
        let (_, queue) = rx.into_queue(&counters.rx);
        let state = queue.state();
        // Every chain was either used or is available again, but for those that broke the ring.
        prop_assert!(state.next_avail.wrapping_sub(state.next_used) <= spoilt);
    }
}

#[test]
fn loop_of_descriptors_ends_with_the_table() {
    let mut driver = Driver::new(PLAIN, 2);
    for ring in &mut driver.rings {
        ring.descriptor(0, 0x10_0000, 100, 1, 1);
        ring.descriptor(1, 0x10_0000, 100, 1, 0);
        ring.publish(0);
    }
    let (tap, _wire) = pair();
    let mut queues = driver.activation(driver.queues()).queues;
    let counters = Counters::default();
    let mut tx = TxQueue::new(queues.pop().unwrap());
    let result = tx.process(Some(&tap), &driver.memory, &*driver.signals, &counters.tx);
    assert!(result.is_ok());
    assert_eq!(driver.rings[1].used().len(), 1);
}

#[test]
fn receive_chain_outside_ram_or_too_short_breaks_the_ring() {
    for (address, length, reason) in [
        (RAM_BYTES as u64 - 10, 2048, BrokenRing::Address),
        (u64::MAX - 10, 2048, BrokenRing::Address),
        (0x10_0000, 11, BrokenRing::Length),
        (0x10_0000, 0, BrokenRing::Length),
    ] {
        let mut driver = Driver::new(PLAIN, 1);
        driver.rings[0].add(&[(address, length, WRITE)]);
        let (tap, wire) = pair();
        wire.send(&[1; 100]).unwrap();
        let mut queues = driver.activation(driver.queues()).queues;
        let counters = Counters::default();
        let mut rx = RxQueue::new(queues.pop().unwrap(), PLAIN);
        let result = rx.process(&tap, &driver.memory, &*driver.signals, &counters.rx);
        assert_eq!(result.err(), Some(reason));
    }
}

proptest! {
    #[test]
    fn notification_by_event_index_matches_its_definition(
        old in any::<u16>(),
        added in 0_u16..SIZE,
        event in any::<u16>(),
    ) {
        let driver = Driver::new(1 << 29 | 1 << 32, 1);
        driver.write(0x1_4004 + 2 * u64::from(SIZE), &event.to_le_bytes());
        let mut queue = driver.rings[0].queue(true);
        virtio_queue::QueueT::set_next_used(&mut queue, old.wrapping_add(added));
        let wants = ring::wants_notification(&queue, &driver.memory, old).unwrap();
        // The driver wants to know when the entry with index `event` is published (2.7.10).
        let published = (0..added).any(|at| old.wrapping_add(at) == event);
        prop_assert_eq!(wants, published);
    }
}
