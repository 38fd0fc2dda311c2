//! Copies of guests, and templates that they are made of.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pindah_agent::api::GuestView;
use pindah_agent::domain::{Task, TaskState};
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, answer, kvm_opens};

/// Copies of disks begin, and wait as long as they are told to.
const SLOW_COPY: &str = r#"
case "$*" in
    convert*"-t none"*)
        for last; do :; done
        [ -e $HERE/wait ] && echo half > "$last"
        while [ -e $HERE/wait ]; do sleep 0.05; done ;;
esac
exec /usr/bin/qemu-img "$@"
"#;

/// A guest that is off, with a disk of each format and all that can be copied.
async fn original(agent: &Agent) -> GuestView {
    let bytes: Vec<u8> = (0..4u32 << 20)
        .map(|n| (n.wrapping_mul(n) >> 9) as u8)
        .collect();
    fs::write(agent.path("image"), &bytes).unwrap();
    let put = agent.client().request(Method::PUT, "/images/a").body(bytes);
    assert_eq!(answer(put).await.0, 201);
    let body = json!({
        "name": "web", "memory_mib": 64, "tags": ["x"], "notes": "n", "interfaces": [{}, {}],
        "disks": [{ "image": "a" }, { "image": "a", "format": "raw" }],
    });
    let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.guest("web").await
}

fn file(agent: &Agent, pool: &str, guest: &GuestView, file: &str) -> PathBuf {
    let volumes = agent.path(pool).join("volumes");
    volumes.join(guest.uuid.to_string()).join(file)
}

fn assert_whole(agent: &Agent, pool: &str, guest: &GuestView) {
    for (name, format) in [("disk0.qcow2", "qcow2"), ("disk1.raw", "raw")] {
        let path = file(agent, pool, guest, name);
        let compared = std::process::Command::new("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", format])
            .args([&agent.path("image"), &path])
            .status();
        assert!(compared.unwrap().success(), "{}", path.display());
    }
}

async fn begin_clone(agent: &Agent, name: &str) -> (u16, Value) {
    let body = json!({ "name": name });
    agent
        .request(Method::POST, "/guests/web/clone", Some(&body))
        .await
}

async fn wait(agent: &Agent, what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "{what}:\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many guests have disks in the pool `local`.
fn with_disks(agent: &Agent) -> usize {
    let volumes = agent.path("state/pool/volumes");
    fs::read_dir(volumes).unwrap().count()
}

#[tokio::test]
async fn clone_has_the_same_disks_and_is_somebody_else() {
    let agent = Agent::start().await;
    let web = original(&agent).await;
    let path = agent.path("nas");
    fs::create_dir(&path).unwrap();
    let path = path.display().to_string();
    agent.must(&["pool", "create", "nas", "--path", &path, "--shared"]);
    agent.must(&["guest", "clone", "web", "web2"]);
    agent.must(&["guest", "clone", "web", "web3", "--pool", "nas"]);
    let (two, three) = (agent.guest("web2").await, agent.guest("web3").await);
    assert_whole(&agent, "state/pool", &two);
    assert_whole(&agent, "nas", &three);
    assert!(!file(&agent, "state/pool", &three, "disk1.raw").exists());
    for clone in [&two, &three] {
        assert!(!clone.incomplete && clone.state == GuestState::Stopped);
        assert_eq!((&clone.tags, &clone.notes), (&web.tags, &web.notes));
        assert_eq!(clone.disks[0].size_mib, 4);
        for (one, other) in clone.interfaces.iter().zip(&web.interfaces) {
            assert_ne!(one.mac, other.mac);
            assert_ne!(one.tap, other.tap);
        }
    }
    // It goes without them.
    agent.must(&["guest", "delete", "web", "--yes"]);
    assert_whole(&agent, "state/pool", &two);
    for name in ["web2", "web3"] {
        agent.must(&["guest", "delete", name, "--yes"]);
    }
    agent.assert_no_guests_left();
    assert_eq!(fs::read_dir(agent.path("nas/volumes")).unwrap().count(), 0);
}

#[tokio::test]
async fn template_does_not_start_and_several_are_copied_from_it_at_once() {
    let agent = Agent::start_with_program("qemu-img", SLOW_COPY).await;
    original(&agent).await;
    let said = agent.must(&["guest", "template", "web"]);
    assert_eq!(said, "web is a template\n");
    let listed = agent.must(&["guest", "list"]);
    assert!(listed.contains("template"), "{listed}");
    let refusal = agent.must_refuse(&["guest", "start", "web"]);
    assert!(refusal.contains("guest web is a template"), "{refusal}");

    let hold = agent.path("wait");
    fs::write(&hold, "").unwrap();
    let mut tasks = Vec::new();
    for name in ["one", "two"] {
        let (status, body) = begin_clone(&agent, name).await;
        assert_eq!(status, 202, "{body}");
        tasks.push(body["task"]["id"].as_str().unwrap().to_owned());
    }
    // Nobody changes it meanwhile.
    let refusal = agent.must_refuse(&["guest", "template", "web", "--undo"]);
    assert!(refusal.contains("busy"), "{refusal}");
    let refusal = agent.must_refuse(&["guest", "delete", "web", "--yes"]);
    assert!(refusal.contains("busy"), "{refusal}");
    fs::remove_file(&hold).unwrap();
    for task in tasks {
        let task = agent.wait_task(&task).await;
        assert_eq!(task.state, TaskState::Done, "{task:?}");
    }
    for name in ["one", "two"] {
        let clone = agent.guest(name).await;
        assert_whole(&agent, "state/pool", &clone);
        assert!(!clone.template);
    }
    agent.must(&["guest", "template", "web", "--undo"]);
    assert!(!agent.guest("web").await.template);
}

#[tokio::test]
async fn clone_that_cannot_be_is_refused_and_touches_nothing() {
    let agent = Agent::start().await;
    original(&agent).await;
    for (body, status, message) in [
        (
            json!({ "name": "web" }),
            409,
            "there is a guest web already",
        ),
        (json!({ "name": "../x" }), 422, "name = \"../x\""),
        (json!({}), 422, "missing field `name`"),
        (json!({ "name": "b", "start": 1 }), 422, "unknown field"),
        (json!({ "name": "b", "pool": "none" }), 422, "no pool none"),
        (json!({ "name": "b", "node": "b" }), 409, "is alone"),
    ] {
        let path = "/guests/web/clone";
        let (got, body) = agent.request(Method::POST, path, Some(&body)).await;
        assert_eq!(got, status, "{body}");
        let text = body["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{text:?} does not say {message:?}");
    }
    assert_eq!(with_disks(&agent), 1);
    let tasks: Vec<Task> = agent.client().list("/tasks").await.unwrap();
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    if !kvm_opens() {
        return;
    }
    agent.upload_probe().await;
    let disks = json!({ "disks": [{ "size_mib": 1 }] });
    agent.create_probe("runs", "", disks).await;
    let refusal = agent.must_refuse(&["guest", "clone", "runs", "b"]);
    assert!(
        refusal.contains("guest runs is running; stop it first"),
        "{refusal}"
    );
    let refusal = agent.must_refuse(&["guest", "template", "runs"]);
    assert!(
        refusal.contains("guest runs is running; stop it first"),
        "{refusal}"
    );
}

#[tokio::test]
async fn clone_that_is_cut_short_leaves_nothing() {
    let mut agent = Agent::start_with_program("qemu-img", SLOW_COPY).await;
    original(&agent).await;
    fs::write(agent.path("wait"), "").unwrap();

    // Cancelled.
    let (_, body) = begin_clone(&agent, "b").await;
    let task = body["task"]["id"].as_str().unwrap().to_owned();
    wait(&agent, "nothing is copied", async || {
        with_disks(&agent) == 2
    })
    .await;
    let cancel = format!("/tasks/{task}/cancel");
    agent.request(Method::POST, &cancel, None).await;
    let ended = agent.wait_task(&task).await;
    assert_eq!(ended.state, TaskState::Cancelled, "{ended:?}");
    assert_eq!(agent.request(Method::GET, "/guests/b", None).await.0, 404);
    assert_eq!(with_disks(&agent), 1);

    // The agent dies.
    let (_, body) = begin_clone(&agent, "b").await;
    let task = body["task"]["id"].as_str().unwrap().to_owned();
    wait(&agent, "nothing is copied", async || {
        with_disks(&agent) == 2
    })
    .await;
    agent.kill();
    agent.spawn().await;
    let gone = async || agent.request(Method::GET, "/guests/b", None).await.0 == 404;
    wait(&agent, "the half of it stays", gone).await;
    assert_eq!(with_disks(&agent), 1);
    let ended = agent.wait_task(&task).await;
    assert_eq!(ended.state, TaskState::Failed, "{ended:?}");

    // Its name is free.
    fs::remove_file(agent.path("wait")).unwrap();
    agent.must(&["guest", "clone", "web", "b"]);
    assert_whole(&agent, "state/pool", &agent.guest("b").await);
}
