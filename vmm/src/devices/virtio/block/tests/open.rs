//! Images that cannot be used, and what is said about them.

use std::os::unix::fs::symlink;
use std::path::Path;

use pindah_vmm_api::{DiskCache, DiskFormat};

use super::raw::image_options;
use super::rig::make_file;
use super::tools::{has, qemu_img};
use crate::devices::virtio::block::{ImageOptions, MAX_CHAIN, OpenDiskError, open};

fn refused(path: &Path, format: DiskFormat) -> String {
    let options = ImageOptions {
        format,
        ..image_options(path, DiskCache::Buffered)
    };
    let error = open(&options).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[test]
fn what_is_no_disk_is_refused_with_its_path_and_a_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    make_file(&path("empty"), 0);
    make_file(&path("odd"), 513);
    symlink(path("missing"), path("dangling")).unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    let fifo = std::ffi::CString::new(path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    for (name, hint) in [
        ("missing", "No such file"),
        ("dangling", "No such file"),
        ("directory", "a directory"),
        ("fifo", "a FIFO"),
        ("empty", "is empty"),
        ("odd", "truncate -s %512"),
    ] {
        let text = refused(&path(name), DiskFormat::Raw);
        assert!(text.contains(name) && text.contains(hint), "{text}");
    }
    let text = refused(Path::new("/dev/null"), DiskFormat::Raw);
    assert!(text.contains("a character device"), "{text}");
    let text = refused(&path("odd"), DiskFormat::Qcow2);
    assert!(text.contains("format = \"raw\""), "{text}");
}

/// Makes a qcow2 image over another.
fn overlay(path: &Path, backing: &str, format: &str) {
    let arguments = [
        "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format,
    ];
    let rest = [path.to_str().unwrap(), "1M"];
    assert!(qemu_img(&[&arguments[..], &rest[..]].concat()));
}

#[test]
fn backing_chains_that_cannot_be_are_refused() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    overlay(&path("self"), "self", "qcow2");
    overlay(&path("a"), "b", "qcow2");
    overlay(&path("b"), "a", "qcow2");
    overlay(&path("lost"), "nowhere", "raw");
    overlay(&path("vmdk"), "self", "vmdk");
    overlay(&path("net"), "nbd://localhost/x", "raw");
    overlay(&path("json"), "json:{\"driver\":\"raw\"}", "raw");
    for index in 0..MAX_CHAIN {
        overlay(
            &path(&format!("d{index}")),
            &format!("d{}", index + 1),
            "qcow2",
        );
    }
    make_file(&path(&format!("d{MAX_CHAIN}")), 1 << 20);
    for (name, hint) in [
        ("self", "form a loop"),
        ("a", "form a loop"),
        ("lost", "nowhere"),
        ("vmdk", "\"vmdk\""),
        ("net", "not a path"),
        ("json", "not a path"),
        ("d0", "more than 64 images"),
    ] {
        let text = refused(&path(name), DiskFormat::Qcow2);
        assert!(text.contains(name) && text.contains(hint), "{text}");
    }
}

#[test]
fn backing_file_without_a_format_is_refused() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("top");
    make_file(&directory.path().join("base"), 1 << 20);
    overlay(&path, "base", "raw");
    // Turns the extension into one that nobody knows.
    let mut bytes = std::fs::read(&path).unwrap();
    let magic = 0xe279_2aca_u32.to_be_bytes();
    let at = bytes.windows(4).position(|window| window == magic).unwrap();
    bytes[at] = 0x12;
    std::fs::write(&path, bytes).unwrap();
    let text = refused(&path, DiskFormat::Qcow2);
    assert!(text.contains("qemu-img rebase -u -b \"base\""), "{text}");
}

#[test]
fn qcow2_with_features_or_tables_that_we_do_not_take_is_refused() {
    if !has("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let name = path.to_str().unwrap();
    assert!(qemu_img(&["create", "-q", "-f", "qcow2", name, "16M"]));
    let good = std::fs::read(&path).unwrap();
    let says = |changes: &[(usize, u8)], hint: &str| {
        let mut bytes = good.clone();
        for &(at, value) in changes {
            bytes[at] = value;
        }
        std::fs::write(&path, bytes).unwrap();
        let text = refused(&path, DiskFormat::Qcow2);
        assert!(text.contains(hint), "{text}");
    };
    says(&[(0, 0)], "does not start as a qcow2");
    says(&[(7, 4)], "version 4");
    says(&[(23, 8)], "cluster bits");
    says(&[(23, 63)], "cluster bits");
    says(&[(31, 1)], "not a multiple of 512");
    says(&[(24, 0x7f)], "number of L1 entries");
    says(&[(36, 0xff)], "number of L1 entries");
    says(&[(40, 0x10)], "L1 table does not lie");
    says(&[(46, 0x7f)], "L1 table does not lie");
    says(&[(48, 0x10)], "refcount table does not lie");
    says(&[(56, 0x10)], "refcount table clusters");
    says(&[(35, 1)], "is encrypted");
    says(&[(79, 1)], "was not closed");
    says(&[(79, 2)], "marked as corrupt");
    says(&[(79, 4)], "data in another file");
    says(&[(79, 8)], "compression type");
    says(&[(79, 16)], "extended L2");
    says(&[(79, 32)], "0x20");
    says(&[(99, 7)], "refcount order");
    says(&[(103, 103)], "header length");
    says(&[(102, 0xff), (100, 0x10)], "header length");
    let mut short = good.clone();
    short.truncate(60);
    std::fs::write(&path, short).unwrap();
    assert!(!refused(&path, DiskFormat::Qcow2).is_empty());
}

#[test]
fn file_that_may_not_be_written_is_taken_read_only() {
    // Root may write anything but a file that is marked as immutable; a read-only mount would
    // need more rights than tests have. What can be shown to anyone is the descriptor's mode.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    make_file(&path, 4096);
    let options = ImageOptions {
        read_only: true,
        ..image_options(&path, DiskCache::Buffered)
    };
    let resources = open(&options).unwrap();
    assert_eq!(resources.size(), 4096);
    let written = std::os::unix::fs::FileExt::write_at(&resources.image.file, b"x", 0);
    assert!(written.is_err());
    assert!(matches!(
        open(&image_options(
            &directory.path().join("no"),
            DiskCache::Direct
        )),
        Err(OpenDiskError::Open { .. })
    ));
}
