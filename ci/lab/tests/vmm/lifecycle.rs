//! How a guest's run ends, and goes on.

use std::time::Duration;

use pindah_lab::Flavour::{Cloud, Generic};
use pindah_lab::guest::ACTION_LIMIT;
use pindah_vmm_api::ResetPolicy;
use serde_json::Value;

use crate::host::{artifacts, kernel, server};

/// Exit codes that `pindah-vmm` documents.
const RESET_REQUESTED: i32 = 3;

#[test]
#[ignore = "lab"]
fn reboot_from_inside_starts_the_guest_anew() {
    let server = server();
    let guest = server
        .guest("reboot")
        .kernel(artifacts(), &kernel("6.12", Cloud))
        .unwrap();
    let mut guest = guest.cpus(2).start().unwrap();
    guest.wait_ready().unwrap();
    guest.check("touch /tmp/before").unwrap();
    guest.console().send("reboot -f").unwrap();
    guest.wait_ready().unwrap();
    guest.check("test ! -e /tmp/before").unwrap();
    assert_eq!(guest.check("nproc").unwrap(), "2");
    guest.power_off().unwrap();
}

#[test]
#[ignore = "lab"]
fn reboot_with_exit_on_reset_ends_the_vmm_with_its_code() {
    let server = server();
    let guest = server
        .guest("reset-exits")
        .kernel(artifacts(), &kernel("6.1", Generic))
        .unwrap();
    let guest = guest.configure(|config| config.on_reset = ResetPolicy::Exit);
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    guest.console().send("reboot -f").unwrap();
    assert_eq!(guest.wait_end().unwrap().status, RESET_REQUESTED);
}

#[test]
#[ignore = "lab"]
fn power_button_from_outside_reaches_the_guest() {
    let server = server();
    let guest = server
        .guest("button")
        .kernel(artifacts(), &kernel("6.1", Cloud))
        .unwrap();
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    // Whichever input device is the button: the first event on one of them.
    let wait = "for e in /dev/input/event*; do (head -c 24 $e >/dev/null; poweroff -f) & done; echo listening";
    guest.check(wait).unwrap();
    guest.api("POST", "/vm/power-button", None).unwrap();
    guest.wait_end().unwrap().ok().unwrap();
}

#[test]
#[ignore = "lab"]
fn power_off_from_outside_ends_the_vmm_cleanly() {
    let server = server();
    let guest = server
        .guest("power-off")
        .kernel(artifacts(), &kernel("6.12", Generic))
        .unwrap();
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    guest.api("POST", "/vm/power-off", None).unwrap();
    guest.wait_end().unwrap().ok().unwrap();
}

#[test]
#[ignore = "lab"]
fn pause_stops_the_guest_and_resume_lets_it_go_on() {
    let server = server();
    let guest = server
        .guest("pause")
        .kernel(artifacts(), &kernel("6.1", Generic))
        .unwrap();
    let mut guest = guest.cpus(2).start().unwrap();
    guest.wait_ready().unwrap();
    guest.api("POST", "/vm/pause", None).unwrap();
    guest.wait_state("paused").unwrap();
    let exits = || guest.api("GET", "/metrics", None).unwrap()["vcpus"][0]["exits"].clone();
    let before = exits();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(exits(), before, "a paused guest has run");
    guest.api("POST", "/vm/resume", None).unwrap();
    guest.wait_state("running").unwrap();
    guest.check("true").unwrap();
    guest.power_off().unwrap();
}

#[test]
#[ignore = "lab"]
fn panic_in_the_guest_resets_it_and_is_told() {
    let server = server();
    let guest = server
        .guest("panic")
        .kernel(artifacts(), &kernel("6.1", Cloud))
        .unwrap();
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    let mut events = server.spawn(&events_of(guest.socket())).unwrap();
    events.wait_for_text("started", ACTION_LIMIT).unwrap();
    guest.console().send("echo c >/proc/sysrq-trigger").unwrap();
    guest
        .console()
        .wait_for_text("Kernel panic - not syncing", ACTION_LIMIT)
        .unwrap();
    guest.wait_ready().unwrap();
    let reset = events.wait_for("reset event", ACTION_LIMIT, |output| {
        let lines = output.split(|byte| *byte == b'\n');
        let mut values = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        values.find(|event| event["type"] == "reset")
    });
    assert_eq!(reset.unwrap()["by"], "guest");
    guest.power_off().unwrap();
}

/// A program that prints the VMM's events from the first on, a line each.
fn events_of(socket: &str) -> [&str; 6] {
    [
        "curl",
        "-sSN",
        "--unix-socket",
        socket,
        "--fail-with-body",
        "http://vmm/api/v1/events?after=0",
    ]
}
