//! qcow2 images that QEMU made, and QEMU on images that we wrote.

use std::path::{Path, PathBuf};

use pindah_vmm_api::{DiskCache, DiskFormat};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::model::converted;
use super::raw::image_options;
use super::rig::*;
use super::tools::{has, qemu_img};
use crate::devices::virtio::block::{BlockOptions, DiskResources, ImageOptions, open};
use crate::devices::virtio::testing::readable;

fn resources(path: &Path, cache: DiskCache) -> DiskResources {
    let options = ImageOptions {
        format: DiskFormat::Qcow2,
        ..image_options(path, cache)
    };
    open(&options).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image over another over a raw one, each with some data; and the disk's bytes.
fn chain(directory: &Path) -> (PathBuf, Vec<u8>) {
    let raw = directory.join("base.raw");
    let mut bytes = pattern(1, 3 << 20);
    std::fs::write(&raw, &bytes).unwrap();
    bytes.resize(4 << 20, 0);
    let middle = directory.join("middle.qcow2");
    let top = directory.join("top.qcow2");
    for (image, below, format) in [
        (&middle, "base.raw", "raw"),
        (&top, "middle.qcow2", "qcow2"),
    ] {
        let arguments = ["create", "-q", "-f", "qcow2", "-b", below, "-F", format];
        assert!(qemu_img(&[&arguments[..], &[text(image), "4M"]].concat()));
    }
    let mut rig = Rig::new(resources(&middle, DiskCache::Direct), &options());
    let change = pattern(2, 200 << 10);
    assert_eq!(rig.write(1001, &change), OK);
    bytes[1001 * 512..][..change.len()].copy_from_slice(&change);
    rig.deactivate();
    (top, bytes)
}

#[test]
fn backing_chain_is_read_through_and_only_the_top_is_written() {
    if !has("qemu-img") {
        return;
    }
    for cache in [DiskCache::Buffered, DiskCache::Direct] {
        let directory = tempfile::tempdir().unwrap();
        let (top, mut model) = chain(directory.path());
        let below = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
        let before = (below("base.raw"), below("middle.qcow2"));
        let mut rig = Rig::new(resources(&top, cache), &options());
        assert!(rig.read(0, model.len()) == model);
        let change = pattern(3, 100 << 10);
        for sector in [1100, 6100, 7990] {
            assert_eq!(rig.write(sector, &change), OK);
            model[sector as usize * 512..][..change.len()].copy_from_slice(&change);
        }
        assert_eq!(rig.zero(WRITE_ZEROES, 5, 600, 1), OK);
        model[5 * 512..605 * 512].fill(0);
        assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
        assert!(rig.read(0, model.len()) == model);
        rig.deactivate();
        assert!(converted(directory.path(), &top) == model);
        assert!(before == (below("base.raw"), below("middle.qcow2")));
    }
}

#[test]
fn compressed_image_is_read_and_written_over() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("raw");
    let image = directory.path().join("image");
    let mut model: Vec<u8> = (0..1 << 20).map(|at| (at / 700) as u8).collect();
    std::fs::write(&raw, &model).unwrap();
    let arguments = [
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&image),
    ];
    assert!(qemu_img(&arguments));
    let mut rig = Rig::new(resources(&image, DiskCache::Direct), &options());
    assert!(rig.read(0, model.len()) == model);
    assert_eq!(rig.write(130, &pattern(5, 70000 / 512 * 512)), OK);
    model[130 * 512..][..70000 / 512 * 512].copy_from_slice(&pattern(5, 70000 / 512 * 512));
    rig.deactivate();
    assert!(converted(directory.path(), &image) == model);
}

#[test]
fn many_requests_at_a_time_on_several_queues_agree_with_qemu() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    assert!(qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&image),
        "16M"
    ]));
    let many = BlockOptions {
        queues: 2,
        ..options()
    };
    let mut rig = Rig::new(resources(&image, DiskCache::Direct), &many);
    let model = pattern(7, 4 << 20);
    rig.memory.write_slice(&model, GuestAddress(DATA)).unwrap();
    for round in 0..16 {
        let mut statuses = Vec::new();
        for index in 0..64 {
            let at = (index * 16 + round) * 4096;
            let queue = (index % 2) as usize;
            let buffer = readable(DATA + at, 4096);
            statuses.push(rig.push(queue, OUT, at / 512, &[buffer]).1);
        }
        for queue in &rig.queues {
            queue.kick();
        }
        for queue in &mut rig.queues {
            (0..32).for_each(|_| assert_eq!(queue.wait_used().1, 1));
        }
        assert!(statuses.iter().all(|&at| rig.status(at) == OK));
    }
    assert!(rig.read(0, model.len()) == model);
    rig.deactivate();
    let bytes = converted(directory.path(), &image);
    assert!(bytes[..model.len()] == model);
    assert!(bytes[model.len()..].iter().all(|&byte| byte == 0));
}

#[test]
fn paused_image_is_whole_and_what_another_wrote_is_seen_after_reload() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    assert!(qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&image),
        "4M"
    ]));
    // The destination opens while the source still writes.
    let mut there = Rig::parked(resources(&image, DiskCache::Direct), &options(), u64::MAX);
    let mut here = Rig::new(resources(&image, DiskCache::Direct), &options());
    let first = pattern(1, 300 << 10);
    assert_eq!(here.write(77, &first), OK);
    here.deactivate();
    assert!(converted(directory.path(), &image)[77 * 512..][..first.len()] == first);
    there.handle.reload().unwrap();
    there.activate();
    assert!(there.read(77, first.len()) == first);
    let second = pattern(2, 200 << 10);
    assert_eq!(there.write(3000, &second), OK);
    there.deactivate();
    // And back.
    here.handle.reload().unwrap();
    here.activate();
    assert!(here.read(3000, second.len()) == second);
    assert_eq!(here.write(3000, &first), OK);
    here.deactivate();
    assert!(converted(directory.path(), &image)[3000 * 512..][..first.len()] == first);
}

#[test]
fn qcow2_disk_grows_while_it_runs() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    assert!(qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&image),
        "4M"
    ]));
    let mut rig = Rig::new(resources(&image, DiskCache::Direct), &options());
    assert_eq!(rig.write(0, &pattern(1, 512)), OK);
    // Past what one L2 table describes.
    rig.handle.resize(3 << 30).unwrap();
    rig.interrupt.wait(|signalled| signalled.config == 1);
    let last = (3 << 30) / 512 - 1;
    assert_eq!(rig.write(last, &pattern(2, 512)), OK);
    assert_eq!(rig.read(last, 512), pattern(2, 512));
    assert!(rig.handle.resize(1 << 20).is_err());
    rig.deactivate();
    assert!(qemu_img(&["check", "-q", text(&image)]));
    assert_eq!(resources(&image, DiskCache::Buffered).size(), 3 << 30);
}

#[test]
fn image_with_a_snapshot_keeps_it() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    assert!(qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&image),
        "1M"
    ]));
    let mut rig = Rig::new(resources(&image, DiskCache::Direct), &options());
    let old = pattern(1, 1 << 20);
    assert_eq!(rig.write(0, &old), OK);
    rig.deactivate();
    drop(rig);
    assert!(qemu_img(&["snapshot", "-c", "one", text(&image)]));
    let mut rig = Rig::new(resources(&image, DiskCache::Direct), &options());
    assert_eq!(rig.write(100, &pattern(2, 300 << 10)), OK);
    rig.deactivate();
    drop(rig);
    assert!(qemu_img(&["check", "-q", text(&image)]));
    assert!(qemu_img(&["snapshot", "-a", "one", text(&image)]));
    assert!(converted(directory.path(), &image) == old);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_give_errors_and_never_panic(
        changes in proptest::collection::vec((0_usize..6, 0_usize..600, any::<u8>()), 1..6),
    ) {
        if !has("qemu-img") {
            return Ok(());
        }
        // In memory where that is to be had: each case waits for flushes.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let image = directory.path().join("image");
        std::fs::write(&image, damaged(&changes)).unwrap();
        let options_ = ImageOptions {
            format: DiskFormat::Qcow2,
            ..image_options(&image, DiskCache::Buffered)
        };
        let Ok(resources) = open(&options_) else { return Ok(()) };
        // Such an image may fail at any time, but only by an error.
        let sectors = resources.size() / 512;
        let Some(mut rig) = Rig::try_new(resources, &options()) else { return Ok(()) };
        for sector in [0, 130, 2000] {
            if sector + 8 <= sectors {
                rig.read_to(DATA, sector, 4096);
                rig.write(sector, &[1; 4096]);
                rig.read_untouched(DATA, 512);
            }
        }
        rig.zero(DISCARD, 0, 128, 0);
        rig.zero(WRITE_ZEROES, 0, 100, 1);
        rig.request(FLUSH, 0, &[]);
        rig.deactivate();
    }
}

/// A small image with bytes changed in its first clusters: header, refcounts, L1, L2, data.
fn damaged(changes: &[(usize, usize, u8)]) -> Vec<u8> {
    static IMAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let raw = directory.path().join("raw");
        std::fs::write(&raw, pattern(1, 1 << 20)).unwrap();
        let create = [
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            text(&raw),
            text(&path),
        ];
        assert!(qemu_img(&create));
        std::fs::read(path).unwrap()
    });
    let mut bytes = image.clone();
    for &(cluster, at, value) in changes {
        let offset = cluster * 65536 + at;
        bytes[offset] = value;
    }
    bytes
}
