//! Changes to interfaces of guests.

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, answer, is_root, kvm_opens, stdout};
use super::wire::{Machine, create_guest};

#[tokio::test]
async fn mac_address_is_given_once_and_again_when_its_guest_is_gone() {
    let agent = Agent::start().await;
    let guest = |name: &str| {
        json!({ "name": name, "memory_mib": 64, "disks": [{ "size_mib": 1 }],
            "interfaces": [{ "mac": "52:54:00:AA:00:01" }] })
    };
    let (web, other) = (guest("web"), guest("db"));
    let create = |guest| agent.begin(Method::POST, "/guests", Some(guest));
    assert_eq!(create(&web).await.error, None);
    let (status, answer) = agent.request(Method::POST, "/guests", Some(&other)).await;
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(status, 409, "{answer}");
    assert!(message.contains("52:54:00:aa:00:01 already"), "{message}");
    agent.begin(Method::DELETE, "/guests/web", None).await;
    assert_eq!(create(&other).await.error, None);
}

#[tokio::test]
async fn interface_is_changed_while_its_guest_runs_and_set_up_again_after_a_crash() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = Agent::start_in_namespace("change").await;
    let machine = Machine::new("change-m");
    machine.plug("eth0", &agent, "up0", "10.5.0.9/24");
    agent.must(&["network", "create", "lan", "--uplink", "up0"]);
    let flags = [
        "--network",
        "lan",
        "--deny",
        "in:icmp",
        "--stateful",
        "false",
    ];
    create_guest(&agent, "web", "ip=10.5.0.50 peer=10.5.0.9", &flags);
    let set = ["guest", "interface", "set", "web", "net0"];
    let set = |agent: &Agent, flags: &[&str]| agent.must(&[&set, flags].concat());
    assert!(!machine.reaches("10.5.0.50"));
    set(&agent, &["--deny", "none", "--address", "10.5.0.50"]);
    assert!(machine.reaches("10.5.0.50"), "{}", agent.log());
    // A guest that is to have another address is not heard from this one.
    set(&agent, &["--address", "10.5.0.51"]);
    assert!(!machine.reaches("10.5.0.50"));
    set(
        &agent,
        &[
            "--address",
            "none",
            "--deny",
            "in:icmp",
            "--rate-limit",
            "20M",
        ],
    );
    let said = agent.must(&["guest", "interface", "list", "web"]);
    assert!(said.contains("20000 in, 20000 kbit/s out"), "{said}");
    assert!(said.contains("deny in:icmp"), "{said}");

    // Somebody has taken the rules away while no agent was there.
    agent.kill();
    let (rules, queue) = (["delete", "table", "bridge", "pindah"], ["-o", "link"]);
    assert!(agent.run("nft", &rules).status.success());
    assert!(machine.reaches("10.5.0.50"));
    agent.spawn().await;
    assert!(!machine.reaches("10.5.0.50"), "{}", agent.log());

    // Nor does it help that the uplink has gone in the meantime.
    agent.kill();
    machine.stdout("ip", &["link", "delete", "eth0"]);
    assert!(agent.run("nft", &rules).status.success());
    agent.spawn().await;
    let made = stdout(&agent, "nft", &["list", "table", "bridge", "pindah"]);
    assert!(made.contains("to_pt"), "{made}\n{}", agent.log());
    machine.plug("eth0", &agent, "up0", "10.5.0.9/24");

    // What cannot be leaves everything as it is.
    let set = ["guest", "interface", "set", "web"];
    for (flags, expected) in [
        (&["net1", "--vlan", "20"][..], "has no interface net1"),
        (
            &["net0", "--network", "none"],
            "must be a network that is there",
        ),
        (
            &["net0", "--mac", "52:54:00:00:00:77"],
            "can be changed when it is off",
        ),
        (
            &["net0", "--network", "node", "--vlan", "20"],
            "which has no VLANs",
        ),
    ] {
        let error = agent.must_refuse(&[&set, flags].concat());
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    agent.must(&["guest", "delete", "web", "--force", "--yes"]);
    let links = stdout(&agent, "ip", &queue);
    assert!(!links.contains("n0"), "{links}");
    let rules = stdout(&agent, "nft", &["list", "table", "bridge", "pindah"]);
    assert!(!rules.contains("n0"), "{rules}");
}

#[tokio::test]
async fn guest_changes_its_network_while_it_runs() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let agent = Agent::start_in_namespace("moves").await;
    let machine = Machine::new("moves-m");
    machine.plug("eth0", &agent, "up0", "10.5.0.9/24");
    agent.must(&["network", "create", "lan", "--uplink", "up0"]);
    create_guest(&agent, "web", "ip=10.5.0.50 peer=10.5.0.9", &[]);
    assert!(!machine.reaches("10.5.0.50"));
    agent.must(&[
        "guest",
        "interface",
        "set",
        "web",
        "net0",
        "--network",
        "lan",
    ]);
    assert!(machine.reaches("10.5.0.50"), "{}", agent.log());
    let error = agent.must_refuse(&["network", "delete", "lan"]);
    assert!(error.contains("network lan has guests: web"), "{error}");
    agent.must(&[
        "guest",
        "interface",
        "set",
        "web",
        "net0",
        "--network",
        "node",
    ]);
    assert!(!machine.reaches("10.5.0.50"));
    agent.must(&["network", "delete", "lan"]);
}

#[tokio::test]
async fn interface_that_cannot_be_is_refused() {
    let agent = Agent::start().await;
    let guest = json!({ "name": "web", "memory_mib": 64, "disks": [{ "size_mib": 1 }] });
    for (interface, expected) in [
        (json!({ "vlan": 20 }), "invalid type"),
        (
            json!({ "vlan": { "access": 0 } }),
            "interfaces[0].vlan.access = 0",
        ),
        (json!({ "vlan": { "access": 20 } }), "which has no VLANs"),
        (
            json!({ "vlan": { "trunk": ["1-5000"] } }),
            "must be a VLAN, 1 to 4094",
        ),
        (json!({ "mac": "ff:ff:ff:ff:ff:ff" }), "unicast"),
        (
            json!({ "rate_limit": { "rx_kbit_per_s": 1 } }),
            "must be 64 to 100000000 kbit/s",
        ),
        (
            json!({ "spoof_guard": { "addresses": ["x"] } }),
            "invalid IP address",
        ),
        (
            json!({ "firewall": { "allow": [{}] } }),
            "missing field `direction`",
        ),
        (
            json!({ "firewall": { "allow": [{ "direction": "in", "ports": ["80"] }] } }),
            "must be tcp or udp to have ports",
        ),
        (
            json!({ "firewall": { "deny": [{ "direction": "in", "remote": "1.2.3.4; drop" }] } }),
            "must be an IP address or a range",
        ),
    ] {
        let mut body = guest.clone();
        body["interfaces"] = json!([interface]);
        let (status, answer) = agent.request(Method::POST, "/guests", Some(&body)).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, 422, "{interface}: {answer}");
        assert!(message.contains(expected), "{interface}: {message}");
    }
    agent.assert_no_guests_left();

    let made = agent.begin(Method::POST, "/guests", Some(&guest)).await;
    assert_eq!(made.error, None);
    let path = "/guests/web/interfaces/net0";
    let edit = json!({ "rate_limit": { "rx_kbit_per_s": 1000 } });
    let (status, _) = agent.request(Method::PATCH, path, Some(&edit)).await;
    assert_eq!(status, 428);
    let edit_as = |etag: &str, body: Value| {
        let request = agent.client().request(Method::PATCH, path);
        answer(request.header("If-Match", etag).json(&body))
    };
    assert_eq!(edit_as("\"0\"", edit.clone()).await.0, 412);
    let (_, etag) = agent
        .client()
        .get_tagged::<Value>("/guests/web")
        .await
        .unwrap();
    assert_eq!(edit_as(&etag, json!({ "surprise": 1 })).await.0, 422);
    let (status, edited) = edit_as(&etag, edit).await;
    assert_eq!(status, 200, "{edited}");
    let limit = &edited["data"]["guest"]["interfaces"][0]["rate_limit"];
    assert_eq!(limit["rx_kbit_per_s"], 1000, "{edited}");
    // Its MAC address may change while it is off, and the old one is free again.
    let old = edited["data"]["guest"]["interfaces"][0]["mac"].clone();
    let (_, etag) = agent
        .client()
        .get_tagged::<Value>("/guests/web")
        .await
        .unwrap();
    let (status, edited) = edit_as(&etag, json!({ "mac": "52:54:00:00:00:77" })).await;
    assert_eq!(status, 200, "{edited}");
    let mut other = guest.clone();
    other["name"] = "db".into();
    other["interfaces"] = json!([{ "mac": "52:54:00:00:00:77" }]);
    let (status, answer) = agent.request(Method::POST, "/guests", Some(&other)).await;
    assert_eq!(status, 409, "{answer}");
    other["interfaces"] = json!([{ "mac": old }]);
    assert_eq!(
        agent
            .begin(Method::POST, "/guests", Some(&other))
            .await
            .error,
        None
    );
}
