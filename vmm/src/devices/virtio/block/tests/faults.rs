//! Storage that fails.

use std::fs::OpenOptions;
use std::path::Path;

use pindah_vmm_api::{DiskCache, ErrorPolicy};

use super::raw::{image_options, resources};
use super::rig::*;
use crate::devices::virtio::block::{BlockOptions, open};
use crate::devices::virtio::testing::{readable, wait_until, writable};
use vm_memory::{Bytes, GuestAddress};

const SIZE: u64 = 32768 * 512;

fn set_len(directory: &tempfile::TempDir, len: u64) {
    let path = directory.path().join("image");
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

fn pausing() -> BlockOptions {
    BlockOptions {
        on_error: ErrorPolicy::Pause,
        ..options()
    }
}

#[test]
fn failed_request_is_reported_to_the_guest() {
    for cache in [DiskCache::Buffered, DiskCache::Direct] {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(resources(&directory, cache), &options());
        set_len(&directory, 8192);
        assert_eq!(rig.read_to(DATA, 0, 4096).0, OK);
        assert_eq!(rig.read_to(DATA, 8, 8192).0, IOERR);
        assert_eq!(rig.read_to(DATA, 1000, 4096).0, IOERR);
        assert_eq!(rig.read_to(DATA, 0, 4096).0, OK);
        let metrics = rig.handle.metrics().read;
        assert_eq!((metrics.count, metrics.errors), (2, 2));
        assert!(rig.machine.pauses.lock().unwrap().is_empty());
    }
}

/// Fails three requests in flight, and hands the rig back paused.
fn paused(directory: &tempfile::TempDir) -> (Rig, Vec<u64>) {
    let mut rig = Rig::new(resources(directory, DiskCache::Buffered), &pausing());
    let bytes = pattern(1, 3 * 512);
    assert_eq!(rig.write(16, &bytes), OK);
    set_len(directory, 8192);
    let mut statuses = Vec::new();
    for index in 0..3 {
        let buffer = writable(DATA + 0x1000 * index, 512);
        statuses.push(rig.push(0, IN, 16 + index, &[buffer]).1);
    }
    rig.queues[0].kick();
    let machine = rig.machine.clone();
    wait_until("the pause", || !machine.pauses.lock().unwrap().is_empty());
    rig.deactivate();
    assert!(rig.queues[0].pop_used().is_none());
    let pauses = machine.pauses.lock().unwrap().clone();
    assert_eq!(pauses.len(), 1, "{pauses:?}");
    assert!(
        pauses[0].starts_with("disk0: Read of 512 bytes at "),
        "{pauses:?}"
    );
    (rig, statuses)
}

fn mend(directory: &tempfile::TempDir) {
    set_len(directory, SIZE);
    let path = directory.path().join("image");
    let file = OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &pattern(1, 3 * 512), 8192).unwrap();
}

fn finish(mut rig: Rig, statuses: &[u64]) {
    for _ in statuses {
        assert_eq!(rig.queues[0].wait_used().1, 513);
    }
    assert!(statuses.iter().all(|&at| rig.status(at) == OK));
    for (index, expected) in (0..).zip(pattern(1, 3 * 512).chunks(512)) {
        let mut read = vec![0; 512];
        let at = GuestAddress(DATA + 0x1000 * index);
        rig.memory.read_slice(&mut read, at).unwrap();
        assert_eq!(read, expected);
    }
    assert_eq!(rig.read(0, 512), [0; 512]);
}

#[test]
fn failed_requests_are_kept_over_a_pause_and_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut rig, statuses) = paused(&directory);
    // Still broken: asks for a pause again.
    rig.machine.pauses.lock().unwrap().clear();
    rig.activate();
    let machine = rig.machine.clone();
    wait_until("the pause", || !machine.pauses.lock().unwrap().is_empty());
    rig.deactivate();
    mend(&directory);
    rig.activate();
    finish(rig, &statuses);
}

#[test]
fn kept_requests_move_with_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let (rig, statuses) = paused(&directory);
    mend(&directory);
    let path = directory.path().join("image");
    let resources = open(&image_options(&path, DiskCache::Buffered)).unwrap();
    let mut rig = rig.move_to(resources, &pausing());
    rig.activate();
    finish(rig, &statuses);
}

#[test]
fn kept_requests_are_forgotten_by_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let (mut rig, _) = paused(&directory);
    mend(&directory);
    rig.reset();
    rig.activate();
    assert_eq!(rig.read(16, 512), pattern(1, 3 * 512)[..512]);
    assert_eq!(rig.handle.metrics().read.count, 1);
}

/// Runs `test` with a tmpfs of 1 MiB, in a mount namespace of this thread alone.
fn on_a_small_tmpfs(test: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    // SAFETY: plain flags; only this thread's view of mounts is split off.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        eprintln!("skipped: no right to make a mount namespace");
        return;
    }
    let mount = |target: &Path, kind: &std::ffi::CStr, flags, data: &std::ffi::CStr| {
        let target = std::ffi::CString::new(target.to_str().unwrap()).unwrap();
        // SAFETY: all are C strings that live across the call.
        unsafe {
            libc::mount(
                c"none".as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                flags,
                data.as_ptr().cast(),
            )
        }
    };
    assert_eq!(
        mount(Path::new("/"), c"", libc::MS_REC | libc::MS_PRIVATE, c""),
        0
    );
    assert_eq!(mount(directory.path(), c"tmpfs", 0, c"size=1m"), 0);
    test(directory.path());
}

#[test]
fn full_host_disk_pauses_the_guest_and_loses_nothing() {
    std::thread::spawn(|| {
        on_a_small_tmpfs(|directory| {
            let path = directory.join("image");
            make_file(&path, 4 << 20);
            let filler = directory.join("filler");
            let image = image_options(&path, DiskCache::Buffered);
            let mut rig = Rig::new(open(&image).unwrap(), &pausing());
            std::fs::write(&filler, vec![1; 900 << 10]).unwrap();
            let bytes = pattern(9, 512 << 10);
            rig.memory.write_slice(&bytes, GuestAddress(DATA)).unwrap();
            let buffer = readable(DATA, bytes.len() as u32);
            let (_, status) = rig.push(0, OUT, 0, &[buffer]);
            rig.queues[0].kick();
            let machine = rig.machine.clone();
            wait_until("the pause", || !machine.pauses.lock().unwrap().is_empty());
            let reason = machine.pauses.lock().unwrap()[0].clone();
            assert!(reason.contains("No space left"), "{reason}");
            rig.deactivate();
            assert!(rig.queues[0].pop_used().is_none());
            std::fs::remove_file(filler).unwrap();
            rig.activate();
            rig.queues[0].wait_used();
            assert_eq!(rig.status(status), OK);
            assert!(rig.read(0, bytes.len()) == bytes);
        });
    })
    .join()
    .unwrap();
}

#[test]
fn full_host_disk_is_reported_by_policy() {
    std::thread::spawn(|| {
        on_a_small_tmpfs(|directory| {
            let path = directory.join("image");
            make_file(&path, 4 << 20);
            let image = image_options(&path, DiskCache::Buffered);
            let mut rig = Rig::new(open(&image).unwrap(), &options());
            assert_eq!(rig.write(0, &pattern(1, 2 << 20)), IOERR);
            // tmpfs has no FALLOC_FL_ZERO_RANGE: zeroes are written, and do not fit either.
            assert_eq!(rig.zero(WRITE_ZEROES, 0, 8192, 0), IOERR);
            assert_eq!(rig.zero(WRITE_ZEROES, 0, 8192, 1), OK);
            assert_eq!(rig.write(0, &pattern(1, 4096)), OK);
            assert_eq!(rig.zero(WRITE_ZEROES, 1, 2, 0), OK);
            assert_eq!(rig.read(1, 1024), [0; 1024]);
            assert_eq!(rig.read(3, 512), pattern(1, 4096)[1536..2048]);
        });
    })
    .join()
    .unwrap();
}
