//! Pause, save, restore, quiesce, resize.

use std::time::{Duration, Instant};

use pindah_vmm_api::DiskCache;
use vm_memory::{Bytes, GuestAddress};

use super::raw::{image_options, resources};
use super::rig::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::open;
use crate::devices::virtio::block::state::{BlockState, KeptRequests};
use crate::devices::virtio::testing::{DEADLINE, readable, writable};
use crate::state::Section;

#[test]
fn what_comes_while_quiesced_waits_in_the_ring() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Direct), &options());
    assert_eq!(rig.write(0, &pattern(1, 4096)), OK);
    rig.handle.quiesce(Instant::now() + DEADLINE).unwrap();
    let (_, status) = rig.push(0, IN, 0, &[writable(DATA, 512)]);
    rig.queues[0].kick();
    // A second call goes through the worker, after it has seen the kick or not.
    rig.handle.quiesce(Instant::now() + DEADLINE).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(rig.queues[0].pop_used().is_none());
    rig.handle.unquiesce();
    assert_eq!(rig.queues[0].wait_used().1, 513);
    assert_eq!(rig.status(status), OK);

    // And the other end: the next activation takes it.
    rig.handle.quiesce(Instant::now() + DEADLINE).unwrap();
    rig.push(0, IN, 1, &[writable(DATA, 512)]);
    rig.queues[0].kick();
    rig.deactivate();
    assert!(rig.queues[0].pop_used().is_none());
    let (avail, used) = rig.positions()[0];
    assert_eq!(avail, used);
    let path = directory.path().join("image");
    let there = open(&image_options(&path, DiskCache::Direct)).unwrap();
    let mut rig = rig.move_to(there, &options());
    rig.activate();
    assert_eq!(rig.queues[0].wait_used().1, 513);
    let mut read = vec![0; 512];
    rig.memory
        .read_slice(&mut read, GuestAddress(DATA))
        .unwrap();
    assert_eq!(read, pattern(1, 4096)[512..1024]);
}

#[test]
fn quiesce_of_a_device_that_is_not_active_is_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let resources = resources(&directory, DiskCache::Direct);
    let rig = Rig::parked(resources, &options(), u64::MAX);
    rig.handle.quiesce(Instant::now()).unwrap();
    rig.handle.unquiesce();
}

#[test]
fn deactivate_waits_for_all_that_was_taken() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(resources(&directory, DiskCache::Direct), &options());
        let mut statuses = Vec::new();
        for index in 0..64 {
            let buffer = readable(DATA + index * 4096, 4096);
            statuses.push(rig.push(0, OUT, index * 8, &[buffer]).1);
        }
        rig.queues[0].kick();
        rig.deactivate();
        let (avail, used) = rig.positions()[0];
        assert_eq!(avail, used);
        let answered = statuses.iter().filter(|&&at| rig.status(at) == OK).count();
        assert_eq!(answered, usize::from(used));
        rig.activate();
        for _ in 0..64 {
            rig.queues[0].wait_used();
        }
        assert!(statuses.iter().all(|&at| rig.status(at) == OK));
    }
}

#[test]
fn state_is_the_same_after_a_restore() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Direct), &options());
    assert_eq!(rig.write(3, &pattern(1, 512)), OK);
    rig.block.write_config(32, &[0]);
    rig.deactivate();
    let path = directory.path().join("image");
    let there = open(&image_options(&path, DiskCache::Buffered)).unwrap();
    // Compares what both save.
    let mut rig = rig.move_to(there, &options());
    let mut writeback = [0xff];
    rig.block.read_config(32, &mut writeback);
    assert_eq!(writeback, [0]);
    rig.activate();
    assert_eq!(rig.read(3, 512), pattern(1, 512));
    assert_eq!(rig.write(4, &pattern(2, 512)), OK);
}

#[test]
fn state_that_cannot_be_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let resources = resources(&directory, DiskCache::Direct);
    let mut rig = Rig::parked(resources, &options(), u64::MAX);
    let good = BlockState {
        capacity_sectors: 32768,
        writeback: true,
        kept: Vec::new(),
    };
    let kept = |queue, heads: &[u16]| KeptRequests {
        queue,
        heads: heads.to_vec(),
    };
    let mut refuses = |state: &BlockState| {
        let section = Section::new("virtio-blk", "disk0", 1, state).unwrap();
        rig.block.restore(&section).is_err()
    };
    assert!(!refuses(&good));
    for bad in [
        vec![kept(1, &[0])],
        vec![kept(0, &[256])],
        vec![kept(0, &[1, 1])],
        vec![kept(0, &[1]), kept(0, &[2])],
        vec![kept(0, &(0..=256).collect::<Vec<_>>())],
    ] {
        let state = BlockState {
            kept: bad,
            ..good.clone()
        };
        assert!(refuses(&state), "{state:?}");
    }
    assert!(refuses(&BlockState {
        capacity_sectors: 1,
        ..good.clone()
    }));
    let newer = Section::new("virtio-blk", "disk0", 2, &good).unwrap();
    assert!(rig.block.restore(&newer).is_err());
}

#[test]
fn saved_state_keeps_its_format() {
    let state = BlockState {
        capacity_sectors: 4096,
        writeback: true,
        kept: vec![KeptRequests {
            queue: 1,
            heads: vec![7, 300],
        }],
    };
    let section = Section::new("virtio-blk", "disk0", 1, &state).unwrap();
    let text = format!("{:?}", section.body);
    let golden = r#"Map([(Text("capacity_sectors"), Integer(Integer(4096))), (Text("writeback"), Bool(true)), (Text("kept"), Array([Map([(Text("queue"), Integer(Integer(1))), (Text("heads"), Array([Integer(Integer(7)), Integer(Integer(300))]))])]))])"#;
    assert_eq!(text, golden);
    assert_eq!(section.parse::<BlockState>(1).unwrap(), state);
}

#[test]
fn disk_grows_while_it_runs_and_never_shrinks() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Direct), &options());
    assert_eq!(rig.read_to(DATA, 32768, 512).0, IOERR);
    rig.handle.resize(32 << 20).unwrap();
    rig.interrupt.wait(|signalled| signalled.config == 1);
    let mut capacity = [0; 8];
    rig.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 65536);
    assert_eq!(rig.write(65535, &pattern(1, 512)), OK);
    let length = std::fs::metadata(directory.path().join("image"))
        .unwrap()
        .len();
    assert_eq!(length, 32 << 20);
    for bad in [1 << 20, (32 << 20) + 511, u64::MAX, u64::MAX - 511] {
        let refused = rig.handle.resize(bad).unwrap_err();
        assert!(refused.to_string().contains("disk disk0"), "{refused}");
    }
    assert_eq!(rig.handle.size(), 32 << 20);
    // While the driver is away it is told when it is back.
    rig.deactivate();
    rig.handle.resize(33 << 20).unwrap();
    rig.activate();
    rig.interrupt.wait(|signalled| signalled.config == 2);
}
