//! Boot, run, pause, reset and end.

use serde_json::json;

use super::api_client::request;
use super::harness::{Setup, kvm_opens};

const VM: &str = "/api/v1/vm";

#[test]
fn probe_boots_by_either_protocol() {
    if !kvm_opens() {
        return;
    }
    for (protocol, reported) in [("pvh", "pvh"), ("linux", "linux64"), ("auto", "pvh")] {
        let setup = Setup::new("ws_mib=4").boot_key("protocol", protocol);
        let mut guest = setup.start();
        let start = guest.wait_event("start");
        assert_eq!(start["protocol"], reported, "protocol {protocol}");
        guest.wait_event("beat");
    }
}

#[test]
fn guest_sees_the_memory_and_cpus_that_it_was_given() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=8 cpus=4 rate_mib_s=40 verify=1")
        .memory_mib(3584)
        .config("cpus = { count = 4, threads_per_core = 2 }")
        .start();
    let start = guest.wait_event("start");
    assert_eq!(start["cpus"], 4);
    let ram_mib = start["ram_mib"].as_u64().unwrap();
    assert!((3582..=3584).contains(&ram_mib), "{ram_mib} MiB");
    guest.wait_event("ready");
    guest.command("verify");
    let verified = guest.wait_event("verify");
    assert_eq!(verified["bad_total"], 0);
}

#[test]
fn paused_guest_stands_still_and_goes_on_where_it_was() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=16 rate_mib_s=10 verify=1 gap_us=200000").start();
    guest.wait_event("ready");
    let api = guest.path("api");
    assert_eq!(
        request(&api, "POST", &format!("{VM}/pause"), None).0 / 100,
        2
    );
    let (_, info) = request(&api, "GET", VM, None);
    assert_eq!(info["state"], "paused");
    let (_, before) = request(&api, "GET", "/api/v1/metrics", None);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (_, after) = request(&api, "GET", "/api/v1/metrics", None);
    assert_eq!(before["vcpus"][0]["exits"], after["vcpus"][0]["exits"]);
    assert_eq!(
        request(&api, "POST", &format!("{VM}/resume"), None).0 / 100,
        2
    );
    let gap = guest.wait_event("gap");
    assert!(gap["len_us"].as_u64().unwrap() >= 300_000, "{gap}");
    guest.command("verify");
    assert_eq!(guest.wait_event("verify")["bad_total"], 0);
}

#[test]
fn guest_that_resets_itself_starts_anew_in_the_same_process() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=4 cpus=2")
        .config("cpus = { count = 2 }")
        .start();
    for _ in 0..3 {
        let start = guest.wait_event("start");
        assert_eq!(start["cpus"], 2);
        guest.wait_event("ready");
        guest.command("reset");
    }
    guest.wait_event("start");
    let api = guest.path("api");
    assert_eq!(
        request(&api, "POST", &format!("{VM}/reset"), None).0 / 100,
        2
    );
    guest.wait_event("start");
}

#[test]
fn process_ends_with_the_documented_code() {
    if !kvm_opens() {
        return;
    }
    let cases = [
        ("reset", "on_reset = \"exit\"", 3),
        ("poweroff", "", 0),
        ("crash", "", 4),
    ];
    for (command, config, code) in cases {
        let mut guest = Setup::new("ws_mib=4").config(config).start();
        guest.wait_event("ready");
        guest.command(command);
        let status = guest.wait_exit();
        assert_eq!(status.code(), Some(code), "{command}: {}", guest.log());
        if command == "crash" {
            let log = guest.log();
            assert!(log.contains("triple fault") && log.contains("rip"), "{log}");
        }
    }
}

#[test]
fn power_off_by_the_api_ends_the_process() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=4").start();
    guest.wait_event("ready");
    let api = guest.path("api");
    assert_eq!(
        request(&api, "POST", &format!("{VM}/power-off"), None).0 / 100,
        2
    );
    assert_eq!(guest.wait_exit().code(), Some(0));
}

#[test]
fn memory_backings_all_run() {
    if !kvm_opens() {
        return;
    }
    for keys in ["backing = \"memfd\"", "prefault = true", "mergeable = true"] {
        let mut guest = Setup::new("ws_mib=32 rate_mib_s=100 verify=1")
            .memory_key(keys)
            .start();
        guest.wait_event("ready");
        guest.command("verify");
        assert_eq!(guest.wait_event("verify")["bad_total"], 0, "{keys}");
    }
}

#[test]
fn unknown_request_is_answered_and_changes_nothing() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=4").start();
    guest.wait_event("ready");
    let api = guest.path("api");
    assert_eq!(request(&api, "GET", "/nothing", None).0, 404);
    assert_eq!(request(&api, "DELETE", VM, None).0, 405);
    let body = json!({ "target_mib": 1 });
    assert_eq!(request(&api, "PUT", "/api/v1/balloon", Some(&body)).0, 404);
    guest.wait_event("beat");
}

#[test]
fn termination_signal_ends_the_process_as_a_shutdown() {
    if !kvm_opens() {
        return;
    }
    for signal in ["TERM", "INT"] {
        let mut guest = Setup::new("ws_mib=4").start();
        guest.wait_event("ready");
        let kill = std::process::Command::new("kill")
            .args(["-s", signal, &guest.pid().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(guest.wait_exit().code(), Some(0), "SIG{signal}");
    }
}

#[test]
fn killed_guest_starts_again_on_its_disk_at_once() {
    if !kvm_opens() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("disk.img");
    let file = std::fs::File::create(&image).expect("a file in a temporary directory");
    file.set_len(16 << 20).expect("a sparse file");
    let disk = format!("[[disks]]\npath = '{}'\nformat = 'raw'", image.display());
    for _ in 0..5 {
        let mut guest = Setup::new("ws_mib=4 blk=1 blk_op=verify blk_qd=32 blk_s=0")
            .table(&disk)
            .start();
        guest.wait_event("ready");
        // SIGKILL, in the middle of its requests.
        drop(guest.end());
    }
}
