//! The sandbox of a VMM that runs a guest, as the host's `/proc` shows it. That everything works
//! inside it is what all other tests here show: all of them run with `--seccomp on`.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::harness::{DEADLINE, Guest, Setup, kvm_opens};

/// `/proc/PID/task/*/status` by the thread's name, as key and value.
fn threads(guest: &Guest) -> BTreeMap<String, BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("a process of ours");
    tasks
        .map(|task| {
            let status = task.expect("it can be listed").path().join("status");
            let text = fs::read_to_string(status).expect("no thread ends");
            let fields: BTreeMap<String, String> = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
                .collect();
            (fields["Name"].clone(), fields)
        })
        .collect()
}

#[test]
fn every_thread_of_a_running_guest_is_confined() {
    if !kvm_opens() {
        return;
    }
    let mut guest = Setup::new("ws_mib=4 cpus=2")
        .config("cpus = { count = 2 }\nballoon = {}")
        .start();
    guest.wait_event("ready");
    // A thread that has just been started has its maker's name until it first runs.
    let named = ["pindah-vmm", "vcpu0", "vcpu1", "serial", "api", "migration"];
    let end = Instant::now() + DEADLINE;
    let threads = loop {
        let threads = threads(&guest);
        let missing = named.iter().find(|name| !threads.contains_key(**name));
        match missing {
            None => break threads,
            Some(name) => assert!(Instant::now() < end, "no {name}: {:?}", threads.keys()),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    for (name, status) in &threads {
        // 2: SECCOMP_MODE_FILTER (proc(5)).
        assert_eq!(status["Seccomp"], "2", "{name}");
        assert_eq!(status["Seccomp_filters"], "1", "{name}");
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{name}: {set}");
        }
    }
}
