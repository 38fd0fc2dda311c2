//! A guest that works is put down and taken up again, and nothing of it is lost.

use std::time::{Duration, Instant};

use pindah_lab::Flavour::{Cloud, Generic};
use pindah_lab::Server;
use pindah_lab::guest::{ACTION_LIMIT, Guest};
use pindah_lab::network::HOST_ADDRESS;
use pindah_vmm_api::DiskFormat;

use crate::host::{artifacts, copy, kernel, server};

const WORKLOAD: &str = include_str!("../../assets/guest-workload");

fn start_work(guest: &mut Guest<'_>) {
    guest.check(WORKLOAD).unwrap();
    wait_for_rounds(guest, 2);
}

/// Waits until the work has done so many rounds more, none of them wrong.
fn wait_for_rounds(guest: &mut Guest<'_>, more: u64) {
    let show = "cat /tmp/work/bad 2>/dev/null; cat /tmp/work/round 2>/dev/null || echo 0";
    let round = |guest: &mut Guest<'_>| -> u64 {
        let text = guest.check(show).unwrap();
        let parsed = text.parse();
        parsed.unwrap_or_else(|_| panic!("the work went wrong: {text}"))
    };
    let (first, deadline) = (round(guest), Instant::now() + ACTION_LIMIT);
    while round(guest) < first + more {
        assert!(Instant::now() < deadline, "the guest's work does not go on");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Takes a snapshot; `then` is what the guest does afterwards.
fn snapshot(server: &Server, guest: &Guest<'_>, then: &str, directory: &str) {
    let vmm = server.program("pindah-vmm");
    let argv = [
        &vmm,
        "snapshot",
        "--api",
        guest.socket(),
        "--then",
        then,
        directory,
    ];
    let client = server.spawn(&argv).unwrap();
    client.wait(ACTION_LIMIT).unwrap().ok().unwrap();
}

#[test]
#[ignore = "lab"]
fn snapshot_of_a_working_guest_with_disk_and_net_goes_on_when_restored() {
    let server = server();
    let disk = copy(&server, &artifacts().guest_disk().unwrap(), "snapshot.raw");
    let tap = "ip tuntap add snap mode tap vnet_hdr && ip link set dev snap master br0 up";
    server.check(tap).unwrap();
    let guest = server
        .guest("snapshot")
        .kernel(artifacts(), &kernel("6.12", Generic))
        .unwrap();
    let guest = guest.cpus(2).disk(&disk, DiskFormat::Raw).net("snap");
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    guest
        .check("mkdir /disk && mount -t ext4 /dev/vda /disk")
        .unwrap();
    guest
        .check("ip addr add 10.9.0.120/24 dev eth0 && ip link set eth0 up")
        .unwrap();
    guest
        .check(&format!("ping -c 1 -W 30 {HOST_ADDRESS}"))
        .unwrap();
    start_work(&mut guest);
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let booted = guest.check(boot_id).unwrap();

    snapshot(&server, &guest, "exit", "/root/snapshot");
    guest.wait_end().unwrap().ok().unwrap();
    for _ in 0..2 {
        let mut guest = server.restore("snapshot", "/root/snapshot").unwrap();
        guest.wait_state("running").unwrap();
        assert_eq!(guest.check(boot_id).unwrap(), booted);
        wait_for_rounds(&mut guest, 3);
        guest
            .check(&format!("ping -c 3 -W 30 {HOST_ADDRESS}"))
            .unwrap();
        assert_eq!(guest.check("nproc").unwrap(), "2");
        // Restored guests can be put down again.
        snapshot(&server, &guest, "exit", "/root/again");
        guest.wait_end().unwrap().ok().unwrap();
        server
            .check("rm -rf /root/snapshot && mv /root/again /root/snapshot")
            .unwrap();
    }
    server
        .check("rm -rf /root/snapshot /root/snapshot.raw")
        .unwrap();
}

#[test]
#[ignore = "lab"]
fn snapshot_of_a_guest_that_goes_on_leaves_it_at_work() {
    let server = server();
    let guest = server
        .guest("copy")
        .kernel(artifacts(), &kernel("6.1", Cloud))
        .unwrap();
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    start_work(&mut guest);
    guest.check("touch /tmp/before").unwrap();
    snapshot(&server, &guest, "continue", "/root/copy");
    guest.check("touch /tmp/after").unwrap();
    wait_for_rounds(&mut guest, 2);
    guest.power_off().unwrap();

    let mut guest = server.restore("copy", "/root/copy").unwrap();
    guest.wait_state("running").unwrap();
    guest
        .check("test -e /tmp/before && test ! -e /tmp/after")
        .unwrap();
    wait_for_rounds(&mut guest, 2);
    guest.power_off().unwrap();
    server.check("rm -rf /root/copy").unwrap();
}
