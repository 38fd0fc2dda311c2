//! Beside the tools that people use on images: QEMU's, and loop devices.

use std::process::{Command, Stdio};

use pindah_vmm_api::{DiskCache, DiskFormat};

use super::raw::{image_options, resources};
use super::rig::*;
use crate::devices::virtio::block::{DiskResources, ImageOptions, LockError, open};

/// Whether this host has the tool; says so if not.
pub fn has(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

/// Runs `qemu-img`; whether it was content.
pub fn qemu_img(arguments: &[&str]) -> bool {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    output.status.success()
}

fn qemu_io(arguments: &[&str]) -> bool {
    let output = Command::new("qemu-io").args(arguments).output().unwrap();
    output.status.success()
}

fn handle(resources: DiskResources) -> Rig {
    Rig::parked(resources, &options(), u64::MAX)
}

#[test]
fn locked_image_is_refused_by_qemu_and_free_after_unlock() {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let rig = handle(resources(&directory, DiskCache::Direct));
    let path = directory.path().join("image");
    let image = path.to_str().unwrap();
    let copy = directory.path().join("copy");
    // As beside a QEMU that runs: `info` and a reader that shares everything are let in.
    let attempts = || {
        [
            qemu_img(&[
                "convert",
                "-f",
                "raw",
                "-O",
                "raw",
                image,
                copy.to_str().unwrap(),
            ]),
            qemu_img(&["resize", "-f", "raw", image, "+1M"]),
            qemu_io(&["-f", "raw", "-c", "write 0 512", image]),
        ]
    };
    rig.handle.lock().unwrap();
    assert_eq!(attempts(), [false; 3]);
    assert!(qemu_img(&["info", "-f", "raw", image]));
    rig.handle.unlock();
    assert_eq!(attempts(), [true; 3]);
}

#[test]
fn locked_qcow2_image_and_its_backing_file_are_refused_by_qemu() {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (base, top) = (path("base"), path("top"));
    assert!(qemu_img(&["create", "-q", "-f", "raw", &base, "1M"]));
    let backing = ["-b", "base", "-F", "raw", &top];
    assert!(qemu_img(
        &[&["create", "-q", "-f", "qcow2"][..], &backing].concat()
    ));
    let options = ImageOptions {
        format: DiskFormat::Qcow2,
        ..image_options(top.as_ref(), DiskCache::Direct)
    };
    let rig = handle(open(&options).unwrap());
    let attempts = || {
        [
            qemu_img(&["info", &top]),
            qemu_img(&["resize", "-q", &top, "2M"]),
            qemu_img(&["snapshot", "-c", "one", &top]),
            qemu_img(&["check", "-q", &top]),
            qemu_io(&["-f", "raw", "-c", "write 0 512", &base]),
        ]
    };
    rig.handle.lock().unwrap();
    assert_eq!(attempts(), [false; 5]);
    assert!(qemu_io(&["-r", "-f", "raw", "-c", "read 0 512", &base]));
    drop(rig);
    assert_eq!(attempts(), [true; 5]);
}

#[test]
fn read_only_image_is_shared_with_readers_and_not_with_writers() {
    if !has("qemu-io") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    drop(resources(&directory, DiskCache::Buffered));
    let path = directory.path().join("image");
    let read_only = ImageOptions {
        read_only: true,
        ..image_options(&path, DiskCache::Buffered)
    };
    let one = handle(open(&read_only).unwrap());
    let two = handle(open(&read_only).unwrap());
    one.handle.lock().unwrap();
    two.handle.lock().unwrap();
    let image = path.to_str().unwrap();
    assert!(qemu_io(&["-r", "-f", "raw", "-c", "read 0 512", image]));
    assert!(!qemu_io(&["-f", "raw", "-c", "write 0 512", image]));
    let writer = handle(open(&image_options(&path, DiskCache::Buffered)).unwrap());
    let refused = writer.handle.lock().unwrap_err();
    assert!(matches!(refused, LockError::InUse { .. }), "{refused}");
    drop((one, two));
    writer.handle.lock().unwrap();
}

#[test]
fn image_that_qemu_uses_cannot_be_locked() {
    if !has("qemu-io") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let rig = handle(resources(&directory, DiskCache::Buffered));
    let path = directory.path().join("image");
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw", path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its prompt comes when the image is open.
    let mut prompt = [0; 8];
    std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let refused = rig.handle.lock().unwrap_err().to_string();
    assert!(refused.contains("is in use"), "{refused}");
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    rig.handle.lock().unwrap();
    // Locking again changes nothing; a second disk on the image is refused.
    rig.handle.lock().unwrap();
    let second = handle(open(&image_options(&path, DiskCache::Buffered)).unwrap());
    assert!(second.handle.lock().is_err());
    drop(rig);
    second.handle.lock().unwrap();
}

/// A loop device that goes with this value.
struct Loop(String);

impl Loop {
    fn new(arguments: &[&str]) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(arguments)
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Self(name.trim().to_owned()))
            }
            _ => {
                eprintln!("skipped: no loop device to be had");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_device_of_4096_byte_sectors_takes_sectors_of_512() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backing");
    make_file(&path, 16 << 20);
    let Some(device) = Loop::new(&["--sector-size", "4096", path.to_str().unwrap()]) else {
        return;
    };
    let image = image_options(device.0.as_ref(), DiskCache::Direct);
    let mut rig = Rig::new(open(&image).unwrap(), &options());
    assert_eq!(rig.handle.size(), 16 << 20);
    let mut model = pattern(6, 65536);
    assert_eq!(rig.write(0, &model), OK);
    for (sector, sectors) in [(1, 1), (7, 2), (8, 8), (15, 20), (127, 1)] {
        let bytes = pattern(sector + 100, sectors * 512);
        assert_eq!(rig.write(sector, &bytes), OK);
        model[sector as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
    }
    assert_eq!(rig.zero(WRITE_ZEROES, 33, 1, 0), OK);
    assert_eq!(rig.zero(WRITE_ZEROES, 40, 8, 1), OK);
    assert_eq!(rig.zero(DISCARD, 90, 1, 0), OK);
    model[33 * 512..34 * 512].fill(0);
    model[40 * 512..48 * 512].fill(0);
    let mut read = rig.read(0, model.len());
    // What a discarded sector reads as is open.
    read[90 * 512..91 * 512].copy_from_slice(&model[90 * 512..91 * 512]);
    assert!(read == model);
    assert_eq!(rig.read(3, 512), model[3 * 512..4 * 512]);
}

#[test]
fn block_device_that_has_grown_is_taken_at_its_size_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backing");
    make_file(&path, 4 << 20);
    let Some(device) = Loop::new(&[path.to_str().unwrap()]) else {
        return;
    };
    let image = image_options(device.0.as_ref(), DiskCache::Direct);
    let mut rig = Rig::new(open(&image).unwrap(), &options());
    assert_eq!(rig.read_to(DATA, 8192, 512).0, IOERR);
    assert!(rig.handle.resize(8 << 20).is_err());
    make_file_longer(&path, 8 << 20);
    let grown = Command::new("losetup")
        .args(["--set-capacity", &device.0])
        .status();
    assert!(grown.unwrap().success());
    assert!(rig.handle.resize(6 << 20).is_err());
    rig.handle.resize(8 << 20).unwrap();
    assert_eq!(rig.write(8192, &pattern(1, 512)), OK);
    assert_eq!(rig.read(8192, 512), pattern(1, 512));
}

fn make_file_longer(path: &std::path::Path, len: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}
