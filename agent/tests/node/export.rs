//! Disks that are downloaded.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pindah_agent::domain::{Task, TaskKind, TaskState};
use reqwest::Method;
use serde_json::json;

use super::harness::{Agent, DEADLINE, answer, kvm_opens};

/// More than all buffers on the way take, in bytes.
const LARGE: usize = 64 << 20;

/// A guest that is off, with a disk of each format from the same image.
async fn start(agent: &Agent, bytes: usize) {
    let mut image: Vec<u8> = (0..bytes as u64)
        .map(|n| (n.wrapping_mul(n) >> 9) as u8)
        .collect();
    // A hole.
    image[bytes / 4..bytes / 2].fill(0);
    fs::write(agent.path("image"), &image).unwrap();
    let put = agent.client().request(Method::PUT, "/images/a").body(image);
    assert_eq!(answer(put).await.0, 201);
    let disks = json!([{ "image": "a" }, { "image": "a", "format": "raw" }]);
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": disks });
    let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
}

fn assert_whole(agent: &Agent, path: &Path, format: &str) {
    let compared = std::process::Command::new("qemu-img")
        .args(["compare", "-q", "-f", "raw", "-F", format])
        .arg(agent.path("image"))
        .arg(path)
        .status();
    assert!(compared.unwrap().success(), "{}", path.display());
}

async fn exporting(agent: &Agent) -> Task {
    let tasks: Vec<Task> = agent.client().list("/tasks").await.unwrap();
    let mut tasks = tasks.into_iter();
    let task = tasks.find(|task| task.kind == TaskKind::ExportDisk);
    task.unwrap()
}

#[tokio::test]
async fn disk_is_downloaded_whole_and_as_it_is_kept() {
    let agent = Agent::start().await;
    start(&agent, 8 << 20).await;
    for (disk, format) in [("disk0", "qcow2"), ("disk1", "raw")] {
        let path = agent.path(disk);
        let to = path.to_str().unwrap();
        let said = agent.must(&["guest", "export", "web", to, "--disk", disk]);
        assert!(said.contains(&format!("MiB of {format}")), "{said}");
        assert_whole(&agent, &path, format);
        // What is there is not overwritten.
        let refusal = agent.must_refuse(&["guest", "export", "web", to, "--disk", disk]);
        assert!(refusal.contains("exists"), "{refusal}");
        assert_whole(&agent, &path, format);
    }
    let task = exporting(&agent).await;
    let ended = agent.wait_task(&task.id.to_string()).await;
    assert_eq!(ended.state, TaskState::Done, "{ended:?}");
    assert_eq!(ended.subject, "web");
    // How far it was is written down beside it.
    wait_for(&agent, "it has not come to its end", |task| {
        task.progress
            .is_some_and(|progress| progress.percent == 100)
    })
    .await;
}

async fn wait_for(agent: &Agent, what: &str, wanted: impl Fn(Task) -> bool) {
    let end = Instant::now() + DEADLINE;
    while !wanted(exporting(agent).await) {
        assert!(Instant::now() < end, "{what}:\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn disk_that_cannot_be_exported_is_refused_and_leaves_no_file() {
    let agent = Agent::start().await;
    start(&agent, 1 << 20).await;
    let to = agent.path("out").display().to_string();
    for (guest, disk, message) in [
        ("web", "disk9", "guest web has no disk disk9"),
        ("none", "disk0", "there is no guest none"),
        ("web", "../x", "cannot be a name"),
    ] {
        let refusal = agent.must_refuse(&["guest", "export", guest, &to, "--disk", disk]);
        assert!(refusal.contains(message), "{refusal}");
        assert!(!agent.path("out").exists());
    }
    if !kvm_opens() {
        return;
    }
    agent.upload_probe().await;
    let disks = json!({ "disks": [{ "size_mib": 1 }] });
    agent.create_probe("runs", "", disks).await;
    let refusal = agent.must_refuse(&["guest", "export", "runs", &to]);
    assert!(
        refusal.contains("guest runs is running; stop it first"),
        "{refusal}"
    );
    assert!(!agent.path("out").exists());
}

#[tokio::test]
async fn guest_does_not_change_while_its_disk_is_sent_and_is_free_when_that_ends() {
    let mut agent = Agent::start().await;
    start(&agent, LARGE).await;
    let path = "/guests/web/disks/disk1/content";

    // Cancelled: who downloads notices.
    let response = agent
        .client()
        .request(Method::GET, path)
        .send()
        .await
        .unwrap();
    assert_eq!(response.content_length(), Some(LARGE as u64));
    let refusal = agent.must_refuse(&["guest", "delete", "web", "--yes"]);
    assert!(refusal.contains("busy"), "{refusal}");
    let task = exporting(&agent).await;
    assert_eq!(task.state, TaskState::Running, "{task:?}");
    let cancel = format!("/tasks/{}/cancel", task.id);
    agent.request(Method::POST, &cancel, None).await;
    let ended = agent.wait_task(&task.id.to_string()).await;
    assert_eq!(ended.state, TaskState::Cancelled, "{ended:?}");
    assert!(response.bytes().await.is_err());

    // Who downloads goes.
    let response = agent
        .client()
        .request(Method::GET, path)
        .send()
        .await
        .unwrap();
    let task = exporting(&agent).await;
    drop(response);
    let ended = agent.wait_task(&task.id.to_string()).await;
    assert_eq!(ended.state, TaskState::Failed, "{ended:?}");

    // The agent dies.
    let response = agent
        .client()
        .request(Method::GET, path)
        .send()
        .await
        .unwrap();
    let task = exporting(&agent).await;
    agent.kill();
    assert!(response.bytes().await.is_err());
    agent.spawn().await;
    wait_for(&agent, "its task does not end", |task| {
        task.state == TaskState::Failed
    })
    .await;
    assert_eq!(exporting(&agent).await.id, task.id);
    agent.must(&["guest", "delete", "web", "--yes"]);
    agent.assert_no_guests_left();
}
