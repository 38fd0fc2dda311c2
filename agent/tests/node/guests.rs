//! Create, look, change, stop, delete.

use futures_util::{SinkExt, StreamExt};
use pindah_agent::client::Socket;
use pindah_agent::domain::{TaskState, Wanted};
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::harness::{Agent, DEADLINE, answer, kvm_opens, probe_spec};

#[tokio::test]
async fn guest_lives_from_create_to_delete_and_leaves_nothing() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let disks = json!([{ "size_mib": 8 }, { "size_mib": 4, "format": "raw" }]);
    let extra = json!({ "disks": disks, "tags": ["test"], "notes": "line 1\nline 2" });
    let guest = agent
        .create_probe("web", "blk=1 blk_op=verify blk_s=1", extra)
        .await;
    assert_eq!(
        (guest.state, guest.wanted),
        (GuestState::Running, Wanted::Running)
    );
    assert_eq!(guest.disks.len(), 2);
    let start = agent.wait_reports(&guest, "start", 1).await;
    assert_eq!(start[0]["cpus"], 1);
    let node = agent.node().await;
    assert_eq!((node.guests, node.guests_running), (1, 1));
    assert!(node.memory_guests_mib >= 64);

    let listed: Vec<Value> = agent.client().list("/guests").await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["name"], "web");
    let by_uuid = agent.guest(&guest.uuid.to_string()).await;
    assert_eq!(by_uuid.name, guest.name);

    // The probe does not hear the power button: the deadline of a second counts.
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let stopped = agent.guest("web").await;
    assert_eq!(
        (stopped.state, stopped.wanted),
        (GuestState::Stopped, Wanted::Stopped)
    );
    assert_eq!(stopped.pid, None);

    let task = agent.begin(Method::DELETE, "/guests/web", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(agent.request(Method::GET, "/guests/web", None).await.0, 404);
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn guest_pauses_resumes_and_resets() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    agent.wait_reports(&guest, "beat", 1).await;
    let post = async |path: &str| agent.request(Method::POST, path, None).await;
    let (status, body) = post("/guests/web/pause").await;
    assert_eq!((status, &body["data"]["state"]), (200, &json!("paused")));
    let (status, body) = post("/guests/web/start").await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("conflict")));
    let (status, body) = post("/guests/web/resume").await;
    assert_eq!((status, &body["data"]["state"]), (200, &json!("running")));
    assert_eq!(post("/guests/web/reset").await.0, 200);
    agent.wait_reports(&guest, "start", 2).await;
    let (status, _) = answer(
        agent
            .client()
            .request(Method::POST, "/guests/web/stop")
            .json(&json!({ "force": true })),
    )
    .await;
    assert_eq!(status, 202);
    agent.wait_state("web", GuestState::Stopped).await;
    let (status, body) = post("/guests/web/pause").await;
    assert_eq!(status, 409);
    let message = body["error"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        "guest web is stopped; it can be paused when it runs"
    );
}

async fn read_until(socket: &mut Socket, wanted: &str) -> String {
    let mut seen = String::new();
    let read = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message {
                seen.push_str(&String::from_utf8_lossy(&bytes));
                if seen.contains(wanted) {
                    return;
                }
            }
        }
    };
    let read = tokio::time::timeout(DEADLINE, read).await;
    assert!(
        read.is_ok() && seen.contains(wanted),
        "no {wanted} in {seen}"
    );
    seen
}

#[tokio::test]
async fn console_shows_what_was_and_takes_what_is_typed() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    agent.wait_reports(&guest, "ready", 1).await;
    let mut socket = agent
        .client()
        .websocket("/guests/web/console")
        .await
        .unwrap();
    read_until(&mut socket, "\"ev\":\"ready\"").await;
    let typed = Message::Binary(b"status\n".to_vec().into());
    socket.send(typed).await.unwrap();
    read_until(&mut socket, "\"ev\":\"status\"").await;

    // Of a guest that shuts down by itself nobody wants that it starts again.
    let typed = Message::Binary(b"poweroff\n".to_vec().into());
    socket.send(typed).await.unwrap();
    let off = agent.wait_state("web", GuestState::Stopped).await;
    assert_eq!(off.reason.as_deref(), Some("the guest shut itself down"));
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(DEADLINE, end)
        .await
        .expect("the console ends with the guest");
    assert_eq!(agent.guest("web").await.wanted, Wanted::Stopped);
    let closed = agent.client().websocket("/guests/web/console").await;
    let message = closed.err().map(|error| error.to_string()).unwrap();
    assert!(
        message.starts_with("guest web is stopped; start it first"),
        "{message}"
    );
    let log = agent
        .client()
        .request(Method::GET, "/guests/web/log?bytes=100000");
    let log = agent
        .client()
        .send(log)
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(log.contains("\"ev\":\"start\""), "{log}");
}

#[tokio::test]
async fn edit_needs_what_was_read_and_renames_in_one_step() {
    let agent = Agent::start().await;
    for name in ["web", "db"] {
        let body = json!({ "name": name, "memory_mib": 64, "interfaces": [],
            "disks": [{ "size_mib": 1 }] });
        let task = agent.begin(Method::POST, "/guests", Some(&body)).await;
        assert_eq!(task.state, TaskState::Done, "{task:?}");
    }
    let client = agent.client();
    let edit = |etag: &str, body: Value| {
        let request = client.request(Method::PATCH, "/guests/web").json(&body);
        answer(request.header("If-Match", etag))
    };
    let (_, etag) = client.get_tagged::<Value>("/guests/web").await.unwrap();
    let without = agent
        .request(Method::PATCH, "/guests/web", Some(&json!({})))
        .await;
    assert_eq!(
        (without.0, &without.1["error"]["code"]),
        (428, &json!("precondition_required"))
    );
    let (status, body) = edit(&etag, json!({ "name": "db" })).await;
    assert_eq!(status, 409, "{body}");
    let (status, body) = edit(&etag, json!({ "notes": "new", "memory_mib": 128 })).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["data"]["guest"]["memory_mib"], 128);
    assert_eq!(body["data"]["restart_needed"], false);
    let (status, body) = edit(&etag, json!({ "notes": "newer" })).await;
    assert_eq!(status, 412, "{body}");
    let (_, etag) = client.get_tagged::<Value>("/guests/web").await.unwrap();
    assert_eq!(edit(&etag, json!({ "name": "www" })).await.0, 200);
    assert_eq!(agent.request(Method::GET, "/guests/web", None).await.0, 404);
    assert_eq!(agent.guest("www").await.notes, "new");
}

#[tokio::test]
async fn create_sent_twice_makes_one_guest() {
    let agent = Agent::start().await;
    let body = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1 }] });
    let create = |key: &str, body: &Value| {
        let request = agent.client().request(Method::POST, "/guests").json(body);
        answer(request.header("Idempotency-Key", key))
    };
    let (status, first) = create("k1", &body).await;
    assert_eq!(status, 202, "{first}");
    let (status, second) = create("k1", &body).await;
    assert_eq!((status, &second["task"]["id"]), (202, &first["task"]["id"]));
    let mut other = body.clone();
    other["name"] = json!("db");
    assert_eq!(create("k1", &other).await.0, 422);
    assert_eq!(create("k2", &body).await.0, 409);
    // What was refused may be tried again with the same key.
    other["memory_mib"] = json!(1);
    assert_eq!(create("k3", &other).await.0, 422);
    other["memory_mib"] = json!(64);
    assert_eq!(create("k3", &other).await.0, 202);
}

#[tokio::test]
async fn list_has_pages() {
    let agent = Agent::start().await;
    for number in 0..5 {
        let body = json!({ "name": format!("g{number}"), "memory_mib": 64, "interfaces": [],
            "disks": [{ "size_mib": 1 }] });
        agent.begin(Method::POST, "/guests", Some(&body)).await;
    }
    let mut path = "/guests?limit=2".to_owned();
    let mut names = Vec::new();
    let mut pages = 0;
    loop {
        let (status, body) = agent.request(Method::GET, &path, None).await;
        assert_eq!(status, 200, "{body}");
        pages += 1;
        for guest in body["data"].as_array().unwrap() {
            names.push(guest["name"].as_str().unwrap().to_owned());
        }
        let Some(next) = body["next"].as_str() else {
            break;
        };
        path = format!("/guests?limit=2&after={next}");
    }
    names.sort();
    assert_eq!((pages, names.join(" ")), (3, "g0 g1 g2 g3 g4".to_owned()));
}

#[tokio::test]
async fn start_that_fails_says_why_and_leaves_the_guest_off() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    let (status, _) = agent.upload("probe", b"no kernel at all".to_vec()).await;
    assert_eq!(status, 201);
    let mut body = probe_spec("web", "");
    body["start"] = json!(false);
    agent.begin(Method::POST, "/guests", Some(&body)).await;
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Failed);
    let error = task.error.unwrap();
    assert!(error.starts_with("guest web does not start: "), "{error}");
    let guest = agent.guest("web").await;
    assert_eq!(
        (guest.state, guest.wanted),
        (GuestState::Stopped, Wanted::Stopped)
    );
    assert!(!agent.guest_directory(&guest).join("process.json").exists());
}

#[tokio::test]
async fn guest_with_cloud_init_has_its_seed_at_each_start_and_shows_no_secret() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let cloud_init = json!({ "user_data": "#cloud-config\npassword: secret\n" });
    // Its first disk is the seed: reads succeed, and that is all that a probe can tell.
    let cmdline = "blk=1 blk_op=seqread blk_s=1";
    let extra = json!({ "cloud_init": cloud_init });
    let guest = agent.create_probe("web", cmdline, extra).await;
    assert!(guest.cloud_init);
    let end = agent.wait_reports(&guest, "blk", 1).await;
    assert_eq!(end.last().unwrap()["errors"], 0);
    let (_, shown) = agent.request(Method::GET, "/guests/web", None).await;
    assert!(!shown.to_string().contains("secret"), "{shown}");
    agent.begin(Method::POST, "/guests/web/stop", None).await;
    let seed = agent.guest_directory(&guest).join("seed.img");
    std::fs::remove_file(&seed).unwrap();
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.error, None);
    assert!(seed.exists());
}

#[tokio::test]
async fn order_in_which_guests_start_with_their_node_is_set_and_shown() {
    let agent = Agent::start().await;
    let create = ["guest", "create", "web", "--memory", "64M", "--disk", "1M"];
    let order = ["--autostart", "--autostart-order", "3", "--no-network"];
    agent.must(&[&create[..], &order].concat());
    let shown = agent.must(&["guest", "show", "web"]);
    assert!(shown.contains("yes, order 3\n"), "{shown}");
    agent.must(&["guest", "edit", "web", "--autostart-delay", "10"]);
    let shown = agent.must(&["guest", "show", "web"]);
    assert!(
        shown.contains("yes, order 3, the next one waits 10 s"),
        "{shown}"
    );
    agent.must(&["guest", "edit", "web", "--autostart", "false"]);
    let autostart = agent.guest("web").await.autostart;
    assert_eq!(
        (autostart.enabled, autostart.order, autostart.delay_s),
        (false, 3, 10)
    );
    let refusal = agent.must_refuse(&["guest", "edit", "web", "--autostart-order", "65536"]);
    assert!(refusal.contains("65536"), "{refusal}");
}
