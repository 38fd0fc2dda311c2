//! Pools beside the node's own: made, used, and not lost by mistake.

use std::fs;
use std::os::unix::fs::symlink;

use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, answer, kvm_opens};

/// A pool in a new directory of the test's.
async fn create(agent: &Agent, name: &str, shared: bool) -> Value {
    let path = agent.path(name);
    fs::create_dir(&path).unwrap();
    let spec = json!({ "name": name, "kind": "dir", "path": path, "shared": shared });
    let (status, body) = agent.request(Method::POST, "/pools", Some(&spec)).await;
    assert_eq!(status, 201, "{body}");
    body["data"].clone()
}

async fn assert_refused(
    agent: &Agent,
    (method, path): (Method, &str),
    body: Option<&Value>,
    (status, message): (u16, &str),
) {
    let (got, answer) = agent.request(method, path, body).await;
    assert_eq!(got, status, "{answer}");
    let text = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(text.contains(message), "{text:?} does not say {message:?}");
    assert!(!text.contains('\n'), "{text:?} is more than one line");
}

#[tokio::test]
async fn guest_lives_in_a_pool_that_cannot_go_before_it() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    let pool = create(&agent, "nas", true).await;
    assert_eq!(pool["nodes"][0]["state"], "ready", "{pool}");
    assert!(pool["nodes"][0]["free_mib"].as_u64().unwrap() > 0);
    let image = vec![7; 3 << 20];
    let put = agent
        .client()
        .request(Method::PUT, "/images/data?pool=nas")
        .body(image);
    let (status, body) = answer(put).await;
    assert_eq!((status, &body["data"]["pool"]), (201, &json!("nas")));
    agent.upload_probe().await;
    let images: Vec<Value> = agent.client().list("/images").await.unwrap();
    assert_eq!(images.len(), 2, "{images:?}");
    let of_pool: Vec<Value> = agent.client().list("/images?pool=nas").await.unwrap();
    assert_eq!(of_pool.len(), 1, "{of_pool:?}");

    let disks = json!([
        { "size_mib": 8, "pool": "nas" },
        { "image": "nas/data", "pool": "nas", "format": "raw" },
        { "size_mib": 1 },
    ]);
    let extra = json!({ "disks": disks });
    let guest = agent
        .create_probe("web", "blk=1 blk_op=verify blk_s=1", extra)
        .await;
    assert_eq!(guest.state, GuestState::Running);
    let volumes = agent.path("nas/volumes").join(guest.uuid.to_string());
    assert!(volumes.join("disk0.qcow2").is_file());
    assert_eq!(
        fs::metadata(volumes.join("disk1.raw")).unwrap().len(),
        3 << 20
    );
    agent.wait_reports(&guest, "start", 1).await;

    let delete = |force| {
        let path = format!("/pools/nas?force={force}");
        (Method::DELETE, path)
    };
    for force in [false, true] {
        let (method, path) = delete(force);
        assert_refused(&agent, (method, &path), None, (409, "running guests: web")).await;
    }
    agent.begin(Method::POST, "/guests/web/stop", None).await;
    let (method, path) = delete(false);
    assert_refused(
        &agent,
        (method, &path),
        None,
        (409, "disks or images of guests: web"),
    )
    .await;
    let task = agent.begin(Method::DELETE, "/guests/web", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert!(!volumes.exists());
    let (method, path) = delete(false);
    assert_refused(
        &agent,
        (method, &path),
        None,
        (409, "pool nas has 1 images"),
    )
    .await;
    let (status, _) = agent
        .request(Method::DELETE, "/images/data?pool=nas", None)
        .await;
    assert_eq!(status, 204);
    let (method, path) = delete(false);
    assert_eq!(agent.request(method, &path, None).await.0, 204);
    assert!(agent.path("nas").is_dir());
    assert!(!agent.path("nas/.pindah-pool").exists());
    let (status, _) = agent.request(Method::GET, "/pools/nas", None).await;
    assert_eq!(status, 404);
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn pool_that_cannot_be_is_refused_and_leaves_nothing() {
    let agent = Agent::start().await;
    create(&agent, "nas", true).await;
    let mine = agent.path("mine");
    fs::create_dir(&mine).unwrap();
    symlink(&mine, agent.path("link")).unwrap();
    fs::write(agent.path("file"), "").unwrap();
    let path = |name: &str| agent.path(name).display().to_string();
    for (name, at, status, message) in [
        (
            "../x",
            path("mine"),
            422,
            "pool = \"../x\": must be 1 to 63",
        ),
        ("local", path("mine"), 409, "there is a pool local already"),
        ("nas", path("mine"), 409, "there is a pool nas already"),
        ("a", "mine".to_owned(), 422, "must be an absolute path"),
        ("a", format!("{}/../mine", path("mine")), 422, "without .."),
        ("a", "/".to_owned(), 422, "not the system's"),
        (
            "a",
            path("none"),
            422,
            "no such directory on node1; make it, or mount it",
        ),
        ("a", path("file"), 422, "it is no directory"),
        ("a", path("link"), 422, "symbolic links lead from it to"),
        ("a", path("nas/volumes"), 422, "overlaps with pool nas"),
        ("a", path(""), 422, "overlaps with"),
        (
            "a",
            path("state/pool"),
            422,
            "overlaps with the agent's own",
        ),
    ] {
        let spec = json!({ "name": name, "kind": "dir", "path": at });
        let request = (Method::POST, "/pools");
        assert_refused(&agent, request, Some(&spec), (status, message)).await;
    }
    for (spec, message) in [
        (
            json!({ "name": "a", "kind": "dir" }),
            "path = null: must say",
        ),
        (
            json!({ "name": "a", "kind": "tape" }),
            "unknown variant `tape`",
        ),
        (
            json!({ "name": "a", "kind": "dir", "path": path("mine"), "size": 1 }),
            "unknown field `size`",
        ),
    ] {
        let request = (Method::POST, "/pools");
        assert_refused(&agent, request, Some(&spec), (422, message)).await;
    }
    let delete = |path| (Method::DELETE, path);
    assert_refused(
        &agent,
        delete("/pools/local"),
        None,
        (409, "belongs to the node"),
    )
    .await;
    assert_refused(&agent, delete("/pools/none"), None, (404, "no pool none")).await;
    assert_eq!(fs::read_dir(&mine).unwrap().count(), 0);
    let pools: Vec<Value> = agent.client().list("/pools").await.unwrap();
    assert_eq!(pools.len(), 2, "{pools:?}");

    // One that another cluster has.
    let mark = json!({ "pool": "theirs", "id": uuid::Uuid::new_v4() });
    fs::write(mine.join(".pindah-pool"), mark.to_string()).unwrap();
    let spec = json!({ "name": "a", "kind": "dir", "path": mine });
    let request = (Method::POST, "/pools");
    assert_refused(&agent, request, Some(&spec), (422, "it is pool theirs")).await;
}

#[tokio::test]
async fn guest_that_names_what_a_pool_does_not_have_is_refused() {
    let agent = Agent::start().await;
    create(&agent, "nas", true).await;
    symlink("/etc/shadow", agent.path("nas/images/secret")).unwrap();
    let description = json!({ "name": "secret", "format": "raw", "virtual_bytes": 1,
        "file_bytes": 1, "sha256": "" });
    fs::write(
        agent.path("nas/images/.secret.json"),
        description.to_string(),
    )
    .unwrap();
    for (disk, message) in [
        (
            json!({ "size_mib": 1, "pool": "none" }),
            "there is no pool none",
        ),
        (json!({ "size_mib": 1, "pool": "../x" }), "pool = \"../x\""),
        (
            json!({ "image": "nas/none" }),
            "there is no image none in pool nas",
        ),
        (json!({ "image": "none/a" }), "there is no pool none"),
        (json!({ "image": "nas/../../etc/shadow" }), "file name"),
        (json!({ "image": "nas/secret" }), "is a link or no file"),
    ] {
        let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": [disk] });
        let request = (Method::POST, "/guests");
        assert_refused(&agent, request, Some(&body), (422, message)).await;
    }
    let (status, _) = agent
        .request(Method::DELETE, "/images/secret?pool=nas", None)
        .await;
    assert_eq!(status, 204);
    assert_eq!(fs::read_dir(agent.path("nas/images")).unwrap().count(), 0);
    assert!(fs::metadata("/etc/shadow").is_ok());
    for path in ["/images?pool=none", "/images/a?pool=none"] {
        assert_refused(&agent, (Method::GET, path), None, (404, "no pool none")).await;
    }
    assert_refused(
        &agent,
        (Method::GET, "/images?pool=.."),
        None,
        (400, "pool"),
    )
    .await;
    let guests: Vec<Value> = agent.client().list("/guests").await.unwrap();
    assert_eq!(guests.len(), 0);
}

#[tokio::test]
async fn image_is_downloaded_as_it_was_uploaded() {
    let agent = Agent::start().await;
    create(&agent, "nas", true).await;
    let bytes: Vec<u8> = (0..5u32 << 20)
        .map(|n| (n.wrapping_mul(n) >> 9) as u8)
        .collect();
    let put = agent.client().request(Method::PUT, "/images/a?pool=nas");
    assert_eq!(answer(put.body(bytes.clone())).await.0, 201);
    let to = agent.path("a");
    let arguments = [
        "image",
        "download",
        "a",
        "--pool",
        "nas",
        "--to",
        to.to_str().unwrap(),
    ];
    let (ok, said, error) = agent.pindah(&arguments);
    assert!(ok, "{said}{error}");
    assert_eq!(fs::read(&to).unwrap(), bytes);
    let (ok, _, error) = agent.pindah(&arguments);
    assert!(!ok && error.contains("exists"), "{error}");

    // What somebody has changed on the NAS is not taken for it.
    fs::remove_file(&to).unwrap();
    fs::write(agent.path("nas/images/a"), vec![0; bytes.len()]).unwrap();
    let (ok, _, error) = agent.pindah(&arguments);
    assert!(!ok && error.contains("SHA-256 differs"), "{error}");
    assert!(!to.exists());
    for path in ["/images/none/content", "/images/a/content"] {
        let request = (Method::GET, path);
        assert_refused(&agent, request, None, (404, "there is no image")).await;
    }
}

#[tokio::test]
async fn image_that_was_exchanged_in_a_pool_is_not_followed_elsewhere() {
    let agent = Agent::start().await;
    create(&agent, "nas", true).await;
    let path = agent.path("made.qcow2");
    let make = |extra: &[&str]| {
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(extra)
            .arg(&path)
            .arg("8M")
            .status();
        assert!(made.unwrap().success());
        fs::read(&path).unwrap()
    };
    let put = agent.client().request(Method::PUT, "/images/a?pool=nas");
    let (status, _) = answer(put.body(make(&[]))).await;
    assert_eq!(status, 201);
    let backed = make(&["-u", "-b", "/etc/shadow", "-F", "raw"]);
    fs::write(agent.path("nas/images/a"), backed).unwrap();
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "image": "nas/a" }] });
    let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
    let error = task.error.unwrap();
    assert!(
        error.contains("not complete without \"/etc/shadow\""),
        "{error}"
    );
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn mount_that_is_missing_is_seen_and_nothing_is_put_in_its_place() {
    let mut agent = Agent::start().await;
    create(&agent, "nas", true).await;
    fs::rename(agent.path("nas"), agent.path("away")).unwrap();
    fs::create_dir(agent.path("nas")).unwrap();
    agent.kill();
    agent.spawn().await;
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1, "pool": "nas" }] });
    let request = (Method::POST, "/guests");
    assert_refused(&agent, request, Some(&body), (503, "is it mounted?")).await;
    let (_, shown) = agent.request(Method::GET, "/pools/nas", None).await;
    assert_eq!(shown["data"]["nodes"][0]["state"], "unavailable", "{shown}");
    assert_eq!(fs::read_dir(agent.path("nas")).unwrap().count(), 0);
    fs::remove_dir(agent.path("nas")).unwrap();
    fs::rename(agent.path("away"), agent.path("nas")).unwrap();
    let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
}
