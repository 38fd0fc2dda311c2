//! Disks that grow, of guests that run and of guests that are off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pindah_agent::api::GuestView;
use pindah_agent::domain::{Task, TaskState};
use pindah_agent::guests::GuestState;
use pindah_agent::supervisor::Direct;
use pindah_agent::vmm_client::VmmClient;
use pindah_vmm_api::DeviceInfo;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, kvm_opens};

/// Growing says that it has begun, and then waits for ever.
const STUCK_GROWTH: &str = r#"
case "$*" in
    resize*) [ -e $HERE/after ] && /usr/bin/qemu-img "$@"
        touch $HERE/begun
        while [ -e $HERE/stuck ]; do sleep 0.05; done ;;
    *) exec /usr/bin/qemu-img "$@" ;;
esac
"#;

fn disks() -> Value {
    json!([{ "size_mib": 8 }, { "size_mib": 4, "format": "raw" }])
}

async fn create_off(agent: &Agent) -> GuestView {
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": disks() });
    let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.guest("web").await
}

fn volume(agent: &Agent, guest: &GuestView, file: &str) -> PathBuf {
    let volumes = agent.path("state/pool/volumes");
    volumes.join(guest.uuid.to_string()).join(file)
}

/// What `qemu-img` says of a disk, in MiB.
fn size_mib(agent: &Agent, guest: &GuestView, index: usize) -> u64 {
    let (file, format) = [("disk0.qcow2", "qcow2"), ("disk1.raw", "raw")][index];
    let output = std::process::Command::new("qemu-img")
        .args(["info", "-U", "--output=json", "-f", format])
        .arg(volume(agent, guest, file))
        .output()
        .unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    info["virtual-size"].as_u64().unwrap() >> 20
}

fn recorded_mib(guest: &GuestView) -> Vec<u64> {
    assert!(guest.disks.iter().all(|disk| disk.growing_to_mib.is_none()));
    guest.disks.iter().map(|disk| disk.size_mib).collect()
}

async fn seen_by_guest_mib(agent: &Agent, guest: &GuestView) -> Vec<u64> {
    let client = VmmClient::new(&Direct::api_socket(&agent.guest_directory(guest)));
    let devices = client.info().await.unwrap().devices.into_iter();
    devices
        .filter_map(|device| match device {
            DeviceInfo::Disk { size_bytes, .. } => Some(size_bytes >> 20),
            _ => None,
        })
        .collect()
}

async fn start_resize(agent: &Agent, disk: &str, size_mib: u64) -> String {
    let path = format!("/guests/web/disks/{disk}/resize");
    let body = json!({ "size_mib": size_mib });
    let (status, body) = agent.request(Method::POST, &path, Some(&body)).await;
    assert_eq!(status, 202, "{body}");
    body["task"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn disk_of_a_guest_that_is_off_grows() {
    let agent = Agent::start().await;
    let guest = create_off(&agent).await;
    agent.must(&["guest", "disk", "resize", "web", "disk0", "1G"]);
    agent.must(&["guest", "disk", "resize", "web", "disk1", "5M"]);
    let now = agent.guest("web").await;
    assert_eq!(recorded_mib(&now), [1024, 5]);
    assert_eq!(size_mib(&agent, &guest, 0), 1024);
    assert_eq!(size_mib(&agent, &guest, 1), 5);
    let shown = agent.must(&["guest", "show", "web"]);
    assert!(shown.contains("disk0: 1 GiB qcow2"), "{shown}");
}

#[tokio::test]
async fn disk_of_a_guest_that_runs_grows_under_it() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent
        .create_probe("web", "blk=1 blk_op=verify", json!({ "disks": disks() }))
        .await;
    let path = "/guests/web/disks/disk0/resize";
    let body = json!({ "size_mib": 512 });
    let task = agent.begin(Method::POST, path, Some(&body)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.request(Method::POST, "/guests/web/pause", None).await;
    agent.must(&["guest", "disk", "resize", "web", "disk1", "16M"]);
    agent.must(&["guest", "resume", "web"]);
    assert_eq!(seen_by_guest_mib(&agent, &guest).await, [512, 16]);
    assert_eq!(recorded_mib(&agent.guest("web").await), [512, 16]);
    assert_eq!(size_mib(&agent, &guest, 1), 16);

    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.wait_state("web", GuestState::Stopped).await;
    assert_eq!(size_mib(&agent, &guest, 0), 512);
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(seen_by_guest_mib(&agent, &guest).await, [512, 16]);
}

#[tokio::test]
async fn growth_that_cannot_be_is_refused_and_touches_nothing() {
    let agent = Agent::start().await;
    let guest = create_off(&agent).await;
    for (disk, size_mib, status, message) in [
        ("disk9", json!(64), 404, "guest web has no disk disk9"),
        (
            "disk0",
            json!(4),
            422,
            "size_mib = 4: must be more than the 8 MiB that disk0 has: disks grow and do not shrink",
        ),
        ("disk0", json!(8), 422, "must be more than the 8 MiB"),
        ("disk0", json!(0), 422, "must be 1 to 67108864 MiB"),
        ("disk0", json!(u64::MAX), 422, "must be 1 to 67108864 MiB"),
        ("disk0", json!("9G"), 422, "invalid type"),
        ("disk1", json!(64 << 20), 409, "67108860 MiB are needed"),
    ] {
        let path = format!("/guests/web/disks/{disk}/resize");
        let body = json!({ "size_mib": size_mib });
        let (got, body) = agent.request(Method::POST, &path, Some(&body)).await;
        assert_eq!(got, status, "{body}");
        let text = body["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{text:?} does not say {message:?}");
    }
    let refusal = agent.must_refuse(&["guest", "disk", "resize", "web", "disk0", "7M"]);
    assert!(
        refusal.contains("disks grow and do not shrink"),
        "{refusal}"
    );
    assert_eq!(recorded_mib(&agent.guest("web").await), [8, 4]);
    assert_eq!(size_mib(&agent, &guest, 1), 4);
    let tasks: Vec<Task> = agent.client().list("/tasks").await.unwrap();
    assert_eq!(tasks.len(), 1, "{tasks:?}");
}

#[tokio::test]
async fn growth_that_is_cut_short_leaves_the_size_that_the_disk_has() {
    let mut agent = Agent::start_with_program("qemu-img", STUCK_GROWTH).await;
    let guest = create_off(&agent).await;
    let [stuck, begun, after] = ["stuck", "begun", "after"].map(|name| agent.path(name));
    fs::write(&stuck, "").unwrap();

    // Cancelled before the disk has grown.
    let task = start_resize(&agent, "disk0", 16).await;
    wait_for(&agent, &begun).await;
    let cancel = format!("/tasks/{task}/cancel");
    agent.request(Method::POST, &cancel, None).await;
    let task = agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Cancelled, "{task:?}");
    assert_eq!(recorded_mib(&agent.guest("web").await), [8, 4]);
    assert_eq!(size_mib(&agent, &guest, 0), 8);

    // The agent dies when the disk has grown, and before that is written down.
    fs::remove_file(&begun).unwrap();
    fs::write(&after, "").unwrap();
    let task = start_resize(&agent, "disk0", 16).await;
    wait_for(&agent, &begun).await;
    assert_eq!(agent.guest("web").await.disks[0].growing_to_mib, Some(16));
    agent.kill();
    agent.spawn().await;
    let settled = agent.wait_guest("web", |guest| guest.disks[0].growing_to_mib.is_none());
    assert_eq!(recorded_mib(&settled.await), [16, 4]);
    let task = agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Failed, "{task:?}");

    fs::remove_file(&stuck).unwrap();
    let task = start_resize(&agent, "disk0", 32).await;
    let task = agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(recorded_mib(&agent.guest("web").await), [32, 4]);
}

async fn wait_for(agent: &Agent, path: &Path) {
    let end = Instant::now() + DEADLINE;
    while !path.exists() {
        assert!(Instant::now() < end, "{}:\n{}", path.display(), agent.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
