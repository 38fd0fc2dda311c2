//! Limits of a disk, while its guest runs.

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::api_client::request;
use super::harness::{DEADLINE, Guest, Setup, kvm_opens};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;

/// Operations and bytes of the disk so far.
fn done(guest: &Guest) -> (u64, u64) {
    let (_, metrics) = request(&guest.path("api"), "GET", "/api/v1/metrics", None);
    let disk = &metrics["disks"][0];
    let sum = |field: &str| {
        let kinds = [&disk["read"], &disk["write"]].into_iter();
        kinds.map(|kind| kind[field].as_u64().unwrap()).sum()
    };
    (sum("operations"), sum("bytes"))
}

/// Watches the disk until it has done `enough`; what it does meanwhile `check` sees, and the time.
fn watch(guest: &Guest, enough: impl Fn(u64, u64) -> bool, check: impl Fn(u64, u64, Duration)) {
    let start = Instant::now();
    let before = done(guest);
    loop {
        let now = done(guest);
        let (operations, bytes) = (now.0 - before.0, now.1 - before.1);
        check(operations, bytes, start.elapsed());
        if enough(operations, bytes) {
            return;
        }
        if start.elapsed() > DEADLINE {
            guest.fail(&format!("only {operations} operations and {bytes} bytes"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A disk's table, with these limits.
fn disk(directory: &TempDir, limits: &str) -> String {
    let image = directory.path().join("disk.img");
    let file = File::create(&image).expect("a file in a temporary directory");
    file.set_len(16 * MIB).expect("a sparse file");
    let image = image.display();
    format!("[[disks]]\npath = '{image}'\nformat = 'raw'\n{limits}")
}

fn set_limits(guest: &Guest, limits: &Value) {
    let path = "/api/v1/disks/disk0/limits";
    let (status, answer) = request(&guest.path("api"), "PUT", path, Some(limits));
    assert_eq!(status, 204, "{answer}");
    let (_, info) = request(&guest.path("api"), "GET", "/api/v1/vm", None);
    let devices = info["devices"].as_array().unwrap().iter();
    let disk = devices.clone().find(|device| device["kind"] == "disk");
    let (_, config) = request(&guest.path("api"), "GET", "/api/v1/vm/config", None);
    for shown in [disk.unwrap(), &config["disks"][0]] {
        let shown = shown.get("limits").cloned();
        assert_eq!(shown.unwrap_or_else(|| json!({})), *limits);
    }
}

#[test]
fn disk_keeps_to_its_limits_and_to_others_at_once() {
    if !kvm_opens() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let limits = format!("limits = {{ bandwidth_bytes_per_s = {MIB} }}");
    let disk = disk(&directory, &limits);
    let mut guest = Setup::new("ws_mib=4 blk=1 blk_op=verify blk_bs=65536 blk_qd=16 blk_s=0")
        .table(&disk)
        .start();
    guest.wait_event("ready");

    // In `t` seconds what they allow in `t + 1`, and what may be over it: the last request, and
    // those that were under way at the first look.
    let most = |rate: u64, time: Duration| rate as f64 * (time.as_secs_f64() + 1.0);
    let over = 17;
    watch(
        &guest,
        |_, bytes| bytes >= 3 * MIB,
        |_, bytes, time| {
            let most = most(MIB, time) + (over * BLOCK) as f64;
            assert!(bytes as f64 <= most, "{bytes} bytes in {time:?}");
        },
    );
    set_limits(&guest, &json!({ "iops": 20 }));
    watch(
        &guest,
        |operations, _| operations >= 60,
        |operations, _, time| {
            let most = most(20, time) + over as f64;
            assert!(operations as f64 <= most, "{operations} in {time:?}");
        },
    );
    // With either limit it would not get so far before the deadline.
    set_limits(&guest, &json!({}));
    watch(&guest, |_, bytes| bytes >= 128 * MIB, |_, _, _| ());
    let line = guest.wait_event("blk");
    assert_eq!((&line["bad"], &line["errors"]), (&json!(0), &json!(0)));
}

#[test]
fn limits_that_cannot_be_are_refused_and_change_nothing() {
    if !kvm_opens() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = disk(&directory, "");
    let guest = Setup::new("ws_mib=4").table(&disk).start();
    let api = guest.path("api");
    set_limits(&guest, &json!({ "iops": 500 }));
    for (disk, body, status, message) in [
        ("disk9", json!({}), 404, "there is no disk disk9"),
        (
            "disk0",
            json!({ "iops": 9 }),
            422,
            "iops = 9: 10 to 1000000",
        ),
        (
            "disk0",
            json!({ "iops": 100, "bandwidth_bytes_per_s": 1 }),
            422,
            "bandwidth_bytes_per_s = 1: 65536 to",
        ),
        ("disk0", json!({ "iops": "many" }), 400, "invalid type"),
        ("disk0", json!({ "read_iops": 10 }), 400, "unknown field"),
    ] {
        let path = format!("/api/v1/disks/{disk}/limits");
        let (got, answer) = request(&api, "PUT", &path, Some(&body));
        assert_eq!(got, status, "{answer}");
        let text = answer.to_string();
        assert!(text.contains(message), "{text} does not say {message}");
    }
    let (_, info) = request(&api, "GET", "/api/v1/vm", None);
    let text = info.to_string();
    assert!(text.contains(r#""limits":{"iops":500}"#), "{text}");
}
