//! Guests that crash.

use futures_util::{SinkExt, StreamExt};
use pindah_agent::domain::Wanted;
use pindah_agent::guests::GuestState;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::harness::{Agent, DEADLINE, kvm_opens};

/// Types it, and waits until the console ends with the guest.
async fn crash(agent: &Agent) {
    let mut socket = agent
        .client()
        .websocket("/guests/web/console")
        .await
        .unwrap();
    let typed = Message::Binary(b"crash\n".to_vec().into());
    socket.send(typed).await.unwrap();
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(DEADLINE, end)
        .await
        .expect("the guest crashes");
}

#[tokio::test]
async fn crashed_guest_starts_again_and_waits_longer_each_time() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let mut guest = agent.create_probe("web", "", json!({})).await;
    agent.wait_reports(&guest, "ready", 1).await;
    for crashes in 1..=2 {
        crash(&agent).await;
        let down = agent.wait_state("web", GuestState::Crashed).await;
        let reason = down.reason.unwrap();
        assert!(reason.contains("triple fault"), "{reason}");
        assert_eq!(down.wanted, Wanted::Running);
        let again = agent.wait_state("web", GuestState::Running).await;
        assert_eq!(again.crashes, crashes);
        assert_ne!(again.pid, guest.pid);
        let down_ms = again.since_unix_ms - down.since_unix_ms;
        assert!(
            down_ms >= u64::from(crashes) * 1000,
            "back after {down_ms} ms"
        );
        agent
            .wait_reports(&guest, "ready", crashes as usize + 1)
            .await;
        guest = again;
    }
}

#[tokio::test]
async fn crashed_guest_stays_down_if_its_policy_says_so() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent
        .create_probe("web", "", json!({ "on_crash": "stay" }))
        .await;
    agent.wait_reports(&guest, "ready", 1).await;
    crash(&agent).await;
    let down = agent.wait_state("web", GuestState::Crashed).await;
    assert!(down.reason.unwrap().contains("triple fault"));
    assert_eq!(down.wanted, Wanted::Stopped);
    agent.kill();
    agent.spawn().await;
    assert_eq!(agent.guest("web").await.state, GuestState::Stopped);
}

#[tokio::test]
async fn guest_that_waits_for_its_restart_can_be_stopped() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    agent.wait_reports(&guest, "ready", 1).await;
    crash(&agent).await;
    agent.wait_state("web", GuestState::Crashed).await;
    agent
        .begin(reqwest::Method::POST, "/guests/web/stop", None)
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(agent.guest("web").await.state, GuestState::Stopped);
}
