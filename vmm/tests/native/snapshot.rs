//! A snapshot of a working guest, and a guest that goes on from it.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::harness::{Guest, Setup, kvm_opens, probe};

/// A probe with two vCPUs, a disk, a balloon and a console, written in the first version of the
/// format of each part.
const GOLDEN: [(&str, &[u8]); 2] = [
    (
        "state.cbor",
        include_bytes!("golden/snapshot-1/state.cbor.zst"),
    ),
    (
        "memory.bin",
        include_bytes!("golden/snapshot-1/memory.bin.zst"),
    ),
];

/// Puts the golden snapshot into `directory`, and its guest's disk and kernel beside it.
fn unpack_golden(directory: &Path) {
    let snapshot = directory.join("snapshot");
    fs::create_dir(&snapshot).expect("a temporary directory takes it");
    for (name, packed) in GOLDEN {
        let file = File::create(snapshot.join(name)).expect("a file in a temporary directory");
        zstd::stream::copy_decode(packed, file).expect("it was packed whole");
    }
    let disk = File::create(directory.join("disk.img")).expect("a file in a temporary directory");
    disk.set_len(1 << 20).expect("a sparse file");
    // What it starts from after a reset.
    std::os::unix::fs::symlink(probe(), directory.join("probe")).expect("a link to the probe");
}

/// Whether this processor is of the make that the golden guest was started on; says so if not.
fn is_golden_vendor() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").expect("there is a processor");
    let alike = processors.contains("AuthenticAMD");
    if !alike {
        eprintln!("skipped: the golden snapshot is of an AMD processor");
    }
    alike
}

/// If this fails, guests cannot move here from the version before, nor be restored: keep reading
/// what it wrote.
#[test]
fn guest_of_the_first_version_goes_on_here() {
    if !kvm_opens() || !is_golden_vendor() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    unpack_golden(directory.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"));
    // Its paths are relative ones.
    command
        .current_dir(directory.path())
        .args(["restore", "snapshot"]);
    let mut guest = Guest::spawn(command, directory);
    let pid = u64::from(guest.pid());
    guest.wait_for("a beat of the new process", |line| {
        line["ev"] == "beat" && line["runner"] == pid
    });
    guest.command("verify");
    assert_eq!(guest.wait_event("verify")["bad_total"], 0);
    // It is a guest like any other.
    snapshot_to(&guest, "again", "exit");
    assert_eq!(guest.wait_exit().code(), Some(0));
}

fn snapshot(guest: &Guest, then: &str) {
    snapshot_to(guest, "snapshot", then);
}

fn snapshot_to(guest: &Guest, name: &str, then: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"))
        .arg("snapshot")
        .args(["--then", then, "--api"])
        .arg(guest.path("api"))
        .arg(guest.path(name))
        .output()
        .expect("pindah-vmm starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}\n{}", guest.log());
}

/// Ends `guest` and starts another from its snapshot, in its place.
fn restore(guest: Guest) -> Guest {
    let directory = guest.end();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"));
    command
        .arg("restore")
        .arg(directory.path().join("snapshot"));
    Guest::spawn(command, directory)
}

#[test]
fn restored_guest_has_its_memory_and_goes_on_counting() {
    if !kvm_opens() {
        return;
    }
    let cmdline = "ws_mib=48 rate_mib_s=50 content=random verify=1 cpus=2";
    let mut guest = Setup::new(cmdline)
        .config("cpus = { count = 2 }\nballoon = {}")
        .start();
    guest.wait_event("ready");
    let before = guest.wait_event("beat");
    snapshot(&guest, "exit");
    assert_eq!(guest.wait_exit().code(), Some(0));

    let mut guest = restore(guest);
    let pid = u64::from(guest.pid());
    let after = guest.wait_for("a beat of the new process", |line| {
        line["ev"] == "beat" && line["runner"] == pid
    });
    assert!(
        after["seq"].as_u64() > before["seq"].as_u64(),
        "{before} {after}"
    );
    assert!(
        after["t_us"].as_u64() > before["t_us"].as_u64(),
        "{before} {after}"
    );
    guest.command("verify");
    let verified = guest.wait_event("verify");
    assert_eq!(verified["bad_total"], 0, "{verified}");
    // It is a machine like any other: it resets.
    guest.command("reset");
    guest.wait_event("start");
}

#[test]
fn restored_disk_goes_on_where_its_guest_was() {
    if !kvm_opens() {
        return;
    }
    let cmdline = "ws_mib=4 blk=1 blk_op=verify blk_qd=16 blk_s=0 blk_iops=2000";
    let setup = Setup::new(cmdline);
    let image = setup.path("disk.img");
    let file = std::fs::File::create(&image).expect("a file in a temporary directory");
    file.set_len(64 << 20).expect("a sparse file");
    let disk = format!(
        "[[disks]]\npath = '{}'\nformat = 'raw'\ncache = 'buffered'",
        image.display()
    );
    let mut guest = setup.table(&disk).start();
    let before = guest.wait_event("blk");
    snapshot(&guest, "exit");
    assert_eq!(guest.wait_exit().code(), Some(0));

    let mut guest = restore(guest);
    let after = guest.wait_for("more requests", |line| {
        line["ev"] == "blk" && line["ios"].as_u64() > before["ios"].as_u64()
    });
    assert_eq!(
        (after["errors"].as_u64(), after["bad"].as_u64()),
        (Some(0), Some(0))
    );
}

#[test]
fn guest_goes_on_after_its_snapshot() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=16 rate_mib_s=50 verify=1").start();
    guest.wait_event("ready");
    snapshot(&guest, "continue");
    guest.wait_event("beat");
    guest.command("verify");
    assert_eq!(guest.wait_event("verify")["bad_total"], 0);
}
