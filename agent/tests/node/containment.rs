//! Whom a guest's process is.

use std::fs;

use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::json;

use super::harness::{Agent, is_root, kvm_opens};

#[tokio::test]
async fn guest_runs_as_a_user_of_its_own_without_capabilities() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = Agent::start_configured("vmm_user = '64990:64991'").await;
    agent.upload_probe().await;
    let guest = agent
        .create_probe("web", "", json!({ "disks": [{ "size_mib": 8 }] }))
        .await;
    let status = fs::read_to_string(format!("/proc/{}/status", guest.pid.unwrap())).unwrap();
    for line in [
        "Uid:\t64990\t64990\t64990\t64990",
        "Gid:\t64991\t64991\t64991\t64991",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.lines().any(|one| one == line), "{line} in {status}");
    }
    // The next agent finds it, and it does what it is asked to.
    agent.kill();
    agent.spawn().await;
    assert_eq!(agent.guest("web").await.pid, guest.pid);
    agent.request(Method::POST, "/guests/web/pause", None).await;
    agent.wait_state("web", GuestState::Paused).await;
    agent
        .request(Method::POST, "/guests/web/resume", None)
        .await;
    agent.wait_state("web", GuestState::Running).await;
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
}
