//! A disk that its host fails for a while: its guest stands, and goes on by itself.

use std::path::PathBuf;
use std::process::Command;

use pindah_agent::api::GuestView;
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::json;

use super::harness::{Agent, is_root, kvm_opens};

/// A file that nobody may write, through a descriptor that is open either, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    /// `None`: its file system has no such thing.
    fn make(path: PathBuf) -> Option<Self> {
        chattr("+i", &path).then_some(Self(path))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(change: &str, path: &PathBuf) -> bool {
    let changed = Command::new("chattr").arg(change).arg(path).status();
    changed.is_ok_and(|status| status.success())
}

#[tokio::test]
async fn guest_whose_disk_fails_stands_and_goes_on_when_it_is_well_again() {
    if !kvm_opens() || !is_root() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let cmdline = "beat_ms=100 blk=1 blk_op=seqwrite blk_bs=65536 blk_s=0 blk_iops=200";
    let disks = json!({ "disks": [{ "size_mib": 64 }] });
    let guest = agent.create_probe("web", cmdline, disks).await;
    agent.wait_reports(&guest, "beat", 2).await;
    let volumes = agent.path("state/pool/volumes");
    let disk = volumes.join(guest.uuid.to_string()).join("disk0.qcow2");

    for restart in [false, true] {
        let Some(immutable) = Immutable::make(disk.clone()) else {
            eprintln!("skipped: no immutable files here");
            return;
        };
        let stands = agent.wait_state("web", GuestState::Paused).await;
        let since = stands.since_unix_ms;
        let reason = stands.reason.unwrap_or_default();
        assert!(reason.contains("disk0: "), "{reason}");
        assert!(reason.contains("goes on when its storage"), "{reason}");
        let again = |now: &GuestView| now.state == GuestState::Paused && now.since_unix_ms > since;
        agent.wait_guest("web", again).await;
        if restart {
            agent.kill();
            drop(immutable);
            agent.spawn().await;
        } else {
            drop(immutable);
        }
        let beats = agent.reports(&guest, "beat").len();
        agent.wait_reports(&guest, "beat", beats + 20).await;
        agent.wait_state("web", GuestState::Running).await;
    }
    let off = json!({ "force": true });
    agent
        .begin(Method::POST, "/guests/web/stop", Some(&off))
        .await;
    let mut check = Command::new("qemu-img");
    let checked = check.args(["check", "-q"]).arg(&disk).status().unwrap();
    // What failed half-way may have cost a cluster (3), and nothing else.
    assert!(matches!(checked.code(), Some(0 | 3)), "{checked}");
}
