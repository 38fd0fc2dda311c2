//! What cannot be is refused with a sentence, and leaves nothing behind.

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, answer};

async fn assert_refused(request: reqwest::RequestBuilder, status: u16, message: &str) {
    let (got, body) = answer(request).await;
    let text = body["error"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert_eq!(got, status, "{body}");
    assert!(text.contains(message), "{text:?} does not say {message:?}");
    assert!(!text.contains('\n'), "{text:?} is more than one line");
    assert!(body["error"]["code"].is_string(), "{body}");
}

fn guest(extra: &Value) -> Value {
    let mut body = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1 }] });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn guest_that_cannot_be_is_refused_and_leaves_nothing() {
    let agent = Agent::start().await;
    let huge = 100 << 20;
    for (extra, status, message) in [
        (
            json!({ "name": "../../etc" }),
            422,
            "must be 1 to 63 lower-case letters",
        ),
        (json!({ "name": "" }), 422, "name"),
        (json!({ "name": "A" }), 422, "name"),
        (json!({ "name": 7 }), 422, "invalid type"),
        (
            json!({ "memory_mib": 0 }),
            422,
            "memory_mib = 0: must be 16 to",
        ),
        (json!({ "memory_mib": 1e30 }), 422, "memory_mib"),
        (
            json!({ "memory_mib": 1_000_000, "start": true }),
            409,
            "needs 1000008 MiB",
        ),
        (json!({ "cpus": 65 }), 422, "cpus = 65: must be 1 to 64"),
        (json!({ "cpus": 300 }), 422, "cpus"),
        (
            json!({ "disks": [{ "size_mib": huge }] }),
            422,
            "disks[0].size_mib",
        ),
        (
            json!({ "disks": [{ "size_mib": 60_000_000, "format": "raw" }] }),
            409,
            "60000000 MiB are needed",
        ),
        (
            json!({ "disks": [{ "image": "none" }] }),
            422,
            "there is no image none",
        ),
        (
            json!({ "disks": [{ "image": "../../../etc/shadow" }] }),
            422,
            "file name",
        ),
        (
            json!({ "kernel": { "image": "none" } }),
            422,
            "there is no image none",
        ),
        (
            json!({ "interfaces": [{ "mac": "x" }] }),
            422,
            "must be six octets",
        ),
        (
            json!({ "cloud_init": { "user_data": "x" } }),
            422,
            "must begin with #cloud-config",
        ),
        (json!({ "surprise": true }), 422, "unknown field `surprise`"),
        (json!({ "notes": "a\u{0}b" }), 422, "notes"),
    ] {
        let request = agent.client().request(Method::POST, "/guests");
        assert_refused(request.json(&guest(&extra)), status, message).await;
    }
    let guests: Vec<Value> = agent.client().list("/guests").await.unwrap();
    let tasks: Vec<Value> = agent.client().list("/tasks").await.unwrap();
    assert_eq!((guests.len(), tasks.len()), (0, 0));
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn request_that_is_none_is_refused() {
    let agent = Agent::start().await;
    let client = agent.client();
    let post = |body: &'static str| client.request(Method::POST, "/guests").body(body);
    let json = |body| post(body).header("Content-Type", "application/json");
    assert_refused(post("{}"), 415, "must be JSON").await;
    assert_refused(json("{"), 400, "the body cannot be read").await;
    let twice = r#"{"name":"web","memory_mib":64,"limits":{"cpu_shares":1,"cpu_shares":2}}"#;
    assert_refused(json(twice), 400, r#"field "cpu_shares" is there twice"#).await;
    assert_refused(json("[]"), 422, "the body").await;
    assert_refused(json("null"), 422, "the body").await;
    let large = "x".repeat(2 << 20);
    let request = client.request(Method::POST, "/guests");
    let request = request
        .header("Content-Type", "application/json")
        .body(large);
    assert_refused(request, 413, "too large").await;
    let deep = format!("{{\"notes\":{}", "[".repeat(100_000));
    let request = client.request(Method::POST, "/guests");
    let request = request
        .header("Content-Type", "application/json")
        .body(deep);
    assert_refused(request, 400, "the body cannot be read: ").await;
    let deep = "[".repeat(1_000) + &"]".repeat(1_000);
    let request = client.request(Method::POST, "/guests");
    let request = request
        .header("Content-Type", "application/json")
        .body(format!("{{\"notes\":{deep}}}"));
    let message = "the body cannot be read: recursion limit exceeded";
    assert_refused(request, 400, message).await;
    for (method, path, status) in [
        (Method::GET, "/nothing", 404),
        (Method::PUT, "/guests", 405),
        (Method::GET, "/guests?limit=0", 400),
        (Method::GET, "/guests?limit=x", 400),
        (Method::GET, "/guests?surprise=1", 400),
        (Method::GET, "/tasks?limit=1001", 400),
        (Method::GET, "/tasks?after=x", 400),
        (Method::GET, "/guests/..%2F..%2Fetc", 404),
        (Method::GET, "/guests/none", 404),
        (Method::GET, "/tasks/none", 404),
        (
            Method::GET,
            "/tasks/00000000-0000-0000-0000-000000000000",
            404,
        ),
        (Method::GET, "/nodes/none", 404),
        (Method::GET, "/images/..%2F..%2Fprivate%2Fca-key.pem", 422),
        (Method::DELETE, "/images/.probe.json", 422),
        (Method::DELETE, "/images/none", 404),
    ] {
        let (got, body) = agent.request(method.clone(), path, None).await;
        assert_eq!(got, status, "{method} {path}: {body}");
    }
    // A head of 100 KB.
    let request = client
        .request(Method::GET, "/guests")
        .header("X-Large", "x".repeat(100_000));
    let refused = request.send().await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status().is_client_error()));
}

fn qcow2(directory: &std::path::Path, extra: &[&str]) -> Vec<u8> {
    let path = directory.join("made.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .args(extra)
        .arg(&path)
        .arg("8M")
        .status();
    assert!(made.unwrap().success());
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn image_that_is_none_or_points_elsewhere_is_refused_and_leaves_nothing() {
    let agent = Agent::start().await;
    let put = |name: &str, bytes: Vec<u8>| {
        agent
            .client()
            .request(Method::PUT, &format!("/images/{name}"))
            .body(bytes)
    };
    let backed = qcow2(&agent.path(""), &["-u", "-b", "/etc/shadow", "-F", "raw"]);
    assert_refused(
        put("a", backed),
        422,
        "not complete without \"/etc/shadow\"",
    )
    .await;
    assert_refused(put("a", Vec::new()), 422, "it is empty").await;
    let descriptor = b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n".to_vec();
    assert_refused(put("a", descriptor), 422, "only names other files").await;
    assert_refused(put(".hidden", vec![1]), 422, "file name").await;
    let images: Vec<Value> = agent.client().list("/images").await.unwrap();
    assert_eq!(images.len(), 0);
    agent.assert_no_guests_left();

    let good = qcow2(&agent.path(""), &[]);
    let (status, body) = answer(put("a", good.clone())).await;
    assert_eq!(
        (status, &body["data"]["virtual_bytes"]),
        (201, &json!(8 << 20))
    );
    assert_refused(put("a", good), 409, "there is an image a already").await;
    let small = guest(&json!({ "disks": [{ "image": "a", "size_mib": 4 }] }));
    let request = agent.client().request(Method::POST, "/guests").json(&small);
    assert_refused(
        request,
        422,
        "a disk of 4 MiB cannot hold image a, which has 8 MiB",
    )
    .await;
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn guest_from_an_image_has_its_size_or_more() {
    let agent = Agent::start().await;
    let (status, _) = agent.upload("a", qcow2(&agent.path(""), &[])).await;
    assert_eq!(status, 201);
    let disks = json!([{ "image": "a" }, { "image": "a", "size_mib": 16, "format": "raw" }]);
    let task = agent
        .begin(
            Method::POST,
            "/guests",
            Some(&guest(&json!({ "disks": disks }))),
        )
        .await;
    assert_eq!(task.error, None);
    let made = agent.guest("web").await;
    let sizes: Vec<u64> = made.disks.iter().map(|disk| disk.size_mib).collect();
    assert_eq!(sizes, [8, 16]);
    let raw = agent
        .path("state/pool/volumes")
        .join(made.uuid.to_string())
        .join("disk1.raw");
    assert_eq!(std::fs::metadata(raw).unwrap().len(), 16 << 20);
}
