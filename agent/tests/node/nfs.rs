//! NFS pools, with a program in the place of mount.nfs4 that mounts a directory of the test's: what
//! the agent asks for, and what it makes of the answers. The kernel's NFS is not part of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pindah_agent::domain::TaskState;
use reqwest::Method;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, kvm_opens};
use super::silence::{PROMPT, Silence};

/// Called as `mount.nfs4 SOURCE TARGET -o OPTIONS`.
const MOUNT: &str = r#"
echo "$*" >> $HERE/asked
[ -e $HERE/refusal ] && cat $HERE/refusal >&2 && exit 32
[ -e $HERE/silence ] && exec sleep 1000
case "$4" in
    *vers=4.2*) [ -e $HERE/old ] && echo "mount.nfs4: Protocol not supported" >&2 && exit 32 ;;
esac
exec mount --bind $HERE/export "$2"
"#;

/// An agent, and a server's export that is mounted nowhere when the test ends.
struct Nas {
    agent: Agent,
}

impl Nas {
    async fn start() -> Self {
        let programs = [("mount.nfs4", MOUNT), ("mount.nfs", MOUNT)];
        let agent = Agent::start_with_programs(&programs).await;
        fs::create_dir(agent.path("export")).unwrap();
        Self { agent }
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.agent.path("export").join(name), bytes).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.agent.path("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let ours = self.agent.path("state");
        let points = points.map(PathBuf::from);
        points.filter(|point| point.starts_with(&ours)).collect()
    }

    async fn create(&self) -> (u16, Value) {
        let spec = json!({ "name": "nas", "kind": "nfs", "server": "127.0.0.1",
            "export": "/srv/vm", "options": "nconnect=2,port=1" });
        self.agent
            .request(Method::POST, "/pools", Some(&spec))
            .await
    }

    async fn wait_pool(&self, state: &str) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let (_, shown) = self.agent.request(Method::GET, "/pools/nas", None).await;
            let here = shown["data"]["nodes"][0].clone();
            if here["state"] == state {
                return here;
            }
            assert!(Instant::now() < end, "{shown}\n{}", self.agent.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        self.agent.kill();
        for point in self.mounts() {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[tokio::test]
async fn pool_is_mounted_while_it_is_needed_and_again_after_a_restart() {
    if !kvm_opens() {
        return;
    }
    let mut nas = Nas::start().await;
    let (status, body) = nas.create().await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(body["data"]["nodes"][0]["state"], "ready", "{body}");
    let asked = nas.asked();
    let mount = nas.mounts();
    assert_eq!((asked.len(), mount.len()), (1, 1));
    let options = "vers=4.2,hard,timeo=50,lookupcache=positive,noatime,nosuid,nodev,noexec,retry=0";
    let target = mount[0].display();
    let expected = format!("127.0.0.1:/srv/vm {target} -o {options},nconnect=2,port=1");
    assert_eq!(asked[0], expected);

    // No link in it is followed, by whatever program.
    std::os::unix::fs::symlink("/etc/passwd", nas.agent.path("export/link")).unwrap();
    assert!(nas.agent.path("export/link").metadata().is_ok());
    let error = fs::read(mount[0].join("link")).unwrap_err();
    let expected = rustix::io::Errno::LOOP.raw_os_error();
    assert_eq!(error.raw_os_error(), Some(expected), "{error}");

    nas.agent.upload_probe().await;
    let disks = json!({ "disks": [{ "size_mib": 1, "pool": "nas" }] });
    let guest = nas.agent.create_probe("web", "", disks).await;
    let volume = nas.agent.path("export/volumes");
    let volume = volume.join(guest.uuid.to_string()).join("disk0.qcow2");
    assert!(volume.is_file());

    // While its guest runs it stays, and nothing is mounted over it.
    nas.agent.terminate();
    assert_eq!(nas.mounts().len(), 1);
    nas.agent.spawn().await;
    nas.wait_pool("ready").await;
    assert_eq!((nas.mounts().len(), nas.asked().len()), (1, 1));
    nas.agent
        .begin(Method::POST, "/guests/web/stop", None)
        .await;
    nas.agent.terminate();
    assert_eq!(nas.mounts().len(), 0);
    nas.agent.spawn().await;
    nas.wait_pool("ready").await;
    assert_eq!((nas.mounts().len(), nas.asked().len()), (1, 2));

    // One that went away by itself is noticed, and nothing is written into the empty place.
    let refusal = nas.agent.path("refusal");
    fs::write(&refusal, "mount.nfs4: Connection refused\n").unwrap();
    unmount(&nas.mounts()[0], UnmountFlags::DETACH).unwrap();
    let here = nas.wait_pool("unavailable").await;
    let reason = here["reason"].as_str().unwrap();
    let expected = "127.0.0.1:/srv/vm cannot be mounted: mount.nfs4: Connection refused";
    assert_eq!(reason, expected);
    let task = nas
        .agent
        .begin(Method::POST, "/guests/web/start", None)
        .await;
    assert_eq!(task.state, TaskState::Failed);
    assert!(task.error.unwrap().contains(expected));
    assert!(is_empty(&mount[0]));
    fs::remove_file(refusal).unwrap();
    nas.wait_pool("ready").await;
    let task = nas
        .agent
        .begin(Method::POST, "/guests/web/start", None)
        .await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");

    let path = "/guests/web?force=true";
    nas.agent.begin(Method::DELETE, path, None).await;
    assert!(!volume.exists());
    let (status, body) = nas.agent.request(Method::DELETE, "/pools/nas", None).await;
    assert_eq!(status, 204, "{body}");
    assert_eq!(nas.mounts().len(), 0);
    assert!(!mount[0].exists());
}

#[tokio::test]
async fn server_that_is_gone_is_named_until_it_is_back() {
    let nas = Nas::start().await;
    let (status, body) = nas.create().await;
    assert_eq!(status, 201, "{body}");
    let Some(silence) = Silence::over(&nas.mounts()[0]) else {
        return;
    };
    let end = Instant::now() + DEADLINE;
    loop {
        let here = nas.wait_pool("stalled").await;
        let reason = here["reason"].as_str().unwrap();
        if reason.contains("127.0.0.1 cannot be reached: Connection refused") {
            break;
        }
        assert!(Instant::now() < end, "{reason}");
    }
    assert_eq!(nas.asked().len(), 1);
    drop(silence);
    nas.wait_pool("ready").await;
    assert_eq!(nas.asked().len(), 1);
}

#[tokio::test]
async fn pool_whose_server_refuses_or_says_nothing_is_not_made() {
    let nas = Nas::start().await;
    let refusal = nas.agent.path("refusal");
    fs::write(
        &refusal,
        "\nmount.nfs4: access denied by server\nand more\n",
    )
    .unwrap();
    let (status, body) = nas.create().await;
    let message = body["error"]["message"].as_str().unwrap();
    assert_eq!(status, 503, "{body}");
    let expected = "127.0.0.1:/srv/vm cannot be mounted: mount.nfs4: access denied by server";
    assert!(message.ends_with(expected), "{message}");
    assert_eq!(nas.asked().len(), 1);
    fs::remove_file(&refusal).unwrap();

    fs::write(nas.agent.path("silence"), "").unwrap();
    let creation = async {
        let (status, body) = nas.create().await;
        assert_eq!(status, 503, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("has not answered for 20 s"), "{message}");
    };
    let others = async {
        for _ in 0..20 {
            let before = Instant::now();
            let (status, _) = nas.agent.request(Method::GET, "/pools", None).await;
            assert_eq!(status, 200);
            assert!(before.elapsed() < PROMPT);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(creation, others);
    assert!(nas.mounts().is_empty());
    let (_, pools) = nas.agent.request(Method::GET, "/pools", None).await;
    assert_eq!(pools["data"].as_array().unwrap().len(), 1, "{pools}");

    fs::remove_file(nas.agent.path("silence")).unwrap();
    // A server without 4.2 is asked for 4.1.
    fs::write(nas.agent.path("old"), "").unwrap();
    let (status, body) = nas.create().await;
    assert_eq!(status, 201, "{body}");
    assert!(nas.asked().last().unwrap().contains("vers=4.1,"));
}

#[tokio::test]
async fn mount_of_a_pool_that_is_no_more_goes() {
    let mut nas = Nas::start().await;
    let (status, _) = nas.create().await;
    assert_eq!(status, 201);
    nas.agent.kill();
    // As after a recovery from an old backup: the record is gone.
    fs::remove_file(nas.agent.path("state/private/store.db")).unwrap();
    nas.agent.spawn().await;
    assert!(nas.mounts().is_empty());
    // It still says whose it is.
    let (status, body) = nas.create().await;
    assert_eq!(status, 422, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("remove the file .pindah-pool"),
        "{message}"
    );
    assert!(nas.mounts().is_empty());
}

#[tokio::test]
async fn pool_for_reading_has_what_is_exported_and_takes_nothing() {
    let nas = Nas::start().await;
    let template = nas.agent.path("export/template.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&template)
        .arg("8M")
        .status();
    assert!(made.unwrap().success());
    let medium = vec![7; 3 << 20];
    nas.put("install.iso", &medium);
    nas.put("a name with blanks", b"x");
    std::os::unix::fs::symlink("/etc/passwd", nas.agent.path("export/link")).unwrap();
    let before = fs::read_dir(nas.agent.path("export")).unwrap().count();
    let spec = json!({ "name": "nas", "kind": "nfs", "server": "127.0.0.1", "export": "/srv/iso",
        "read_only": true, "version": 3 });
    let (status, body) = nas.agent.request(Method::POST, "/pools", Some(&spec)).await;
    assert_eq!(status, 201, "{body}");
    let asked = nas.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].contains(" -o vers=3,ro,softerr,"), "{asked:?}");
    assert!(asked[0].ends_with(",nolock"), "{asked:?}");

    let images: Vec<Value> = nas.agent.client().list("/images?pool=nas").await.unwrap();
    let seen: Vec<_> = images
        .iter()
        .map(|image| {
            (
                image["name"].as_str().unwrap(),
                image["virtual_bytes"].clone(),
            )
        })
        .collect();
    let expected = [
        ("install.iso", json!(3 << 20)),
        ("template.qcow2", json!(8 << 20)),
    ];
    assert_eq!(seen, expected);

    let web =
        |disk: Value| json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": [disk] });
    let elsewhere = web(json!({ "size_mib": 1, "pool": "nas" }));
    for (method, path, body) in [
        (Method::PUT, "/images/a?pool=nas", None),
        (Method::DELETE, "/images/install.iso?pool=nas", None),
        (Method::POST, "/guests", Some(&elsewhere)),
    ] {
        let (status, answer) = nas.agent.request(method, path, body).await;
        assert_eq!(status, 422, "{path}: {answer}");
        assert!(answer.to_string().contains("read-only"), "{answer}");
    }
    let from = web(json!({ "image": "nas/install.iso", "format": "raw" }));
    let task = nas.agent.begin(Method::POST, "/guests", Some(&from)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let uuid = nas.agent.guest("web").await.uuid.to_string();
    let disk = nas.agent.path("state/pool/volumes").join(uuid);
    assert!(fs::read(disk.join("disk0.raw")).unwrap() == medium);
    let move_there = json!({ "pool": "nas" });
    let path = "/guests/web/disks/disk0/move";
    let (status, answer) = nas
        .agent
        .request(Method::POST, path, Some(&move_there))
        .await;
    assert_eq!(status, 422, "{answer}");

    let after = fs::read_dir(nas.agent.path("export")).unwrap().count();
    assert_eq!(before, after, "something was written there");
    let (status, body) = nas.agent.request(Method::DELETE, "/pools/nas", None).await;
    assert_eq!(status, 204, "{body}");
    assert!(nas.mounts().is_empty());
    let mut spec = spec;
    spec["read_only"] = json!(false);
    let (status, body) = nas.agent.request(Method::POST, "/pools", Some(&spec)).await;
    assert_eq!(status, 422, "{body}");
}
