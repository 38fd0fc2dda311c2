//! Memory that a guest is asked to give back.

use pindah_agent::api::GuestView;
use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use pindah_agent::supervisor::Direct;
use pindah_agent::vmm_client::VmmClient;
use pindah_vmm_api::DeviceInfo;
use reqwest::Method;
use serde_json::json;

use super::harness::{Agent, kvm_opens};

/// What the guest's VMM asks it to give back.
async fn asked_mib(agent: &Agent, guest: &GuestView) -> u64 {
    let client = VmmClient::new(&Direct::api_socket(&agent.guest_directory(guest)));
    let mut devices = client.info().await.unwrap().devices.into_iter();
    let balloon = devices.find_map(|device| match device {
        DeviceInfo::Balloon { target_mib, .. } => Some(target_mib),
        _ => None,
    });
    balloon.unwrap()
}

#[tokio::test]
async fn guest_is_asked_to_give_memory_back_now_and_after_each_start() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    assert_eq!(asked_mib(&agent, &guest).await, 0);
    let said = agent.must(&["guest", "memory", "web", "40M"]);
    assert_eq!(said, "web is to keep to 40 MiB of its 64 MiB\n");
    assert_eq!(asked_mib(&agent, &guest).await, 24);
    let shown = agent.must(&["guest", "show", "web"]);
    assert!(shown.contains("64 MiB, asked to keep to 40 MiB"), "{shown}");

    // What it is to have after its next start changes nothing now.
    agent.must(&["guest", "edit", "web", "--memory", "128M"]);
    agent.must(&["guest", "memory", "web", "48M"]);
    assert_eq!(asked_mib(&agent, &guest).await, 16);
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.wait_state("web", GuestState::Stopped).await;
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(asked_mib(&agent, &guest).await, 80);

    agent.must(&["guest", "memory", "web", "all"]);
    assert_eq!(asked_mib(&agent, &guest).await, 0);
    assert_eq!(agent.guest("web").await.memory_target_mib, None);
}

#[tokio::test]
async fn memory_that_a_guest_cannot_keep_to_is_refused() {
    let agent = Agent::start().await;
    let disks = json!([{ "size_mib": 1 }]);
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": disks });
    let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    for (target, message) in [
        (json!(15), "target_mib = 15: must be 16 to 64 MiB"),
        (json!(65), "target_mib = 65: must be 16 to 64 MiB"),
        (json!(-1), "invalid value"),
        (json!("32M"), "invalid type"),
    ] {
        let body = json!({ "target_mib": target });
        let put = agent.request(Method::PUT, "/guests/web/memory", Some(&body));
        let (status, body) = put.await;
        assert_eq!(status, 422, "{body}");
        let text = body["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{text:?} does not say {message:?}");
    }
    assert_eq!(agent.guest("web").await.memory_target_mib, None);
    let refusal = agent.must_refuse(&["guest", "memory", "web", "much"]);
    assert!(refusal.contains("as in 512M"), "{refusal}");
}
