//! The balloon: memory goes back to the server, and comes again.

use std::time::{Duration, Instant};

use pindah_lab::Flavour::{Cloud, Generic};
use pindah_lab::Kernel;
use pindah_lab::guest::{ACTION_LIMIT, Guest};
use pindah_vmm_api::BalloonConfig;
use serde_json::json;

use crate::host::{artifacts, kernel, server};

const MEMORY_MIB: u64 = 384;
const TARGET_MIB: u64 = 192;

/// MiB that the guest has in all, as it says itself.
fn total_mib(guest: &mut Guest<'_>) -> u64 {
    guest
        .check("awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo")
        .unwrap()
        .parse()
        .unwrap()
}

/// Resident MiB of the VMM.
fn resident_mib(pid: &str) -> u64 {
    let status = format!("awk '/VmRSS/ {{print int($2 / 1024)}}' /proc/{pid}/status");
    server().check(&status).unwrap().trim().parse().unwrap()
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
    let guest = server().guest(&name).kernel(artifacts(), kernel).unwrap();
    let guest = guest
        .memory_mib(MEMORY_MIB)
        .configure(|config| config.balloon = Some(BalloonConfig::default()));
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    // Touches nearly all memory, so that there is something to give back.
    guest
        .check("dd if=/dev/urandom of=/tmp/fill bs=1M count=220 && rm /tmp/fill")
        .unwrap();
    let pid = guest.api("GET", "/vm", None).unwrap()["pid"].to_string();
    let (total, resident) = (total_mib(&mut guest), resident_mib(&pid));

    guest
        .api("PUT", "/balloon", Some(&json!({"target_mib": TARGET_MIB})))
        .unwrap();
    wait_for("a full balloon", || {
        total_mib(&mut guest) + TARGET_MIB <= total + 2
    });
    wait_for("memory given back", || {
        resident_mib(&pid) + TARGET_MIB / 2 <= resident
    });
    guest
        .api("PUT", "/balloon", Some(&json!({"target_mib": 0})))
        .unwrap();
    wait_for("an empty balloon", || total_mib(&mut guest) + 2 >= total);
    guest
        .check("dd if=/dev/urandom of=/tmp/fill bs=1M count=220")
        .unwrap();
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
