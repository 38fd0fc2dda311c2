//! Events with details: what comes again and again.

use reqwest::Method;
use serde_json::json;

use super::harness::{Agent, DEADLINE, kvm_opens};

#[tokio::test]
async fn who_asks_for_details_hears_what_guests_take_and_tasks_log() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start_measuring().await;
    let listen = async |path: &str| {
        let stream = agent.client().request(Method::GET, path);
        stream.send().await.unwrap()
    };
    let mut details = listen("/events?details=true").await;
    let mut plain = listen("/events").await;
    agent.upload_probe().await;
    agent.create_probe("web", "", json!({})).await;
    let hear = async |stream: &mut reqwest::Response, wanted: &[&str]| {
        let mut heard = String::new();
        while !wanted.iter().all(|one| heard.contains(one)) {
            let piece = tokio::time::timeout(DEADLINE, stream.chunk()).await;
            let piece = piece.unwrap_or_else(|_| panic!("{wanted:?}: {heard}"));
            heard.push_str(&String::from_utf8_lossy(&piece.unwrap().expect("a stream")));
        }
        heard
    };
    let wanted = ["guest_usage", "node_usage", "task_log"].map(|one| format!("\"type\":\"{one}\""));
    let wanted = [&wanted[0], &wanted[1], &wanted[2]].map(String::as_str);
    let heard = hear(&mut details, &wanted).await;
    assert!(heard.contains("\"what\":\"images\""), "{heard}");
    agent.must(&["guest", "edit", "web", "--notes", "seen"]);
    let heard = hear(&mut plain, &["guest_changed", "running"]).await;
    for detail in wanted {
        assert!(!heard.contains(detail), "{heard}");
    }
}
