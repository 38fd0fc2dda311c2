//! A node is updated, by a RAUC that only pretends: what it writes is a file, and what it says is what
//! the real one says.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pindah_agent::domain::{Task, TaskState};
use reqwest::Method;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;

use super::harness::{Agent, DEADLINE, is_root, kvm_opens};
use super::programs::{RAUC, SYSTEMCTL};

const POLL: Duration = Duration::from_millis(20);

async fn start() -> Agent {
    let agent = Agent::start_with_programs(&[("rauc", RAUC), ("systemctl", SYSTEMCTL)]).await;
    wait_until(&agent, "good-A").await;
    agent
}

async fn wait_until(agent: &Agent, file: &str) {
    let end = Instant::now() + DEADLINE;
    while !agent.path(file).exists() {
        assert!(Instant::now() < end, "no {file}:\n{}", agent.log());
        tokio::time::sleep(POLL).await;
    }
}

fn bundle(agent: &Agent, line: &str) -> PathBuf {
    let path = agent.path("new.raucb");
    fs::write(&path, format!("{line}\n")).unwrap();
    path
}

/// Begins an update that is not refused; its task.
fn begin(agent: &Agent, line: &str, more: &[&str]) -> String {
    let path = bundle(agent, line);
    let mut arguments = vec!["node", "update", path.to_str().unwrap(), "--no-wait"];
    arguments.extend(more);
    let said = agent.must(&arguments);
    said.trim().strip_prefix("task ").unwrap().to_owned()
}

/// The task, when it has ended: the next agent does not go on with it at once.
async fn end_of(agent: &Agent, id: &str) -> Task {
    let end = Instant::now() + DEADLINE;
    loop {
        let task: Task = agent
            .client()
            .get(&format!("/tasks/{id}?wait_s=1"))
            .await
            .unwrap();
        if task.state != TaskState::Running {
            return task;
        }
        assert!(Instant::now() < end, "{task:?}\n{}", agent.log());
        tokio::time::sleep(POLL).await;
    }
}

fn refusal(agent: &Agent, line: &str) -> String {
    let path = bundle(agent, line);
    agent.must_refuse(&["node", "update", "node1", path.to_str().unwrap()])
}

/// The host has restarted into this slot. As the agent sees it: it was another start.
async fn restart_into(agent: &mut Agent, slot: &str) {
    agent.kill();
    fs::write(agent.path("running"), slot).unwrap();
    let pending = agent.path("state/update/pending.json");
    let text = fs::read_to_string(&pending).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(value["restarting"].is_string(), "{text}");
    value["restarting"] = json!("another start of the host");
    fs::write(&pending, value.to_string()).unwrap();
    fs::remove_file(agent.path("restarts")).unwrap();
    agent.spawn().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_comes_up_healthy_says_so_and_keeps_the_new_slot() {
    let mut agent = start().await;
    let task = begin(&agent, "pindah-x86_64 99.0.0 ours", &[]);
    wait_until(&agent, "restarts").await;
    assert_eq!(fs::read_to_string(agent.path("first")).unwrap(), "B\n");
    assert!(agent.path("state/trial-B").exists());

    // What `pindah` waits for is the same task, in the next agent.
    restart_into(&mut agent, "B").await;
    let ended = end_of(&agent, &task).await;
    assert_eq!(ended.state, TaskState::Done, "{ended:?}\n{}", agent.log());
    assert_eq!(ended.result.unwrap()["slot"], "B");
    assert!(agent.path("good-B").exists());
    assert!(!agent.path("state/trial-B").exists());
    assert!(!agent.path("state/update/bundle.raucb").exists());
    let shown = agent.must(&["node", "show", "node1"]);
    assert!(shown.contains("B runs, good; A good"), "{shown}");
    assert!(shown.contains("to 99.0.0"), "{shown}");
    let log = agent.must(&["task", "log", &task]);
    for line in [
        "writing version 99.0.0 to slot B",
        " 40 % Copying image",
        "restarting into slot B",
    ] {
        assert!(log.contains(line), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_fell_back_says_so_and_never_starts_that_slot_again() {
    let mut agent = start().await;
    let task = begin(&agent, "pindah-x86_64 99.0.0 ours", &[]);
    wait_until(&agent, "restarts").await;
    restart_into(&mut agent, "A").await;
    let ended = end_of(&agent, &task).await;
    assert_eq!(ended.state, TaskState::Failed, "{ended:?}");
    let error = ended.error.unwrap();
    assert!(
        error.contains("99.0.0 in slot B has not come up healthy")
            && error.contains("gone back to slot A"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(agent.path("first")).unwrap(), "A\n");
    assert!(!agent.path("good-B").exists());
    assert!(!agent.path("state/trial-B").exists());
    let listed = agent.must(&["node", "list"]);
    assert!(listed.contains("update fell back"), "{listed}");
    let shown = agent.must(&["node", "show", "node1"]);
    assert!(
        shown.contains("A runs, good; B not good, 99.0.0"),
        "{shown}"
    );

    // The next one begins from there.
    begin(&agent, "pindah-x86_64 99.0.1 ours", &[]);
    wait_until(&agent, "restarts").await;
    restart_into(&mut agent, "B").await;
    wait_until(&agent, "good-B").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bundle_that_is_not_for_this_node_is_refused_by_name() {
    let agent = start().await;
    for (line, why) in [
        ("pindah-x86_64 99.0.0 theirs", "was not signed by the key"),
        ("pindah-x86_64", "it is damaged, or no bundle at all"),
        ("toaster 99.0.0 ours", "it is for \"toaster\""),
        ("pindah-x86_64 0.0.1 ours", "0.0.1 is older than"),
        ("pindah-x86_64 new ours", "\"new\" is none like 1.2.3"),
    ] {
        let error = refusal(&agent, line);
        assert!(error.contains(why), "{line}: {error}");
        assert!(!agent.path("installs").exists(), "{line}");
    }
    let (status, body) = agent
        .request(
            Method::POST,
            "/nodes/node1/update",
            Some(&json!({ "url": "ftp://x/y" })),
        )
        .await;
    assert_eq!(status, 422, "{body}");
    let error = agent.must_refuse(&["node", "update", "node1", "/no/such/file"]);
    assert!(error.contains("there is no file /no/such/file"), "{error}");
    let error = agent.must_refuse(&["cluster", "update", "/no/such/file"]);
    assert!(error.contains("pindah cluster init"), "{error}");

    // What only its content betrays is found when it is written, and the slot does not start.
    let error = refusal(&agent, "pindah-x86_64 99.0.0 torn");
    assert!(
        error.contains("the bundle is refused: it is damaged"),
        "{error}"
    );
    assert!(!agent.path("restarts").exists());
    assert!(!agent.path("first").exists());
    // And what is forced goes back.
    begin(&agent, "pindah-x86_64 0.0.1 ours", &["--force"]);
    wait_until(&agent, "restarts").await;
    let error = refusal(&agent, "pindah-x86_64 99.0.0 ours");
    assert!(
        error.contains("an update of node node1 is under way"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_was_not_installed_from_the_image_says_so() {
    let agent = Agent::start().await;
    let error = refusal(&agent, "pindah-x86_64 99.0.0 ours");
    assert!(
        error.contains("node1 was not installed from Pindah's image"),
        "{error}"
    );
    let shown = agent.must(&["node", "show", "node1"]);
    assert!(!shown.contains("slots"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn update_goes_on_in_the_next_agent_though_this_one_is_killed() {
    let mut agent = start().await;
    fs::write(agent.path("hold"), "").unwrap();
    let task = begin(&agent, "pindah-x86_64 99.0.0 ours", &[]);
    wait_until(&agent, "installs").await;
    agent.kill();
    fs::remove_file(agent.path("hold")).unwrap();
    agent.spawn().await;
    wait_until(&agent, "restarts").await;
    restart_into(&mut agent, "B").await;
    let ended = end_of(&agent, &task).await;
    assert_eq!(ended.state, TaskState::Done, "{ended:?}\n{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_fetches_a_bundle_by_its_url() {
    let agent = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for (status, length) in [("404 Not Found", 0), ("200 OK", 999), ("200 OK", 26)] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(b"pindah-x86_64 99.0.0 ours\n").unwrap();
        }
    });
    let url = format!("http://127.0.0.1:{port}/pindah.raucb");
    let update = ["node", "update", &url];
    let error = agent.must_refuse(&update);
    assert!(error.contains("404") && error.contains(&url), "{error}");
    let error = agent.must_refuse(&update);
    assert!(error.contains(&format!("cannot fetch {url}")), "{error}");
    agent.must(&[&update[..], &["--no-wait"]].concat());
    wait_until(&agent, "restarts").await;
    server.join().unwrap();
    let slot = fs::read_to_string(agent.path("slot-B")).unwrap();
    assert_eq!(slot, "pindah-x86_64 99.0.0 ours\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_nobody_takes_keep_a_lone_node_from_its_restart() {
    if !kvm_opens() {
        return;
    }
    let agent = start().await;
    agent.upload_probe().await;
    agent.create_probe("web", "", json!({})).await;
    let error = refusal(&agent, "pindah-x86_64 99.0.0 ours");
    assert!(
        error.contains("no other node to take them: web") && error.contains("--stop-guests"),
        "{error}"
    );
    assert!(!agent.path("installs").exists());
    let task = begin(&agent, "pindah-x86_64 99.0.0 ours", &["--stop-guests"]);
    wait_until(&agent, "restarts").await;
    let log = agent.must(&["task", "log", &task]);
    assert!(log.contains("web: shut down with the node"), "{log}");
    agent.end_guests();
}

#[tokio::test(flavor = "multi_thread")]
async fn bundle_that_does_not_fit_is_refused_before_it_is_sent() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start_on_small_state(80, &[("rauc", RAUC)]).await;
    let path = agent.path("big.raucb");
    fs::write(&path, vec![0; 20 << 20]).unwrap();
    let (ok, _, error) = agent.pindah(&["node", "update", path.to_str().unwrap()]);
    let left = fs::read_dir(agent.path("state/update")).unwrap().count();
    agent.kill();
    unmount(agent.path("state"), UnmountFlags::DETACH).unwrap();
    assert!(
        !ok && error.contains("node1 has no space for the bundle"),
        "{error}"
    );
    assert_eq!(left, 0);
}
