//! A disk at its limits.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use pindah_vmm_api::{DiskCache, DiskLimits};

use super::queue::{Bench, FLUSH_FEATURE, KICK, TIMER, bench};
use super::raw::{image_options, resources};
use super::rig::*;
use crate::devices::virtio::block::request::{Kind, Operation};
use crate::devices::virtio::block::{BlockOptions, open};
use crate::devices::virtio::testing::{DEADLINE, writable};
use crate::devices::virtio::worker::Handler;

const KIB: u64 = 1 << 10;
const MIB: usize = 1 << 20;
/// The lowest bandwidth that there is.
const SLOW: DiskLimits = DiskLimits {
    bandwidth_bytes_per_s: Some(64 * KIB),
    iops: None,
};
const NONE: DiskLimits = DiskLimits {
    bandwidth_bytes_per_s: None,
    iops: None,
};

fn slow() -> BlockOptions {
    BlockOptions {
        limits: SLOW,
        ..options()
    }
}

/// Limits the bench's disk, which has just written `len` bytes.
fn limit_after(bench: &Bench, len: u64) -> Instant {
    let now = Instant::now();
    bench.shared.throttle.set(SLOW, now);
    let (kind, offset) = (Kind::Write, 0);
    let operation = Operation { kind, offset, len };
    bench.shared.throttle.charge(operation, now);
    now
}

fn becomes_readable(fd: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives across the call.
    unsafe { libc::poll(&raw mut poll, 1, timeout.as_millis() as i32) == 1 }
}

/// Lets the queue do what it left itself to do, until it sleeps.
fn settle(bench: &mut Bench) {
    for _ in 0..100 {
        if bench.driver.kick.read().is_err() {
            return;
        }
        bench.handler.event(KICK);
    }
    panic!("the queue does not sleep");
}

#[test]
fn queue_at_its_limits_sleeps_until_the_timer() {
    let mut bench = bench(FLUSH_FEATURE, 8);
    let start = limit_after(&bench, 128 * KIB);
    bench.push(IN, 0x10_0000);
    bench.handler.event(KICK);
    settle(&mut bench);
    while bench.store.kinds().is_empty() {
        assert!(becomes_readable(bench.timer, DEADLINE));
        bench.handler.event(TIMER);
        settle(&mut bench);
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(!becomes_readable(bench.timer, Duration::ZERO));
    bench.end(Ok(()));
    assert!(bench.driver.pop_used().is_some());
}

#[test]
fn limits_that_are_lifted_let_all_requests_go() {
    let mut bench = bench(FLUSH_FEATURE, 8);
    limit_after(&bench, 1 << 40);
    for index in 0..5 {
        bench.push(IN, 0x10_0000 + index * 0x2000);
        bench.handler.event(KICK);
    }
    settle(&mut bench);
    assert!(bench.store.kinds().is_empty());
    bench.shared.throttle.set(NONE, Instant::now());
    bench.handler.turn();
    assert_eq!(bench.store.kinds(), [Kind::Read; 5]);
    for _ in 0..5 {
        bench.end(Ok(()));
        assert!(bench.driver.pop_used().is_some());
    }
}

#[test]
fn pause_waits_for_what_is_in_flight_and_for_no_tokens() {
    let mut bench = bench(FLUSH_FEATURE, 8);
    bench.push(IN, 0x10_0000);
    bench.handler.event(KICK);
    limit_after(&bench, 1 << 40);
    bench.push(IN, 0x10_2000);
    bench.handler.event(KICK);
    assert_eq!(bench.store.kinds(), [Kind::Read]);
    assert_eq!(bench.handler.quiesce(Instant::now()), 1);
    bench.end(Ok(()));
    assert_eq!(bench.handler.quiesce(Instant::now() + DEADLINE), 0);
    bench.handler.unquiesce();
    assert!(bench.store.kinds().is_empty());
    let queues = bench.handler.deactivate();
    let state = queues[0].1.state();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert!(!becomes_readable(bench.timer, Duration::ZERO));
}

#[test]
fn request_of_any_size_passes_and_those_of_all_queues_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let two = BlockOptions {
        queues: 2,
        ..slow()
    };
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &two);
    // 255 seconds of debt: no deadline of a test's is as long.
    assert_eq!(rig.write(0, &pattern(1, 16 * MIB)), OK);
    let (_, status) = rig.push(1, IN, 0, &[writable(DATA, 512)]);
    rig.queues[1].kick();
    rig.block.workers[1].call(|_| ());
    rig.deactivate();
    assert_eq!(rig.positions(), [(1, 1), (0, 0)]);
    rig.activate();
    rig.block.workers[1].call(|_| ());
    assert!(rig.queues[1].pop_used().is_none());

    rig.handle.set_limits(NONE);
    assert_eq!(rig.handle.limits(), NONE);
    assert_eq!(rig.queues[1].wait_used().1, 513);
    assert_eq!(rig.status(status), OK);
}

#[test]
fn limits_at_a_destination_are_its_own_and_nothing_is_taken_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &slow());
    assert_eq!(rig.write(0, &pattern(1, 16 * MIB)), OK);
    let (_, status) = rig.push(0, IN, 0, &[writable(DATA, 512)]);
    rig.queues[0].kick();
    rig.deactivate();
    let image = image_options(&directory.path().join("image"), DiskCache::Buffered);
    let mut rig = rig.move_to(open(&image).unwrap(), &slow());
    assert_eq!(rig.handle.limits(), SLOW);
    rig.activate();
    assert_eq!(rig.queues[0].wait_used().1, 513);
    assert_eq!(rig.status(status), OK);
}
