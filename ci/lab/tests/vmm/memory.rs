//! The balloon: memory goes back to the server, and comes again.

use std::time::{Duration, Instant};

use pindah_lab::Flavour::{Cloud, Generic};
use pindah_lab::guest::{ACTION_LIMIT, Guest};
use pindah_lab::{Kernel, Server};
use pindah_vmm_api::BalloonConfig;
use serde_json::{Value, json};

use crate::host::{artifacts, kernel, server};

const MEMORY_MIB: u64 = 384;
const TARGET_MIB: u64 = 192;
const FILL: &str = "dd if=/dev/urandom of=/fill/file bs=1M count=220";

/// Waits until the balloon holds so much, as the VMM says.
fn wait_for_balloon(guest: &Guest<'_>, mib: u64) {
    let holds = |info: &Value| {
        let devices = info["devices"].as_array().into_iter().flatten();
        let mut balloons = devices.filter(|device| device["kind"] == "balloon");
        balloons.any(|balloon| balloon["actual_mib"] == mib)
    };
    guest
        .wait_info(&format!("balloon of {mib} MiB"), holds)
        .unwrap();
}

/// MiB that the guest can still use, as it says itself.
fn available_mib(guest: &mut Guest<'_>) -> u64 {
    let available = "awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo";
    guest.check(available).unwrap().parse().unwrap()
}

/// Resident MiB of the VMM.
fn resident_mib(server: &Server, pid: &str) -> u64 {
    let status = format!("awk '/VmRSS/ {{print int($2 / 1024)}}' /proc/{pid}/status");
    server.check(&status).unwrap().trim().parse().unwrap()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + ACTION_LIMIT;
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "{what}: not within {ACTION_LIMIT:?}"
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn balloon_gives_memory_back_and_takes_it_again(kernel: &Kernel) {
    let name = format!("balloon-{}-{}", kernel.version, kernel.flavour);
    let server = server();
    let guest = server.guest(&name).kernel(artifacts(), kernel).unwrap();
    let guest = guest.memory_mib(MEMORY_MIB).configure(|config| {
        config.balloon = Some(BalloonConfig {
            // Else the guest has given all back by itself before the balloon grows.
            free_page_reporting: false,
            ..BalloonConfig::default()
        });
    });
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    // Touches nearly all memory, so that there is something to give back.
    guest
        .check("mkdir /fill && mount -t tmpfs -o size=90% tmpfs /fill")
        .unwrap();
    guest.check(FILL).unwrap();
    guest.check("rm /fill/file").unwrap();
    let pid = guest.api("GET", "/vm", None).unwrap()["pid"].to_string();
    let (available, resident) = (available_mib(&mut guest), resident_mib(&server, &pid));

    guest
        .api("PUT", "/balloon", Some(&json!({"target_mib": TARGET_MIB})))
        .unwrap();
    wait_for_balloon(&guest, TARGET_MIB);
    wait_for("memory given back", || {
        resident_mib(&server, &pid) + TARGET_MIB / 2 <= resident
    });
    assert!(available_mib(&mut guest) + TARGET_MIB / 2 <= available);
    guest
        .api("PUT", "/balloon", Some(&json!({"target_mib": 0})))
        .unwrap();
    wait_for_balloon(&guest, 0);
    guest.check(FILL).unwrap();
    guest.power_off().unwrap();
}

#[test]
#[ignore = "lab"]
fn balloon_under_6_12_generic_gives_memory_back_and_takes_it_again() {
    balloon_gives_memory_back_and_takes_it_again(&kernel("6.12", Generic));
}

#[test]
#[ignore = "lab"]
fn full_balloon_under_6_1_cloud_gives_memory_back_and_takes_it_again() {
    balloon_gives_memory_back_and_takes_it_again(&kernel("6.1", Cloud));
}
