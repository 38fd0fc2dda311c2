//! Disks that go from pool to pool, and what is left when that is cut short.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pindah_agent::domain::{Task, TaskState};
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, answer, kvm_opens};
use super::silence::Silence;

/// Copies between pools say that they are done, and then wait until they may end.
const SLOW_COPY: &str = r#"
case "$*" in
    convert*"-t none"*)
        [ -e $HERE/stuck ] && for last; do :; done && echo half > "$last" && exec sleep 1000
        /usr/bin/qemu-img "$@" || exit
        touch $HERE/copied
        while [ -e $HERE/wait ]; do sleep 0.05; done ;;
    *) exec /usr/bin/qemu-img "$@" ;;
esac
"#;

struct Moved {
    agent: Agent,
    uuid: String,
}

impl Moved {
    /// A guest with a disk of each format, from an image whose bytes are all different, and a pool.
    async fn start() -> Self {
        let agent = Agent::start_with_program("qemu-img", SLOW_COPY).await;
        let path = agent.path("nas");
        fs::create_dir(&path).unwrap();
        let spec = json!({ "name": "nas", "kind": "dir", "path": path, "shared": true });
        let (status, body) = agent.request(Method::POST, "/pools", Some(&spec)).await;
        assert_eq!(status, 201, "{body}");
        let bytes: Vec<u8> = (0..4u32 << 20)
            .map(|n| (n.wrapping_mul(n) >> 9) as u8)
            .collect();
        fs::write(agent.path("image"), &bytes).unwrap();
        let put = agent.client().request(Method::PUT, "/images/a").body(bytes);
        assert_eq!(answer(put).await.0, 201);
        let disks = json!([{ "image": "a" }, { "image": "a", "format": "raw" }]);
        let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": disks });
        let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
        assert_eq!(task.state, TaskState::Done, "{task:?}");
        let uuid = agent.guest("web").await.uuid.to_string();
        Self { agent, uuid }
    }

    fn file(&self, pool: &str, file: &str) -> PathBuf {
        let pool = match pool {
            "local" => "state/pool",
            pool => pool,
        };
        let volumes = self.agent.path(pool).join("volumes");
        volumes.join(&self.uuid).join(file)
    }

    async fn begin(&self, disk: &str, to: &str) -> (u16, Value) {
        let path = format!("/guests/web/disks/{disk}/move");
        let body = json!({ "pool": to });
        self.agent.request(Method::POST, &path, Some(&body)).await
    }

    async fn start_move(&self, disk: &str, to: &str) -> String {
        let (status, body) = self.begin(disk, to).await;
        assert_eq!(status, 202, "{body}");
        body["task"]["id"].as_str().unwrap().to_owned()
    }

    async fn disk(&self, index: usize) -> Value {
        let (_, guest) = self.agent.request(Method::GET, "/guests/web", None).await;
        guest["data"]["disks"][index].clone()
    }

    async fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < end, "{what}:\n{}", self.agent.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn wait_no_spare(&self) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let disk = self.disk(0).await;
            if disk["spare"].is_null() {
                return disk;
            }
            assert!(Instant::now() < end, "{disk}:\n{}", self.agent.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn assert_whole(&self, path: &Path, format: &str) {
        let compared = std::process::Command::new("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", format])
            .arg(self.agent.path("image"))
            .arg(path)
            .status();
        assert!(compared.unwrap().success(), "{}", path.display());
    }
}

#[tokio::test]
async fn disk_moves_whole_and_is_listed_where_it_is() {
    let moved = Moved::start().await;
    for (disk, file, format) in [
        ("disk0", "disk0.qcow2", "qcow2"),
        ("disk1", "disk1.raw", "raw"),
    ] {
        let task = moved.start_move(disk, "nas").await;
        let task = moved.agent.wait_task(&task).await;
        assert_eq!(task.state, TaskState::Done, "{task:?}");
        moved.assert_whole(&moved.file("nas", file), format);
        assert!(!moved.file("local", file).exists());
    }
    let disk = moved.disk(0).await;
    assert_eq!(disk["volume"]["pool"], "nas");
    assert!(disk["spare"].is_null(), "{disk}");
    moved.agent.assert_no_guests_left_in("pool/volumes");
    let orphan = uuid::Uuid::new_v4().to_string();
    let orphans = moved.agent.path("nas/volumes").join(&orphan);
    fs::create_dir(&orphans).unwrap();
    fs::write(orphans.join("disk0.raw"), "x").unwrap();
    let volumes: Vec<Value> = moved
        .agent
        .client()
        .list("/pools/nas/volumes")
        .await
        .unwrap();
    assert_eq!(volumes.len(), 3, "{volumes:?}");
    for volume in volumes {
        if volume["guest"] == orphan.as_str() {
            assert!(
                volume["name"].is_null() && volume["disk"].is_null(),
                "{volume}"
            );
        } else {
            assert_eq!(
                (&volume["name"], &volume["size_mib"]),
                (&json!("web"), &json!(4))
            );
            assert!(
                volume["allocated_bytes"].as_u64().unwrap() >= 3 << 20,
                "{volume}"
            );
        }
    }
    let (ok, said, error) = moved.agent.pindah(&["pool", "volumes", "nas"]);
    assert!(ok && said.contains("disk1"), "{said}{error}");
    let arguments = ["guest", "disk", "move", "web", "disk1", "--pool", "local"];
    let (ok, said, error) = moved.agent.pindah(&arguments);
    assert!(ok, "{said}{error}");
    moved.assert_whole(&moved.file("local", "disk1.raw"), "raw");

    let task = moved.agent.begin(Method::DELETE, "/guests/web", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert!(!moved.file("nas", "disk0.qcow2").exists());
}

#[tokio::test]
async fn move_that_cannot_be_is_refused_and_touches_nothing() {
    let moved = Moved::start().await;
    fs::create_dir(moved.file("nas", "")).unwrap();
    fs::write(moved.file("nas", "disk1.raw"), "somebody's").unwrap();
    for (disk, to, status, message) in [
        ("disk9", "nas", 404, "guest web has no disk disk9"),
        ("..", "nas", 404, "no"),
        (
            "disk0",
            "local",
            422,
            "must differ from the pool that the disk is in",
        ),
        ("disk0", "none", 422, "there is no pool none"),
        ("disk0", "../x", 422, "pool = \"../x\""),
        ("disk1", "nas", 409, "there is a disk"),
    ] {
        let (got, body) = moved.begin(disk, to).await;
        assert_eq!(got, status, "{body}");
        let text = body["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{text:?} does not say {message:?}");
    }
    assert_eq!(
        fs::read(moved.file("nas", "disk1.raw")).unwrap(),
        b"somebody's"
    );
    let tasks: Vec<Task> = moved.agent.client().list("/tasks").await.unwrap();
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    if !kvm_opens() {
        return;
    }
    moved.agent.upload_probe().await;
    let disks = json!({ "disks": [{ "size_mib": 1 }] });
    moved.agent.create_probe("runs", "", disks).await;
    let path = "/guests/runs/disks/disk0/move";
    let body = json!({ "pool": "nas" });
    let (status, body) = moved.agent.request(Method::POST, path, Some(&body)).await;
    assert_eq!(status, 409, "{body}");
    assert!(
        body.to_string().contains("its disks move while it is off"),
        "{body}"
    );
}

#[tokio::test]
async fn move_that_is_cut_short_is_undone() {
    let mut moved = Moved::start().await;
    let (here, there) = (
        moved.file("local", "disk0.qcow2"),
        moved.file("nas", "disk0.qcow2"),
    );
    let stuck = moved.agent.path("stuck");
    fs::write(&stuck, "").unwrap();

    // Cancelled.
    let task = moved.start_move("disk0", "nas").await;
    moved.wait("nothing is copied", || there.exists()).await;
    let busy = moved.begin("disk1", "nas").await;
    assert_eq!(busy.0, 409, "{}", busy.1);
    let cancel = format!("/tasks/{task}/cancel");
    moved.agent.request(Method::POST, &cancel, None).await;
    let task = moved.agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Cancelled, "{task:?}");
    let disk = moved.disk(0).await;
    assert_eq!(
        (&disk["volume"]["pool"], &disk["spare"]),
        (&json!("local"), &Value::Null)
    );
    assert!(!there.exists());
    moved.assert_whole(&here, "qcow2");

    // The agent dies.
    let task = moved.start_move("disk0", "nas").await;
    moved.wait("nothing is copied", || there.exists()).await;
    moved.agent.kill();
    moved.agent.spawn().await;
    let disk = moved.wait_no_spare().await;
    assert_eq!(disk["volume"]["pool"], "local");
    assert!(!there.exists());
    moved.assert_whole(&here, "qcow2");
    let task = moved.agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    fs::remove_file(stuck).unwrap();
    let task = moved.start_move("disk0", "nas").await;
    let task = moved.agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    moved.assert_whole(&there, "qcow2");
}

#[tokio::test]
async fn pool_that_stalls_when_the_copy_is_complete_keeps_nothing_for_ever() {
    let mut moved = Moved::start().await;
    let task = moved.start_move("disk0", "nas").await;
    let task = moved.agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let there = moved.file("nas", "disk0.qcow2");
    let here = moved.file("local", "disk0.qcow2");
    fs::remove_file(moved.agent.path("copied")).unwrap();
    let wait = moved.agent.path("wait");
    fs::write(&wait, "").unwrap();
    let task = moved.start_move("disk0", "local").await;
    let copied = moved.agent.path("copied");
    moved.wait("nothing is copied", || copied.exists()).await;
    let Some(silence) = Silence::over(&moved.agent.path("nas")) else {
        return;
    };
    fs::remove_file(&wait).unwrap();
    let task = moved.agent.wait_task(&task).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let disk = moved.disk(0).await;
    assert_eq!(
        (&disk["volume"]["pool"], &disk["spare"]),
        (&json!("local"), &json!("nas"))
    );
    moved.assert_whole(&here, "qcow2");
    let (status, body) = moved.begin("disk0", "nas").await;
    assert_eq!(status, 409, "{body}");
    assert!(
        body.to_string().contains("as soon as the pool answers"),
        "{body}"
    );
    moved.agent.kill();
    moved.agent.spawn().await;
    drop(silence);
    moved.wait_no_spare().await;
    assert!(!there.exists());
    moved.assert_whole(&here, "qcow2");
}
