//! What guests and the node took, kept through the agent's ends.

use std::fs;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, kvm_opens};

async fn history(agent: &Agent, path: &str) -> Value {
    let (status, body) = agent.request(Method::GET, path, None).await;
    assert_eq!(status, 200, "{path}: {body}");
    body["data"].clone()
}

/// How many steps of a series are known.
pub fn known(history: &Value, series: &str) -> usize {
    let steps = history["series"][series].as_array().expect("a series");
    steps.iter().filter(|step| !step.is_null()).count()
}

async fn wait_history(agent: &Agent, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let history = history(agent, path).await;
        if wanted(&history) {
            return history;
        }
        assert!(Instant::now() < end, "{history}\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn history_of_guest_and_node_is_there_while_they_run_and_after_the_agents_end() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start_measuring().await;
    agent.upload_probe().await;
    agent.create_probe("web", "spin=1", json!({})).await;
    let measured = |history: &Value| known(history, "cpu_percent") > 1;
    let web = wait_history(&agent, "/guests/web/history", measured).await;
    assert_eq!(web["step_s"], 10);
    assert_eq!(web["missing_nodes"], json!([]));
    let steps = web["series"]["cpu_percent_max"].as_array().unwrap();
    assert!((360..=361).contains(&steps.len()), "{}", steps.len());
    let most = steps.iter().filter_map(Value::as_f64).fold(0.0, f64::max);
    assert!((5.0..400.0).contains(&most), "it spins: {most}");
    assert!(known(&web, "memory_bytes") > 0 && known(&web, "network_rx_bit_s") == 0);
    let node = wait_history(&agent, "/nodes/node1/history", measured).await;
    assert!(known(&node, "memory_percent_max") > 0, "{node}");

    // Its end writes the minute down that it was in.
    agent.terminate();
    agent.spawn().await;
    let coarse = "/guests/web/history?points=60";
    let after = history(&agent, coarse).await;
    assert_eq!(after["step_s"], 300);
    assert!(known(&after, "cpu_percent") > 0, "{after}");
    let again = history(&agent, "/guests/web/history").await;
    assert!(known(&again, "memory_bytes") > 0, "{again}");

    // And one that is damaged is put aside.
    agent.terminate();
    let path = agent.path("state/private/history.db");
    fs::write(&path, vec![7; 5000]).unwrap();
    agent.spawn().await;
    agent.guest("web").await;
    wait_history(&agent, "/guests/web/history", |history| {
        history["missing_nodes"] == json!([]) && known(history, "cpu_percent") > 0
    })
    .await;
    assert!(agent.path("state/private/history.damaged").exists());
    assert!(
        agent.log().contains("history begins anew"),
        "{}",
        agent.log()
    );
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused() {
    let agent = Agent::start().await;
    for (query, refused, reason) in [
        ("from=now", 400, "from = \"now\": must be a time since 1970"),
        ("points=1", 400, "points = 1: must be 2 to 1000"),
        ("points=1001", 400, "must be 2 to 1000"),
        (
            "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
            422,
            "must be before to",
        ),
        (
            "from=1969-01-02T00:00:00Z",
            422,
            "must be a time since 1970",
        ),
        ("since=1", 400, "unknown field `since`"),
    ] {
        let path = format!("/nodes/node1/history?{query}");
        let (status, body) = agent.request(Method::GET, &path, None).await;
        assert_eq!(status, refused, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{message}");
    }
    for path in ["/nodes/node9/history", "/guests/web/history"] {
        let (status, body) = agent.request(Method::GET, path, None).await;
        assert_eq!(status, 404, "{body}");
    }
    let far = "/nodes/node1/history?from=1970-01-02T00:00:00Z&to=9999-12-31T00:00:00Z&points=2";
    let history = history(&agent, far).await;
    assert_eq!(known(&history, "cpu_percent"), 0);
}
