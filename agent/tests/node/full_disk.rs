//! Storage that is full while something is written to it: said, nothing half-made left, and what ran
//! goes on when there is space.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::stream;
use pindah_agent::domain::{Task, TaskState};
use pindah_agent::guests::GuestState;
use reqwest::Method;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

use super::harness::{Agent, answer, is_root, kvm_opens};

/// Fills the pool before it writes there.
const QEMU_IMG: &str = r#"
case "$*" in
    *convert*"/small/"*) [ -e $HERE/filling ] && dd if=/dev/zero of=$HERE/small/filler bs=1M ;;
esac 2>/dev/null
exec /usr/bin/qemu-img "$@"
"#;
const FULL: &str = "No space left on device";
const SIZE_MIB: u64 = 400;

/// A file system that is small, gone with the test.
struct Small {
    path: PathBuf,
}

impl Small {
    fn mount(path: PathBuf, size_mib: u64) -> Self {
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_mib}m"), "small"])
            .arg(&path)
            .status();
        assert!(mounted.unwrap().success());
        Self { path }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Takes all that is left.
    fn fill(&self) {
        fill(&self.filler());
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Everything but the filler in a part of the pool.
    fn files(&self, part: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join(part)).unwrap();
        entries.flatten().map(|entry| entry.path()).collect()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 4096] {
        let zeroes = vec![0; size];
        while file.write_all(&zeroes).is_ok() {}
    }
}

async fn create_pool(agent: &Agent, path: &Path) {
    let spec = json!({ "name": "small", "kind": "dir", "path": path, "shared": true });
    let (status, body) = agent.request(Method::POST, "/pools", Some(&spec)).await;
    assert_eq!(status, 201, "{body}");
}

fn assert_failed(task: &Task) {
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    let error = task.error.as_deref().unwrap();
    assert!(error.contains(FULL), "{error}");
}

#[tokio::test]
async fn what_is_copied_into_a_pool_that_fills_up_leaves_nothing() {
    if !is_root() {
        return;
    }
    let agent = Agent::start_with_program("qemu-img", QEMU_IMG).await;
    let small = Small::mount(agent.path("small"), SIZE_MIB);
    create_pool(&agent, &small.path).await;
    // Nothing of it can be left out.
    let bytes: Vec<u8> = (0..16u32 << 20).map(|n| (n % 251) as u8 | 1).collect();
    assert_eq!(agent.upload("a", bytes.clone()).await.0, 201);
    fs::write(agent.path("filling"), "").unwrap();

    // A new guest.
    let spec = |pool: &str| {
        json!({ "name": "web", "memory_mib": 64, "interfaces": [],
            "disks": [{ "image": "a", "pool": pool }] })
    };
    let body = spec("small");
    assert_failed(&agent.begin(Method::POST, "/guests", Some(&body)).await);
    let (status, _) = agent.request(Method::GET, "/guests/web", None).await;
    assert_eq!(status, 404);
    assert!(small.files("volumes").is_empty());

    // While it is full, arithmetic says so before anything is begun.
    let (status, body) = agent.request(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(body["error"]["code"], "no_space", "{body}");
    small.make_room();

    // A disk on its way.
    let task = agent
        .begin(Method::POST, "/guests", Some(&spec("local")))
        .await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let path = "/guests/web/disks/disk0/move";
    let to = json!({ "pool": "small" });
    assert_failed(&agent.begin(Method::POST, path, Some(&to)).await);
    let (_, shown) = agent.request(Method::GET, "/guests/web", None).await;
    let disk = &shown["data"]["disks"][0];
    assert_eq!(disk["volume"]["pool"], "local", "{disk}");
    assert!(disk["spare"].is_null(), "{disk}");
    assert!(small.files("volumes").is_empty());
    small.make_room();
    fs::remove_file(agent.path("filling")).unwrap();
    let task = agent.begin(Method::POST, path, Some(&to)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");

    // An image, when half of it is there.
    let half = bytes.len() / 2;
    let (first, second) = (bytes[..half].to_vec(), bytes[half..].to_vec());
    let filler = small.filler();
    let pieces = stream::iter([first, second].into_iter().enumerate());
    let pieces = futures_util::StreamExt::map(pieces, move |(index, piece)| {
        if index == 1 {
            fill(&filler);
        }
        Ok::<_, std::io::Error>(piece)
    });
    let body = reqwest::Body::wrap_stream(pieces);
    let put = agent.client().request(Method::PUT, "/images/b?pool=small");
    let (status, body) = answer(put.body(body)).await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(body["error"]["code"], "no_space", "{body}");
    let images: Vec<Value> = agent.client().list("/images?pool=small").await.unwrap();
    assert!(images.is_empty(), "{images:?}");
    for part in ["incoming", "images"] {
        let end = std::time::Instant::now() + super::harness::DEADLINE;
        while !small.files(part).is_empty() {
            assert!(std::time::Instant::now() < end, "{:?}", small.files(part));
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn guest_whose_thin_disk_cannot_grow_stands_until_there_is_space() {
    if !kvm_opens() || !is_root() {
        return;
    }
    let agent = Agent::start().await;
    let small = Small::mount(agent.path("small"), SIZE_MIB);
    create_pool(&agent, &small.path).await;
    agent.upload_probe().await;
    let cmdline = "beat_ms=100 blk=1 blk_op=seqwrite blk_bs=65536 blk_s=0 blk_iops=200";
    let disks = json!({ "disks": [{ "size_mib": 64, "pool": "small" }] });
    let guest = agent.create_probe("web", cmdline, disks).await;
    agent.wait_reports(&guest, "beat", 2).await;

    small.fill();
    let stands = agent.wait_state("web", GuestState::Paused).await;
    let reason = stands.reason.unwrap_or_default();
    assert!(reason.contains("disk0"), "{reason}");
    assert!(reason.contains(FULL), "{reason}");
    // Without space it comes to a stand again.
    let (status, body) = agent
        .request(Method::POST, "/guests/web/resume", None)
        .await;
    assert!(status < 300, "{body}");
    agent.wait_state("web", GuestState::Paused).await;

    small.make_room();
    let beats = agent.reports(&guest, "beat").len();
    let (_, said, error) = agent.pindah(&["guest", "resume", "web"]);
    agent.wait_state("web", GuestState::Running).await;
    agent.wait_reports(&guest, "beat", beats + 20).await;
    let after = agent.guest("web").await;
    assert_eq!(after.state, GuestState::Running, "{said}{error}");
    let file = small.path.join("volumes").join(guest.uuid.to_string());
    agent.begin(Method::POST, "/guests/web/stop", None).await;
    let checked = Command::new("qemu-img")
        .args(["check", "-q"])
        .arg(file.join("disk0.qcow2"))
        .status();
    assert!(checked.unwrap().success());
}

#[tokio::test]
async fn agent_whose_own_directory_is_full_stays_and_says_so() {
    if !is_root() {
        return;
    }
    let agent = Agent::start_on_small_state(SIZE_MIB, &[]).await;
    let small = Small {
        path: agent.path("state"),
    };
    small.fill();
    // The store has some room of its own yet.
    let token = |number: usize| json!({ "name": format!("t{number}"), "role": "viewer" });
    let mut refused = None;
    for number in 0..2000 {
        let body = token(number);
        let (status, body) = agent.request(Method::POST, "/tokens", Some(&body)).await;
        if status != 201 {
            refused = Some((status, body));
            break;
        }
    }
    let (status, body) = refused.expect("the store has room for everything");
    assert_eq!(status, 503, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("full"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    for path in ["/guests", "/nodes", "/pools", "/tasks", "/images"] {
        let (status, body) = agent.request(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    small.make_room();
    let body = token(2000);
    let (status, body) = agent.request(Method::POST, "/tokens", Some(&body)).await;
    assert_eq!(status, 201, "{body}");
}
