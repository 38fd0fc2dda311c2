//! A disk that changes while the guest runs.

use std::time::{Duration, Instant};

use pindah_lab::Flavour::{Cloud, Generic};
use pindah_lab::Kernel;
use pindah_lab::guest::ACTION_LIMIT;
use pindah_vmm_api::DiskFormat;
use serde_json::json;

use crate::host::{artifacts, kernel, server};

fn resize_is_seen_by_the_guest(kernel: &Kernel, format: DiskFormat) {
    let server = server();
    let word = format!("{format:?}").to_lowercase();
    let path = format!("/root/resize.{word}");
    server
        .check(&format!("qemu-img create -f {word} {path} 64M"))
        .unwrap();
    let guest = server
        .guest(&format!("resize-{word}"))
        .kernel(artifacts(), kernel)
        .unwrap();
    let mut guest = guest.disk(&path, format).start().unwrap();
    guest.wait_ready().unwrap();
    let sectors = "cat /sys/block/vda/size";
    assert_eq!(guest.check(sectors).unwrap(), (64 << 11).to_string());
    let body = json!({"size_bytes": 96 << 20});
    guest.api("PATCH", "/disks/disk0", Some(&body)).unwrap();
    let deadline = Instant::now() + ACTION_LIMIT;
    while guest.check(sectors).unwrap() != (96 << 11).to_string() {
        assert!(
            Instant::now() < deadline,
            "the guest does not see the disk's new size"
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    // The new end can be written and read.
    let last = "bs=1M seek=95 count=1 conv=fsync";
    guest.check("head -c 1048576 /dev/urandom >/tmp/a").unwrap();
    guest
        .check(&format!("dd if=/tmp/a of=/dev/vda {last}"))
        .unwrap();
    guest
        .check("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=95 | cmp - /tmp/a")
        .unwrap();
    guest.power_off().unwrap();
    let size = format!(
        "qemu-img info --output=json {path} | tr -d ' ' | grep -q '\"virtual-size\":{}'",
        96 << 20
    );
    server.check(&size).unwrap();
}

#[test]
#[ignore = "lab"]
fn resize_of_a_raw_disk_is_seen_by_6_12_cloud() {
    resize_is_seen_by_the_guest(&kernel("6.12", Cloud), DiskFormat::Raw);
}

#[test]
#[ignore = "lab"]
fn resize_of_a_qcow2_disk_is_seen_by_6_1_generic() {
    resize_is_seen_by_the_guest(&kernel("6.1", Generic), DiskFormat::Qcow2);
}

#[test]
#[ignore = "lab"]
fn image_in_use_is_refused_by_qemu_img_and_by_a_second_vmm() {
    let server = server();
    server.check("truncate -s 16M /root/locked.raw").unwrap();
    let guest = server
        .guest("locked")
        .kernel(artifacts(), &kernel("6.1", Cloud))
        .unwrap();
    let mut guest = guest
        .disk("/root/locked.raw", DiskFormat::Raw)
        .start()
        .unwrap();
    guest.wait_ready().unwrap();
    let tool = server
        .run("qemu-img resize -f raw /root/locked.raw 32M")
        .unwrap();
    assert_ne!(tool.status, 0, "qemu-img changes an image in use");
    let second = server
        .guest("second")
        .kernel(artifacts(), &kernel("6.1", Cloud))
        .unwrap();
    let second = second
        .disk("/root/locked.raw", DiskFormat::Raw)
        .start()
        .unwrap();
    let end = second.wait_end().unwrap();
    assert!(
        end.status != 0 && end.error_text().contains("/root/locked.raw"),
        "{end:?}"
    );
    guest.power_off().unwrap();
}
