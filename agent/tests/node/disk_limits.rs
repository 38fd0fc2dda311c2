//! Limits of disks.

use pindah_agent::api::GuestView;
use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use pindah_agent::supervisor::Direct;
use pindah_agent::vmm_client::VmmClient;
use pindah_vmm_api::{DeviceInfo, DiskLimits};
use reqwest::{Method, header};
use serde_json::{Value, json};

use super::harness::{Agent, answer, kvm_opens};

const NONE: DiskLimits = DiskLimits {
    bandwidth_bytes_per_s: None,
    iops: None,
};

fn client(agent: &Agent, guest: &GuestView) -> VmmClient {
    VmmClient::new(&Direct::api_socket(&agent.guest_directory(guest)))
}

/// The limits that the guest's VMM keeps to, disk by disk.
async fn kept(agent: &Agent, guest: &GuestView) -> Vec<DiskLimits> {
    let devices = client(agent, guest).info().await.unwrap().devices;
    let limits = devices.into_iter().filter_map(|device| match device {
        DeviceInfo::Disk { limits, .. } => Some(limits),
        _ => None,
    });
    limits.collect()
}

async fn restart(agent: &Agent) {
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.wait_state("web", GuestState::Stopped).await;
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
}

#[tokio::test]
async fn disk_is_limited_at_once_and_after_each_start() {
    if !kvm_opens() {
        return;
    }
    let mut agent = Agent::start().await;
    agent.upload_probe().await;
    let disks = json!([{ "size_mib": 8 }, { "size_mib": 4, "limits": { "iops": 500 } }]);
    let extra = json!({ "disks": disks });
    let guest = agent
        .create_probe("web", "blk=1 blk_op=verify", extra)
        .await;
    let iops = |iops| DiskLimits {
        bandwidth_bytes_per_s: None,
        iops: Some(iops),
    };
    assert_eq!(kept(&agent, &guest).await, [NONE, iops(500)]);

    let limit = ["guest", "disk", "limit", "web"];
    let limit = |flags: &[&str]| agent.must(&[&limit, flags].concat());
    let said = limit(&["disk0", "--bandwidth", "20M"]);
    assert_eq!(said, "disk0 of web takes at most 20 MiB/s\n");
    limit(&["disk0", "--iops", "1000"]);
    let said = limit(&["disk1", "--iops", "none"]);
    assert_eq!(said, "disk1 of web has no limits\n");
    let both = DiskLimits {
        bandwidth_bytes_per_s: Some(20 << 20),
        iops: Some(1000),
    };
    assert_eq!(kept(&agent, &guest).await, [both, NONE]);
    let shown = agent.must(&["guest", "show", "web"]);
    let expected = "disk0: 8 MiB qcow2 in local (at most 20 MiB/s, 1000 IOPS), disk1: 4 MiB";
    assert!(shown.contains(expected), "{shown}");
    restart(&agent).await;
    assert_eq!(kept(&agent, &guest).await, [both, NONE]);

    // An agent that ended when it had written them down leaves them to the next one.
    agent.kill();
    let client = client(&agent, &guest);
    client.limit_disk("disk0", &iops(10)).await.unwrap();
    client.limit_disk("disk1", &iops(10)).await.unwrap();
    agent.spawn().await;
    agent.wait_state("web", GuestState::Running).await;
    assert_eq!(kept(&agent, &guest).await, [both, NONE]);
}

#[tokio::test]
async fn limits_of_a_guest_that_is_off_count_when_it_starts() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let extra = json!({ "disks": [{ "size_mib": 4 }] });
    let guest = agent.create_probe("web", "", extra).await;
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    agent.wait_state("web", GuestState::Stopped).await;
    let flags = ["--disk-bandwidth", "1M", "--disk-iops", "50"];
    let create = ["guest", "create", "db", "--memory", "64M", "--disk", "8M"];
    agent.must(&[&create[..], &flags].concat());
    let created = agent.guest("db").await.disks[0].limits;
    assert_eq!(created.to_string(), "1 MiB/s, 50 IOPS");
    agent.must(&["guest", "disk", "limit", "web", "disk0", "--iops", "50"]);
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    assert_eq!(kept(&agent, &guest).await[0].iops, Some(50));
}

/// Status and message of an attempt to limit a disk of `web`'s.
async fn attempt(agent: &Agent, disk: &str, body: &Value, etag: Option<&str>) -> (u16, String) {
    let path = format!("/guests/web/disks/{disk}/limits");
    let mut request = agent.client().request(Method::PUT, &path).json(body);
    if let Some(etag) = etag {
        request = request.header(header::IF_MATCH, etag);
    }
    let (status, body) = answer(request).await;
    let message = body["error"]["message"].as_str().unwrap_or_default();
    (status, message.to_owned())
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_and_change_nothing() {
    let agent = Agent::start().await;
    let disks = json!([{ "size_mib": 1, "limits": { "iops": 500 } }]);
    let mut guest = json!({ "name": "web", "memory_mib": 64, "interfaces": [], "disks": disks });
    let task = agent.begin(Method::POST, "/guests", Some(&guest)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let (_, etag) = agent
        .client()
        .get_tagged::<GuestView>("/guests/web")
        .await
        .unwrap();
    for (disk, body, status, expected) in [
        ("disk9", json!({}), 404, "guest web has no disk disk9"),
        (
            "disk0",
            json!({ "iops": 0 }),
            422,
            "limits.iops = 0: must be 10 to 1000000",
        ),
        (
            "disk0",
            json!({ "iops": 100, "bandwidth_bytes_per_s": 1 }),
            422,
            "limits.bandwidth_bytes_per_s = 1: must be 65536 to 1099511627776 bytes/s",
        ),
        ("disk0", json!({ "iops": "many" }), 422, "invalid type"),
        ("disk0", json!({ "iops": -1 }), 422, "invalid value"),
        ("disk0", json!({ "read_iops": 10 }), 422, "unknown field"),
    ] {
        let (got, message) = attempt(&agent, disk, &body, Some(&etag)).await;
        assert_eq!(got, status, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let lifted = json!({});
    assert_eq!(attempt(&agent, "disk0", &lifted, None).await.0, 428);
    assert_eq!(
        attempt(&agent, "disk0", &lifted, Some("\"1\"")).await.0,
        412
    );
    assert_eq!(agent.guest("web").await.disks[0].limits.iops, Some(500));

    guest["name"] = json!("db");
    guest["disks"][0]["limits"]["iops"] = json!(9);
    let (status, body) = agent.request(Method::POST, "/guests", Some(&guest)).await;
    assert_eq!(status, 422, "{body}");
    for (flags, expected) in [
        (&["--iops", "5"][..], "limits.iops = 5: must be 10 to"),
        (&["--bandwidth", "20"], "needs a unit, as in 512K"),
        (&[], "required arguments were not provided"),
    ] {
        let command = ["guest", "disk", "limit", "web", "disk0"];
        let refusal = agent.must_refuse(&[&command, flags].concat());
        assert!(refusal.contains(expected), "{refusal}");
    }
}
