//! The report of days, in all its forms, from a history that is there.

use std::fs;

use pindah_agent::client::{Client, Context};
use pindah_agent::clock::now_unix_ms;
use pindah_agent::metrics::history::{Bucket, History, NODE};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::harness::{Agent, answer};

const HOUR_S: u64 = 3600;
/// Minutes that a history takes in before it has written any.
const PART: usize = 50;

/// As if the agent had measured for 61 hours: a guest that took 20 % of a processor until 31 hours
/// ago, and 5 % since.
async fn measure(agent: &Agent, guest: Uuid) {
    let now_s = now_unix_ms() / 1000;
    let times: Vec<u64> = (now_s - 61 * HOUR_S..now_s).step_by(60).collect();
    for part in times.chunks(PART) {
        let history = History::new(&agent.path("state/private/history.db"));
        for time_s in part {
            let cpu = if *time_s < now_s - 31 * HOUR_S {
                20.0
            } else {
                5.0
            };
            let of_guest = [cpu, 1e8, 10.0, 3e5, 2e5, 1024.0, 2048.0].map(Some);
            let of_node = [cpu * 2.0, 1e9, 66.0, 4e5, 3e5, 1024.0, 4096.0].map(Some);
            history.take_in(
                *time_s,
                vec![
                    (guest, Bucket::sample(of_guest)),
                    (NODE, Bucket::sample(of_node)),
                ],
            );
        }
        history.close().await;
    }
}

#[tokio::test]
async fn report_compares_two_times_and_advises() {
    let mut agent = Agent::start().await;
    let spec = json!({ "name": "web", "memory_mib": 1024, "interfaces": [],
        "disks": [{ "size_mib": 1 }] });
    agent.begin(Method::POST, "/guests", Some(&spec)).await;
    let uuid = agent.guest("web").await.uuid;
    agent.terminate();
    measure(&agent, uuid).await;
    agent.spawn().await;

    let period = ["report", "--since", "30h", "--compare", "60h..32h"];
    let said = agent.must(&[&period[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&said).unwrap();
    let web = &report["guests"][0];
    assert_eq!(web["name"], "web");
    let cpu = |usage: &Value| usage["cpu_percent"]["average"].clone();
    assert_eq!(
        (cpu(&web["usage"]), cpu(&web["before"])),
        (json!(5.0), json!(20.0))
    );
    assert_eq!(web["usage"]["network_kbit_s"]["average"], 500.0);
    assert_eq!(web["usage"]["disk_kib_s"]["average"], 3.0);
    let p95 = web["before"]["cpu_percent"]["p95"].as_f64().unwrap();
    assert!((19.8..=20.2).contains(&p95), "{web}");
    let measured = web["usage"]["measured_s"].as_u64().unwrap();
    assert!(
        measured > 29 * HOUR_S && measured <= 30 * HOUR_S + 60,
        "{web}"
    );
    let node = &report["nodes"][0];
    assert_eq!(
        (&node["name"], cpu(&node["before"])),
        (&json!("node1"), json!(40.0))
    );
    assert_eq!(report["missing_nodes"], json!([]));
    let sizes = report["advice"]["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 1, "{report}");
    assert_eq!(sizes[0]["command"], "pindah guest edit web --memory 192M");

    let text = agent.must(&period);
    for word in [
        "NODE",
        "GUEST",
        "  compared",
        "pindah guest edit web --memory 192M",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let csv = agent.must(&[&period[..], &["--csv"]].concat());
    assert_eq!(csv.lines().count(), 5, "{csv}");
    assert!(csv.starts_with("kind,name,since,until,measured_s,cpu_percent_average"));
    let page = agent.path("report.html");
    agent.must(&[&period[..], &["--html", page.to_str().unwrap()]].concat());
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.contains("<td>web</td>"),
        "{page}"
    );

    // Who may see one guest sees that one, and no node.
    let token = json!({ "name": "v", "guests": { uuid.to_string(): "viewer" } });
    let (status, made) = agent.request(Method::POST, "/tokens", Some(&token)).await;
    assert_eq!(status, 201, "{made}");
    let mut context = Context::load(&agent.context()).unwrap();
    made["data"]["text"]
        .as_str()
        .unwrap()
        .clone_into(&mut context.token);
    let viewer = Client::new(context).unwrap();
    let (_, seen) = answer(viewer.request(Method::GET, "/report")).await;
    assert_eq!(
        seen["data"]["guests"].as_array().map(Vec::len),
        Some(1),
        "{seen}"
    );
    assert_eq!(seen["data"]["nodes"], json!([]), "{seen}");
    assert!(seen["data"]["advice"].is_null(), "{seen}");

    for (arguments, reason) in [
        (&["--since", "soon"][..], "\"soon\" is no time"),
        (&["--compare", "before"], "\"before\" is no period"),
        (&["--since", "1d", "--until", "2d"], "must be before until"),
    ] {
        let refused = agent.must_refuse(&[&["report"][..], arguments].concat());
        assert!(refused.contains(reason), "{refused}");
    }
    let (status, body) = agent
        .request(
            Method::GET,
            "/report?compare_until=2026-01-01T00:00:00Z",
            None,
        )
        .await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (422, &json!("invalid_value")),
        "{body}"
    );
}
