//! Requests on raw images.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pindah_vmm_api::{DiskCache, DiskFormat};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::rig::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{BlockOptions, DiskResources, ImageOptions, open};
use crate::devices::virtio::testing::{readable, wait_until, writable};

const SECTORS: u64 = 32768;

pub fn image_options(path: &Path, cache: DiskCache) -> ImageOptions {
    ImageOptions {
        path: path.to_owned(),
        format: DiskFormat::Raw,
        read_only: false,
        cache,
    }
}

pub fn resources(directory: &tempfile::TempDir, cache: DiskCache) -> DiskResources {
    let path = directory.path().join("image");
    make_file(&path, SECTORS * 512);
    open(&image_options(&path, cache)).unwrap()
}

/// One rig for each way to reach a raw image.
pub fn each(mut test: impl FnMut(Rig, &Path)) {
    for cache in [DiskCache::Buffered, DiskCache::Direct] {
        for ring in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let resources = resources(&directory, cache);
            let rig = if ring {
                Rig::new(resources, &options())
            } else {
                Rig::blocking(resources, &options())
            };
            test(rig, &directory.path().join("image"));
        }
    }
}

#[test]
fn written_data_is_read_back_and_is_in_the_file() {
    each(|mut rig, path| {
        let bytes = pattern(1, 256 * 1024);
        assert_eq!(rig.write(8, &bytes), OK);
        assert_eq!(rig.read(8, bytes.len()), bytes);
        assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
        let file = std::fs::read(path).unwrap();
        assert_eq!(file[4096..4096 + bytes.len()], bytes);
        assert!(file[..4096].iter().all(|&byte| byte == 0));
        assert_eq!(file.len() as u64, SECTORS * 512);
    });
}

#[test]
fn buffers_at_odd_addresses_and_lengths_are_served() {
    each(|mut rig, _| {
        let bytes = pattern(2, 700 * 1024);
        assert_eq!(rig.write_from(DATA + 1, 3, &bytes), OK);
        let (status, read) = rig.read_to(DATA + 7, 3, bytes.len());
        assert_eq!((status, read == bytes), (OK, true));
        // One sector in four buffers, out of order in RAM.
        let parts = [
            (DATA + 901, 1),
            (DATA + 3, 300),
            (DATA + 500, 210),
            (DATA + 800, 1),
        ];
        let buffers: Vec<_> = parts.iter().map(|&(at, len)| writable(at, len)).collect();
        assert_eq!(rig.request(IN, 3, &buffers), (OK, 513));
        let mut sector = Vec::new();
        for (at, len) in parts {
            let mut part = vec![0; len as usize];
            rig.memory.read_slice(&mut part, GuestAddress(at)).unwrap();
            sector.extend(part);
        }
        assert_eq!(sector, bytes[..512]);
    });
}

#[test]
fn header_in_pieces_and_status_behind_data_are_understood() {
    each(|mut rig, _| {
        let bytes = pattern(3, 512);
        assert_eq!(rig.write(9, &bytes), OK);
        let header = [u64::from(IN), 9];
        rig.memory.write_obj(header, GuestAddress(DATA)).unwrap();
        // 3 + 13 bytes of header; data and status in one buffer.
        rig.queues[0].push(&[
            readable(DATA, 3),
            readable(DATA + 3, 13),
            writable(DATA + 4096, 513),
        ]);
        rig.queues[0].kick();
        assert_eq!(rig.queues[0].wait_used().1, 513);
        let mut read = vec![0xff; 513];
        rig.memory
            .read_slice(&mut read, GuestAddress(DATA + 4096))
            .unwrap();
        assert_eq!((&read[..512], read[512]), (&bytes[..], OK));
    });
}

#[test]
fn full_queue_of_1024_is_served() {
    for cache in [DiskCache::Buffered, DiskCache::Direct] {
        let directory = tempfile::tempdir().unwrap();
        let options = BlockOptions {
            queue_size: 1024,
            ..options()
        };
        let mut rig = Rig::new(resources(&directory, cache), &options);
        let bytes = pattern(4, 341 * 4096);
        assert_eq!(rig.write(0, &bytes), OK);
        // Each takes three descriptors.
        let mut statuses = Vec::new();
        for index in 0..341 {
            let buffer = writable(DATA + index * 4096, 4096);
            statuses.push(rig.push(0, IN, (340 - index) * 8, &[buffer]).1);
        }
        rig.queues[0].kick();
        for _ in 0..341 {
            assert_eq!(rig.queues[0].wait_used().1, 4097);
        }
        assert!(statuses.into_iter().all(|at| rig.status(at) == OK));
        for index in 0..341 {
            let mut block = vec![0; 4096];
            let at = GuestAddress(DATA + index * 4096);
            rig.memory.read_slice(&mut block, at).unwrap();
            let from = (340 - index as usize) * 4096;
            assert_eq!(block, bytes[from..from + 4096]);
        }
    }
}

#[test]
fn requests_on_all_queues_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let options = BlockOptions {
        queues: 4,
        queue_size: 16,
        ..options()
    };
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &options);
    for queue in 0..4 {
        let bytes = pattern(queue as u64, 4096);
        let at = DATA + queue as u64 * 4096;
        rig.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        let (_, status) = rig.push(queue, OUT, queue as u64 * 8, &[readable(at, 4096)]);
        rig.queues[queue].kick();
        rig.queues[queue].wait_used();
        assert_eq!(rig.status(status), OK);
        rig.interrupt.wait(|signalled| signalled.queues[queue] == 1);
    }
    let read = rig.read(0, 4 * 4096);
    for queue in 0..4 {
        assert_eq!(read[queue * 4096..][..4096], pattern(queue as u64, 4096));
    }
    let mut queues = [0; 2];
    rig.block.read_config(34, &mut queues);
    assert_eq!(u16::from_le_bytes(queues), 4);
}

#[test]
fn requests_beyond_the_disk_or_of_odd_size_fail() {
    each(|mut rig, _| {
        let sector = |count: u64| SECTORS - count;
        assert_eq!(rig.read_to(DATA, sector(1), 512).0, OK);
        for (at, len) in [
            (sector(1), 1024),
            (sector(0), 512),
            (u64::MAX, 512),
            (1 << 55, 512),
            (0, 511),
            (0, 1),
        ] {
            assert_eq!(rig.read_to(DATA, at, len).0, IOERR, "{len} at {at}");
            assert_eq!(rig.write(at, &vec![1; len]), IOERR, "{len} at {at}");
        }
        let count = SECTORS as u32;
        assert_eq!(rig.zero(DISCARD, 1, count, 0), IOERR);
        assert_eq!(rig.zero(WRITE_ZEROES, u64::MAX, 1, 0), IOERR);
        assert_eq!(rig.zero(WRITE_ZEROES, 0, u32::MAX, 0), IOERR);
        let short = readable(DATA, 15);
        assert_eq!(rig.request(DISCARD, 0, &[short]), (IOERR, 1));
        assert_eq!(rig.request(IN, SECTORS, &[]), (OK, 1));
        assert_eq!(rig.handle.metrics().other, 16);
    });
}

#[test]
fn unknown_requests_and_flags_are_unsupported() {
    each(|mut rig, _| {
        for kind in [2, 3, 5, 7, 14, 15, 0x8000_0000, u32::MAX] {
            assert_eq!(rig.request(kind, 0, &[]), (UNSUPP, 1), "type {kind}");
        }
        assert_eq!(rig.zero(WRITE_ZEROES, 0, 8, 2), UNSUPP);
        assert_eq!(rig.zero(DISCARD, 0, 8, 1), UNSUPP);
    });
}

#[test]
fn serial_number_is_20_bytes_or_what_fits() {
    each(|mut rig, _| {
        rig.memory
            .write_slice(&[0xff; 32], GuestAddress(DATA))
            .unwrap();
        assert_eq!(rig.request(GET_ID, 0, &[writable(DATA, 20)]), (OK, 21));
        let mut id = [0; 21];
        rig.memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
        assert_eq!(&id, b"serial number 1\0\0\0\0\0\xff");
        assert_eq!(rig.request(GET_ID, 0, &[writable(DATA + 64, 4)]), (OK, 5));
        assert_eq!(rig.request(GET_ID, 0, &[]), (OK, 1));
    });
}

#[test]
fn discarded_range_is_freed_and_zeroed_range_reads_as_zeroes() {
    each(|mut rig, path| {
        let bytes = pattern(5, 1 << 20);
        assert_eq!(rig.write(0, &bytes), OK);
        assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
        let before = std::fs::metadata(path).unwrap().blocks();
        assert_eq!(rig.zero(DISCARD, 1024, 1024, 0), OK);
        let after = std::fs::metadata(path).unwrap().blocks();
        assert!(after < before, "{after} of {before} blocks");
        assert_eq!(rig.zero(WRITE_ZEROES, 3, 100, 0), OK);
        assert_eq!(rig.zero(WRITE_ZEROES, 512, 8, 1), OK);
        assert_eq!(rig.zero(WRITE_ZEROES, 600, 0, 1), OK);
        let mut expected = bytes;
        expected[512 << 10..].fill(0);
        expected[3 * 512..103 * 512].fill(0);
        expected[512 * 512..520 * 512].fill(0);
        assert_eq!(rig.read(0, expected.len()), expected);
        let metrics = rig.handle.metrics();
        assert_eq!((metrics.discard.count, metrics.write_zeroes.count), (1, 3));
        assert_eq!(metrics.write_zeroes.bytes, 108 * 512);
    });
}

#[test]
fn read_only_disk_takes_no_writes() {
    let directory = tempfile::tempdir().unwrap();
    drop(resources(&directory, DiskCache::Direct));
    let path = directory.path().join("image");
    let image = ImageOptions {
        read_only: true,
        ..image_options(&path, DiskCache::Direct)
    };
    let mut rig = Rig::new(open(&image).unwrap(), &options());
    assert_ne!(rig.block.features() & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    assert_eq!(rig.write(0, &[1; 512]), IOERR);
    assert_eq!(rig.zero(DISCARD, 0, 8, 0), IOERR);
    assert_eq!(rig.zero(WRITE_ZEROES, 0, 8, 0), IOERR);
    assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(rig.read(0, 512), [0; 512]);
    assert!(rig.handle.resize(SECTORS * 1024).is_err());
}

#[test]
fn pages_that_are_read_into_are_dirty() {
    each(|mut rig, _| {
        for address in [DATA + 4096, DATA + 5] {
            (**rig.memory.iter().next().unwrap()).bitmap().reset();
            assert_eq!(rig.read_untouched(address, 8192), OK);
            let region = rig.memory.iter().next().unwrap();
            let dirty = |at: u64| region.bitmap().dirty_at(at as usize);
            assert!(dirty(address) && dirty(address + 8191));
            assert!(!dirty(address - 4096) && !dirty(address + 8192 + 4096));
        }
    });
}

#[test]
fn driver_that_polls_is_not_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let resources = resources(&directory, DiskCache::Buffered);
    let no_event_idx = !(1 << 29);
    let mut rig = Rig::with_features(resources, &options(), no_event_idx);
    let flags = GuestAddress(rig.queues[0].available_ring());
    rig.memory.write_obj(1_u16, flags).unwrap();
    rig.read(0, 512);
    rig.memory.write_obj(0_u16, flags).unwrap();
    rig.read(0, 512);
    rig.interrupt.wait(|signalled| signalled.queues[0] > 0);
    assert_eq!(rig.interrupt.signalled().queues[0], 1);
}

#[test]
fn driver_that_never_kicks_twice_is_served_while_the_device_looks() {
    // With event indices a driver kicks only where the device asks for it.
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &options());
    for turn in 0..2000_u64 {
        let used = rig.queues[0].used_ring();
        let event = GuestAddress(used + 4 + 8 * 256);
        let (_, status) = rig.push(0, IN, turn % 64, &[writable(DATA, 512)]);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let asked: u16 = rig.memory.read_obj(event).unwrap();
        if asked == turn as u16 {
            rig.queues[0].kick();
        }
        let mut used = None;
        wait_until("an answer without a kick too many", || {
            used = rig.queues[0].pop_used();
            used.is_some()
        });
        assert_eq!(rig.status(status), OK);
    }
}

#[test]
fn config_space_describes_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(resources(&directory, DiskCache::Buffered), &options());
    let mut space = [0xff_u8; 80];
    rig.block.read_config(0, &mut space);
    let u32_at = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(space[..8], SECTORS.to_le_bytes());
    assert_eq!((u32_at(12), u32_at(20)), (254, 512));
    assert_eq!((space[24], space[32], space[56]), (3, 1, 1));
    assert_eq!((u32_at(40), u32_at(52)), (1, 1));
    assert!(space[60..].iter().all(|&byte| byte == 0));
    let mut far = [0xff; 8];
    rig.block.read_config(u64::MAX - 3, &mut far[..4]);
    assert_eq!(far[..4], [0; 4]);
    rig.block.write_config(0, &[0xff; 40]);
    rig.block.write_config(32, &[0]);
    rig.block.write_config(u64::MAX, &[1; 8]);
    rig.block.read_config(30, &mut far[..4]);
    assert_eq!(far[..4], [0; 4]);
    assert_eq!(rig.handle.size(), SECTORS * 512);
    assert_eq!(rig.write(0, &[7; 512]), OK);
}
