//! The agent may be killed at any moment; guests notice nothing.

use std::time::Duration;

use pindah_agent::domain::{TaskState, Wanted};
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, kvm_opens};
use super::programs::pindahd;

/// Longest gap between two heartbeats of a guest that nobody disturbs, in µs. The hosts are busy.
const GAP_MAX_US: u64 = 1_000_000;

fn assert_unbroken(beats: &[Value]) {
    let numbers: Vec<u64> = beats
        .iter()
        .map(|beat| beat["seq"].as_u64().unwrap())
        .collect();
    let expected: Vec<u64> = (0..numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "the guest started anew");
    let last = beats.last().unwrap();
    let gap = last["gap_max_total_us"].as_u64().unwrap();
    assert!(gap < GAP_MAX_US, "the guest stood for {gap} µs");
}

#[tokio::test]
async fn guest_goes_on_while_the_agent_is_killed_and_starts_again() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let before = agent.create_probe("web", "beat_ms=50", json!({})).await;
    agent.wait_reports(&before, "beat", 5).await;
    for _ in 0..3 {
        agent.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        agent.spawn().await;
        let after = agent.guest("web").await;
        assert_eq!((after.state, after.pid), (GuestState::Running, before.pid));
    }
    let beats = agent.reports(&before, "beat").len();
    let beats = agent.wait_reports(&before, "beat", beats + 10).await;
    assert_unbroken(&beats);
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
}

#[tokio::test]
async fn paused_guest_is_found_paused_and_goes_on() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    agent.request(Method::POST, "/guests/web/pause", None).await;
    agent.kill();
    agent.spawn().await;
    assert_eq!(agent.guest("web").await.state, GuestState::Paused);
    let (status, _) = agent
        .request(Method::POST, "/guests/web/resume", None)
        .await;
    assert_eq!(status, 200);
    let beats = agent.reports(&guest, "beat").len();
    agent.wait_reports(&guest, "beat", beats + 2).await;
}

#[tokio::test]
async fn guest_that_ended_while_the_agent_was_away_is_where_intent_says() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let wanted = agent.create_probe("wanted", "", json!({})).await;
    agent.create_probe("unwanted", "", json!({})).await;
    agent
        .begin(Method::POST, "/guests/unwanted/stop", None)
        .await;
    agent.kill();
    let identity = agent.guest_directory(&wanted).join("process.json");
    let identity = std::fs::read(identity).unwrap();
    let identity: pindah_agent::supervisor::Identity = serde_json::from_slice(&identity).unwrap();
    identity.kill().unwrap();
    identity.ended().await.unwrap();
    agent.spawn().await;
    let again = agent.wait_state("wanted", GuestState::Running).await;
    assert_ne!(again.pid, wanted.pid);
    assert_eq!(agent.guest("unwanted").await.state, GuestState::Stopped);
}

#[tokio::test]
async fn guest_that_shut_down_while_the_agent_was_away_stays_off() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let off = "exit_after_ms=2000 exit_by=poweroff";
    let before = agent.create_probe("web", off, json!({})).await;
    agent.kill();
    let identity = agent.guest_directory(&before).join("process.json");
    let identity = std::fs::read(identity).unwrap();
    let identity: pindah_agent::supervisor::Identity = serde_json::from_slice(&identity).unwrap();
    identity.ended().await.unwrap();
    agent.spawn().await;
    let after = agent.guest("web").await;
    assert_eq!(
        (after.state, after.wanted, after.reason.as_deref()),
        (
            GuestState::Stopped,
            Wanted::Stopped,
            Some("the guest shut itself down")
        )
    );
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.wait_state("web", GuestState::Running).await;
}

#[tokio::test]
async fn agent_killed_between_start_and_note_finds_the_guest_all_the_same() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let before = agent.create_probe("web", "", json!({})).await;
    agent.kill();
    std::fs::remove_file(agent.guest_directory(&before).join("process.json")).unwrap();
    agent.spawn().await;
    let after = agent.guest("web").await;
    assert_eq!((after.state, after.pid), (GuestState::Running, before.pid));
}

#[tokio::test]
async fn task_that_was_under_way_ends_as_failed_and_half_a_guest_is_removed() {
    let mut agent = Agent::start().await;
    // Long enough to be killed in the middle of its copy.
    let (status, body) = agent.upload("disk", vec![0x5a; 200 << 20]).await;
    assert_eq!(status, 201, "{body}");
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "image": "disk", "format": "raw" }] });
    let (status, answer) = agent.request(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(status, 202, "{answer}");
    agent.kill();
    agent.spawn().await;
    let task = agent
        .wait_task(answer["task"]["id"].as_str().unwrap())
        .await;
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    assert!(
        task.error
            .unwrap()
            .starts_with("the agent ended while the task ran")
    );
    assert_eq!(agent.request(Method::GET, "/guests/web", None).await.0, 404);
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn cancelled_create_leaves_nothing() {
    let agent = Agent::start().await;
    let (status, body) = agent.upload("disk", vec![0x5a; 200 << 20]).await;
    assert_eq!(status, 201, "{body}");
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "image": "disk", "format": "raw" }] });
    let (_, answer) = agent.request(Method::POST, "/guests", Some(&body)).await;
    let id = answer["task"]["id"].as_str().unwrap();
    let (status, _) = agent
        .request(Method::POST, &format!("/tasks/{id}/cancel"), None)
        .await;
    assert_eq!(status, 200);
    let task = agent.wait_task(id).await;
    assert_eq!(task.state, TaskState::Cancelled, "{task:?}");
    assert_eq!(agent.request(Method::GET, "/guests/web", None).await.0, 404);
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn stop_that_was_under_way_is_finished_by_the_next_agent() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    let body = json!({ "deadline_s": 600 });
    let (status, answer) = agent
        .request(Method::POST, "/guests/web/stop", Some(&body))
        .await;
    assert_eq!(status, 202, "{answer}");
    agent
        .wait_guest("web", |guest| guest.wanted == Wanted::Stopped)
        .await;
    agent.kill();
    agent.spawn().await;
    let task = agent
        .wait_task(answer["task"]["id"].as_str().unwrap())
        .await;
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    agent.wait_state("web", GuestState::Stopped).await;
    assert!(!agent.guest_directory(&guest).join("api").exists());
}

#[tokio::test]
async fn second_agent_on_the_same_state_is_refused() {
    let agent = Agent::start().await;
    let output = agent.run(
        pindahd().to_str().unwrap(),
        &["--state-dir", agent.path("state").to_str().unwrap()],
    );
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("another pindahd has"), "{message}");
}

#[tokio::test]
async fn intent_survives_the_restart() {
    let mut agent = Agent::start().await;
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "notes": "kept",
        "disks": [{ "size_mib": 1 }] });
    agent.begin(Method::POST, "/guests", Some(&body)).await;
    let before = agent.guest("web").await;
    agent.kill();
    agent.spawn().await;
    let after = agent.guest("web").await;
    assert_eq!(after.uuid, before.uuid);
    assert_eq!(
        (after.notes.as_str(), after.wanted),
        ("kept", Wanted::Stopped)
    );
}
