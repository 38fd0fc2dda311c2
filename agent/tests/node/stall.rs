//! A pool whose storage stalls.

use std::time::{Duration, Instant};

use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, kvm_opens};
use super::silence::{PROMPT, Silence};

async fn wait_pool(agent: &Agent, state: &str) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let before = Instant::now();
        let (_, shown) = agent.request(Method::GET, "/pools/nas", None).await;
        assert!(before.elapsed() < PROMPT);
        let here = shown["data"]["nodes"][0].clone();
        if here["state"] == state {
            return here;
        }
        assert!(Instant::now() < end, "{shown}\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn pool_that_stalls_holds_up_nothing_else_and_goes_on() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    let path = agent.path("nas");
    std::fs::create_dir(&path).unwrap();
    let spec = json!({ "name": "nas", "kind": "dir", "path": path, "shared": true });
    let (status, body) = agent.request(Method::POST, "/pools", Some(&spec)).await;
    assert_eq!(status, 201, "{body}");
    agent.upload_probe().await;
    let disks = json!({ "disks": [{ "size_mib": 1, "pool": "nas" }] });
    agent.create_probe("web", "", disks.clone()).await;

    let Some(silence) = Silence::over(&path) else {
        return;
    };
    // While it is not known yet that it stalls, too.
    for path in ["/guests", "/nodes", "/images", "/pools", "/tasks"].repeat(4) {
        let before = Instant::now();
        let (status, body) = agent.request(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        let took = before.elapsed();
        assert!(took < PROMPT, "{path}: {took:?}");
    }
    let stalled = wait_pool(&agent, "stalled").await;
    let reason = stalled["reason"].as_str().unwrap();
    assert!(reason.contains("does not answer"), "{reason}");
    let web = agent.guest("web").await;
    assert_eq!(web.state, GuestState::Running);
    assert!(web.reason.unwrap().contains("pool nas"));

    // Many who want something of it, and nobody waits: not they, not the others.
    let spec = json!({ "name": "new", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1, "pool": "nas" }] });
    let began = Instant::now();
    for _ in 0..20 {
        let (status, body) = agent.request(Method::POST, "/guests", Some(&spec)).await;
        assert_eq!(status, 503, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("pool nas has not answered"), "{message}");
        for path in ["/guests", "/nodes", "/images", "/pools", "/tasks"] {
            let (status, body) = agent.request(Method::GET, path, None).await;
            assert_eq!(status, 200, "{path}: {body}");
        }
    }
    let each = began.elapsed() / 120;
    assert!(each < PROMPT, "{each:?} each");
    agent.create_probe("beside", "", json!({})).await;
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");

    // An agent that starts meanwhile serves, and one that is told to end ends.
    let before = Instant::now();
    agent.terminate();
    agent.spawn().await;
    assert!(
        before.elapsed() < Duration::from_secs(60),
        "{:?}",
        before.elapsed()
    );
    wait_pool(&agent, "stalled").await;
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    assert!(task.error.unwrap().contains("pool nas has not answered"));

    drop(silence);
    wait_pool(&agent, "ready").await;
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(agent.guest("web").await.reason, None);
}
