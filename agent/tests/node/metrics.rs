//! What guests and the node take, as API, Prometheus and command line show it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pindah_agent::api::GuestView;
use pindah_agent::client::{Client, Context};
use pindah_agent::guests::GuestState;
use prometheus_parse::{Scrape, Value as Measured};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, kvm_opens};
use super::programs::pindah;

/// More than a guest with one virtual CPU can take, in per cent of a processor: a jump.
const JUMP_PERCENT: f64 = 300.0;

fn cpu(guest: &GuestView) -> f64 {
    guest.usage.cpu_percent.unwrap_or(0.0)
}

/// `/metrics`, through a parser that is not ours.
async fn scrape(agent: &Agent) -> Scrape {
    let request = agent.client().request(Method::GET, "/../../metrics");
    let answer = agent.client().send(request).await.expect("metrics");
    let kind = answer.headers()["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = answer.text().await.unwrap();
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    Scrape::parse(lines).expect("Prometheus's text format")
}

fn value(scrape: &Scrape, metric: &str, guest: &str) -> Option<f64> {
    let mut samples = scrape.samples.iter();
    let found = samples
        .find(|sample| sample.metric == metric && sample.labels.get("guest") == Some(guest))?;
    match found.value {
        Measured::Counter(value) | Measured::Gauge(value) | Measured::Untyped(value) => Some(value),
        _ => None,
    }
}

#[tokio::test]
async fn busy_guest_shows_more_than_an_idle_one_everywhere() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start_measuring().await;
    agent.upload_probe().await;
    let disk = json!({ "disks": [{ "size_mib": 8, "format": "raw" }] });
    agent
        .create_probe("idle", "beat_ms=1000 tick_us=100000", json!({}))
        .await;
    let busy = "spin=1 blk=1 blk_op=randwrite blk_s=600 blk_iops=200";
    agent.create_probe("busy", busy, disk).await;

    let end = Instant::now() + DEADLINE;
    let busy = loop {
        let (busy, idle) = (agent.guest("busy").await, agent.guest("idle").await);
        if cpu(&busy) > cpu(&idle) + 5.0
            && idle.usage.cpu_percent.is_some()
            && busy.usage.disk_write_kib_per_s > Some(1.0)
        {
            break busy;
        }
        assert!(Instant::now() < end, "{busy:?}\n{idle:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(busy.usage.memory_resident_mib > Some(2), "{busy:?}");
    assert_eq!(busy.usage.network_rx_kbit_per_s, None, "it has no network");
    let node = agent.node().await;
    assert!(node.usage.cpu_percent > Some(0.0), "{node:?}");
    assert!(node.usage.memory_used_mib > Some(0), "{node:?}");

    let (status, body) = agent.request(Method::GET, "/metrics", None).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["data"]["node"], "node1");
    assert_eq!(body["data"]["guests"].as_array().unwrap().len(), 2);

    let scrape = scrape(&agent).await;
    let seconds = |guest| value(&scrape, "pindah_guest_cpu_seconds_total", guest).unwrap();
    assert!(seconds("busy") > seconds("idle"));
    assert!(value(&scrape, "pindah_guest_disk_written_bytes_total", "busy") > Some(4096.0));
    assert_eq!(value(&scrape, "pindah_guest_up", "idle"), Some(1.0));
    assert_eq!(value(&scrape, "pindah_guest_vmm_up", "idle"), Some(1.0));
    for sample in &scrape.samples {
        let counter = matches!(sample.value, Measured::Counter(_));
        assert_eq!(counter, sample.metric.ends_with("_total"), "{sample:?}");
        assert!(scrape.docs.contains_key(&sample.metric), "{sample:?}");
        assert_eq!(sample.labels.get("node"), Some("node1"), "{sample:?}");
    }

    let (ok, text, error) = agent.pindah(&["top", "--once", "--json"]);
    assert!(ok, "{error}");
    let top: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = top["guests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|guest| guest["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["busy", "idle"], "the busiest comes first");
    assert_eq!(top["nodes"][0]["name"], "node1");
    let (ok, text, error) = agent.pindah(&["top", "--once"]);
    assert!(ok, "{error}");
    for word in ["node1", "busy", "idle", "CPU %", "RX kbit/s"] {
        assert!(text.contains(word), "{text}");
    }
    let (_, list, _) = agent.pindah(&["guest", "list"]);
    assert!(list.contains("CPU %"), "{list}");
    let (_, node, _) = agent.pindah(&["node", "show", "node1"]);
    assert!(node.contains("kbit/s out"), "{node}");
}

#[tokio::test]
async fn rates_do_not_jump_when_guest_or_agent_start_anew() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start_measuring().await;
    agent.upload_probe().await;
    agent.create_probe("web", "spin=1", json!({})).await;
    let measured = |guest: &GuestView| cpu(guest) > 1.0;
    agent.wait_guest("web", measured).await;
    agent.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.spawn().await;
    let first = agent
        .wait_guest("web", |guest| guest.usage.cpu_percent.is_some())
        .await;
    assert!(cpu(&first) < JUMP_PERCENT, "{first:?}");

    agent.begin(Method::POST, "/guests/web/stop", None).await;
    let stopped = agent.guest("web").await;
    assert_eq!(stopped.state, GuestState::Stopped);
    assert_eq!(stopped.usage, pindah_agent::metrics::GuestUsage::default());
    agent.begin(Method::POST, "/guests/web/start", None).await;
    let again = agent.wait_guest("web", measured).await;
    assert!(cpu(&again) < JUMP_PERCENT, "{again:?}");
    assert_ne!(again.pid, first.pid);
}

#[tokio::test]
async fn vmm_that_hangs_delays_neither_the_others_nor_the_api() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start_measuring().await;
    agent.upload_probe().await;
    let hung = agent.create_probe("hung", "", json!({})).await;
    agent.create_probe("well", "", json!({})).await;
    let answers = async |guest, expected| {
        let end = Instant::now() + DEADLINE;
        loop {
            let scrape = scrape(&agent).await;
            if value(&scrape, "pindah_guest_vmm_up", guest) == Some(expected) {
                return;
            }
            assert!(Instant::now() < end, "{:?}", scrape.samples);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    answers("hung", 1.0).await;
    let pid = Pid::from_raw(hung.pid.unwrap() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    answers("hung", 0.0).await;
    answers("well", 1.0).await;
    let before = agent.guest("well").await.usage.sampled_unix_ms;
    let asked = Instant::now();
    agent
        .wait_guest("well", |guest| guest.usage.sampled_unix_ms > before)
        .await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    kill_process(pid, Signal::CONT).unwrap();
    answers("hung", 1.0).await;
}

#[tokio::test]
async fn metrics_need_a_token() {
    let agent = Agent::start().await;
    let mut context = Context::load(&agent.context()).unwrap();
    "pindah_0123456789abcdef_0".clone_into(&mut context.token);
    let nobody = Client::new(context).unwrap();
    for path in ["/metrics", "/../../metrics"] {
        let refused = nobody.send(nobody.request(Method::GET, path)).await;
        let code = refused.unwrap_err().code();
        assert_eq!(code, Some(pindah_agent::api::ErrorCode::Unauthorized));
    }
    // Before anything is measured, and without guests.
    assert!(!scrape(&agent).await.samples.is_empty());
}

#[tokio::test]
async fn top_on_a_terminal_ends_with_q_and_leaves_it_as_it_was() {
    let agent = Agent::start().await;
    for key in ["q", "\u{3}"] {
        let pindah = pindah();
        let pindah = pindah.display();
        let command = format!("stty -g; {pindah} top --interval 1; echo \"status $?\"; stty -g");
        let mut script = Command::new("script")
            .args(["--quiet", "--command", &command, "/dev/null"])
            .env("PINDAH_CONTEXT", agent.context())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script starts");
        let mut stdin = script.stdin.take().unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        stdin.write_all(key.as_bytes()).unwrap();
        let output = script.wait_with_output().unwrap();
        drop(stdin);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("node1") && text.contains("q ends"), "{text}");
        assert!(text.contains("\u{1b}[?1049h"), "{text}");
        assert!(text.contains("\u{1b}[?1049l"), "{text}");
        assert!(text.contains("\u{1b}[?25h"), "the cursor is back: {text}");
        assert!(text.contains("status 0"), "{text}");
        let settings: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| line.matches(':').count() > 10)
            .collect();
        assert_eq!(settings.len(), 2, "{text}");
        assert_eq!(settings[0], settings[1]);
    }
}
