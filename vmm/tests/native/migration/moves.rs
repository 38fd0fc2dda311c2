//! Guests of all sizes and tempers move, and nothing of them is lost.

use pindah_vmm_api::{MigrationReport, SwitchoverReport};
use serde_json::json;

use super::super::api_client::request;
use super::super::harness::{Guest, Setup, kvm_opens};
use super::track::Track;
use super::{QUIET, Sent, Site};

/// A guest, and how it moves.
struct Case {
    name: &'static str,
    mib: u64,
    cpus: u64,
    cmdline: &'static str,
    site: fn() -> Site,
    disk: Disk,
    /// More keys of the disk.
    disk_keys: &'static str,
    balloon: bool,
    /// Its RAM lies in a file.
    memfd: bool,
    /// Its vCPUs must be held for it to move.
    is_held: bool,
    /// It must leave pages behind, or must not; nothing without hybrid mode.
    leaves_pages: Option<bool>,
    send: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Disk {
    None,
    Raw,
    Qcow2,
}

const CASE: Case = Case {
    name: "",
    mib: 64,
    cpus: 1,
    cmdline: "",
    site: Site::new,
    disk: Disk::None,
    disk_keys: "",
    balloon: false,
    memfd: false,
    is_held: false,
    leaves_pages: None,
    send: COMPARED,
};

/// A busy host is forgiven: what is asked for here is that guests move, not how fast.
const PATIENT: [&str; 2] = ["--downtime-ms", "1000"];
/// With a checksum of all RAM, taken while the guest stands.
const COMPARED: &[&str] = &["--verify-memory"];

impl Case {
    fn run(&self) {
        let site = (self.site)();
        let Some(setup) = self.setup(&site) else {
            return;
        };
        let mut source = setup.twin().start();
        source.wait_event("ready");
        if !matches!(self.disk, Disk::None) {
            source.wait_event("blk");
        }
        if self.balloon {
            let target = json!({ "target_mib": 16 });
            let (status, _) = request(&source.path("api"), "PUT", "/api/v1/balloon", Some(&target));
            assert_eq!(status / 100, 2);
        }
        let (mut destination, address) = site.receive(&setup);
        let arguments = [&PATIENT, self.send].concat();
        let sent = site.send(&source, address, &arguments).wait();
        let moved = Moved::check(&mut source, &mut destination, sent);
        println!("{:24} {moved}", self.name);
        self.check(&moved, &destination);
    }

    /// What the case is about.
    fn check(&self, moved: &Moved, destination: &Guest) {
        if self.is_held {
            assert!(moved.report.throttle_percent > 0, "{:?}", moved.report);
        }
        if let Some(leaves_pages) = self.leaves_pages {
            assert_eq!(moved.report.throttle_percent, 0, "{:?}", moved.report);
            let postcopy = moved.report.postcopy.as_ref();
            assert_eq!(postcopy.is_some(), leaves_pages, "{:?}", moved.report);
        }
        if self.balloon {
            let (_, info) = request(&destination.path("api"), "GET", "/api/v1/vm", None);
            let devices = info["devices"].as_array().expect("a list of devices");
            let balloon = devices.iter().find(|device| device["kind"] == "balloon");
            assert_eq!(balloon.expect("a balloon")["target_mib"], 16, "{info}");
        }
    }

    fn setup(&self, site: &Site) -> Option<Setup> {
        let mut cmdline = format!("{QUIET} beat_ms=25 cpus={} {}", self.cpus, self.cmdline);
        let disk = match self.disk {
            Disk::None => None,
            Disk::Raw => Some(site.raw_disk(64)),
            Disk::Qcow2 => Some(site.qcow2_disk(64)?),
        };
        if disk.is_some() {
            cmdline += " blk=1 blk_op=verify blk_qd=16 blk_s=0 blk_iops=2000";
        }
        let setup = Setup::new(&cmdline)
            .memory_mib(self.mib)
            .config(&format!("cpus = {{ count = {} }}", self.cpus))
            .config(if self.balloon { "balloon = {}" } else { "" })
            .table(disk.as_deref().unwrap_or_default())
            .table(self.disk_keys);
        let setup = if self.memfd {
            setup.memory_key("backing = 'memfd'")
        } else {
            setup
        };
        Some(setup)
    }
}

/// A move that went well.
pub struct Moved {
    pub report: MigrationReport,
    pub blackout_us: u64,
}

impl Moved {
    /// That the guest has gone from `source` to `destination`, with all that it had.
    pub fn check(source: &mut Guest, destination: &mut Guest, sent: Sent) -> Self {
        let logs = format!("{}\n{}", source.log(), destination.log());
        assert!(sent.status.success(), "{sent:?}\n{logs}");
        assert!(sent.output.contains("Migrated in"), "{}", sent.output);
        let report = sent.report.expect("send has succeeded");
        assert_eq!(source.wait_exit().code(), Some(5), "{logs}");
        let mut track = Track::of_arrival(destination);
        let runners = [source.pid(), destination.pid()].map(u64::from);
        assert!(track.runners().ends_with(&runners), "{:?}", track.runners());
        let blackout_us = track.blackout_us(destination.pid());
        track.verify(destination);
        if let Some(before) = track.last("blk").map(|blk| blk["ios"].as_u64()) {
            track.extend(destination, "more requests of the disk", |lines| {
                let last = lines.last().filter(|line| line["ev"] == "blk");
                last.is_some_and(|line| line["ios"].as_u64() > before)
            });
        }
        track.assert_whole();
        let least = must_have_stood_us(&report.switchover);
        assert!(least > 0 && report.downtime_us >= least, "{report:?}");
        assert!(
            blackout_us >= least,
            "the guest saw {blackout_us} us, and stood for {least}: {report:?}"
        );
        Self {
            report,
            blackout_us,
        }
    }
}

/// Steps that the guest stood for and that follow each other.
fn must_have_stood_us(steps: &SwitchoverReport) -> u64 {
    steps.last_pages_us + steps.save_us + steps.ownership_us + steps.restore_us
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let report = &self.report;
        write!(
            f,
            "guest saw {:7.2} ms, VMM says {:7.2} ms; {:6} ms in all, {:7.1} MiB sent, \
             {} rounds, held {} %",
            self.blackout_us as f64 / 1e3,
            report.downtime_us as f64 / 1e3,
            report.total_ms,
            report.sent_bytes as f64 / f64::from(1 << 20),
            report.rounds.len(),
            report.throttle_percent,
        )?;
        let Some(postcopy) = &report.postcopy else {
            return Ok(());
        };
        write!(
            f,
            "; {} pages fetched in {} ms, {} on demand in {:.2} ms each, {:.2} ms at most",
            postcopy.pages,
            postcopy.duration_us / 1000,
            postcopy.demanded_pages,
            postcopy.fault_median_us as f64 / 1e3,
            postcopy.fault_max_us as f64 / 1e3,
        )
    }
}

fn run(cases: &[Case]) {
    if kvm_opens() {
        cases.iter().for_each(Case::run);
    }
}

#[test]
fn small_guest_moves_whatever_it_writes() {
    run(&[
        Case {
            name: "idle",
            cmdline: "ws_mib=32",
            ..CASE
        },
        Case {
            name: "50 MB/s counter",
            cpus: 2,
            cmdline: "ws_mib=32 rate_mib_s=50",
            ..CASE
        },
        Case {
            name: "50 MB/s random, plain",
            cmdline: "ws_mib=32 rate_mib_s=50 content=random rewrite=1",
            site: Site::plain,
            send: &["--verify-memory", "--connections", "3"],
            ..CASE
        },
        Case {
            name: "500 MB/s text",
            cpus: 2,
            cmdline: "ws_mib=32 rate_mib_s=500 content=text",
            ..CASE
        },
        Case {
            name: "500 MB/s random",
            cmdline: "ws_mib=32 rate_mib_s=500 content=random",
            send: &["--compression", "none", "--delta-cache", "0M"],
            ..CASE
        },
    ]);
}

#[test]
fn guest_that_writes_twice_what_the_link_carries_is_held_and_moves() {
    // Random content that is made anew at each write has no short difference, and does not
    // compress; the working set takes the link four times as long as the target. A busy host makes
    // the guest slower: it is asked for twice of what it needs.
    run(&[
        Case {
            name: "twice the link, 1 vCPU",
            cmdline: "ws_mib=16 rate_mib_s=16 content=random rewrite=1",
            is_held: true,
            send: &["--verify-memory", "--bandwidth", "4M"],
            ..CASE
        },
        Case {
            name: "twice the link, 2 vCPUs",
            cpus: 2,
            cmdline: "ws_mib=16 rate_mib_s=16 content=random rewrite=1",
            is_held: true,
            send: &["--bandwidth", "4M"],
            ..CASE
        },
    ]);
}

#[test]
fn guest_that_writes_twice_what_the_link_carries_leaves_pages_behind_in_hybrid_mode() {
    const HYBRID: &[&str] = &["--mode", "hybrid", "--bandwidth", "4M"];
    run(&[
        Case {
            name: "hybrid, 1 vCPU",
            cmdline: "ws_mib=16 rate_mib_s=16 content=random rewrite=1",
            leaves_pages: Some(true),
            send: HYBRID,
            ..CASE
        },
        Case {
            name: "hybrid, 2 vCPUs, plain",
            cpus: 2,
            cmdline: "ws_mib=16 rate_mib_s=16 content=random rewrite=1",
            site: Site::plain,
            leaves_pages: Some(true),
            send: HYBRID,
            ..CASE
        },
        Case {
            name: "hybrid, 2 vCPUs, disk",
            cpus: 2,
            cmdline: "ws_mib=16 rate_mib_s=16 content=random rewrite=1",
            disk: Disk::Raw,
            leaves_pages: Some(true),
            send: HYBRID,
            ..CASE
        },
        Case {
            name: "hybrid, memfd, balloon",
            balloon: true,
            memfd: true,
            cmdline: "ws_mib=16 rate_mib_s=16 content=random rewrite=1",
            leaves_pages: Some(true),
            send: HYBRID,
            ..CASE
        },
        Case {
            name: "hybrid, idle",
            cmdline: "ws_mib=16",
            leaves_pages: Some(false),
            send: &["--mode", "hybrid", "--verify-memory"],
            ..CASE
        },
    ]);
}

#[test]
fn large_guest_moves() {
    run(&[
        Case {
            name: "512 MiB, 50 MB/s",
            mib: 512,
            cmdline: "ws_mib=256 rate_mib_s=50",
            ..CASE
        },
        Case {
            name: "512 MiB, random",
            mib: 512,
            cpus: 2,
            cmdline: "ws_mib=128 content=random rate_mib_s=50",
            send: &[],
            ..CASE
        },
        Case {
            name: "4 GiB",
            mib: 4096,
            cpus: 2,
            cmdline: "ws_mib=256 rate_mib_s=50",
            send: &[],
            ..CASE
        },
    ]);
}

#[test]
fn guest_moves_with_its_devices() {
    run(&[
        Case {
            name: "raw disk",
            cmdline: "ws_mib=16 rate_mib_s=20",
            disk: Disk::Raw,
            ..CASE
        },
        Case {
            name: "disk at its limits",
            cmdline: "ws_mib=16 rate_mib_s=20",
            disk: Disk::Raw,
            disk_keys: "limits = { iops = 10 }",
            ..CASE
        },
        Case {
            name: "qcow2 disk, 2 vCPUs",
            cpus: 2,
            cmdline: "ws_mib=16 rate_mib_s=20",
            disk: Disk::Qcow2,
            ..CASE
        },
        Case {
            name: "balloon",
            cmdline: "ws_mib=32 rate_mib_s=50 content=text",
            balloon: true,
            ..CASE
        },
    ]);
}
