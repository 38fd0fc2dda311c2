//! Networks by record, in a network namespace that goes with the test.

use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, is_root, kvm_opens, stdout};
use super::wire::{Machine, create_guest};

/// All that the host has set up.
fn host(agent: &Agent) -> String {
    let links = stdout(agent, "ip", &["-o", "link"]);
    let addresses = stdout(agent, "ip", &["-o", "address"]);
    let rules = stdout(agent, "nft", &["list", "table", "bridge", "theirs"]);
    // Ours may have been made anew, and stand elsewhere then.
    let tables = stdout(agent, "nft", &["list", "tables"]);
    let tables = tables
        .lines()
        .filter(|&table| table != "table bridge pindah");
    let mut tables: Vec<&str> = tables.collect();
    tables.sort_unstable();
    let links: String = links.lines().fold(String::new(), |text, line| {
        // An uplink that was brought up stays up.
        let name = line.split(' ').nth(1).unwrap_or_default();
        let controller = line.split(' ').skip_while(|&word| word != "master").nth(1);
        format!("{text}{name} {}\n", controller.unwrap_or("-"))
    });
    let addresses: String = addresses
        .lines()
        .filter(|line| !line.contains(" fe80:"))
        .fold(String::new(), |text, line| {
            let words: Vec<&str> = line.split_whitespace().skip(1).take(3).collect();
            text + &words.join(" ") + "\n"
        });
    format!("{links}{addresses}{}{rules}", tables.join("\n"))
}

/// The host has a bridge, an interface with an address, and rules of its own.
fn furnish(agent: &Agent) {
    for line in [
        "link add br7 type bridge",
        "address add 192.168.7.1/24 dev br7",
        "link set br7 up",
        "link add used0 type veth peer name used1",
        "address add 192.168.8.1/24 dev used0",
        "link set used0 up",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(agent.run("ip", &words).status.success(), "{line}");
    }
    let rule = "add table bridge theirs; add chain bridge theirs c { type filter hook forward \
                priority 0; }; add rule bridge theirs c ether type ip accept";
    assert!(agent.run("nft", &[rule]).status.success());
}

fn controller(agent: &Agent, port: &str) -> String {
    let link = stdout(agent, "ip", &["-o", "link", "show", port]);
    let mut words = link.split(' ').skip_while(|&word| word != "master");
    words.nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn network_with_an_uplink_connects_guests_and_goes_without_a_trace() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = Agent::start_in_namespace("uplink").await;
    let machine = Machine::new("uplink-m");
    machine.plug("eth0", &agent, "up0", "10.5.0.9/24");
    furnish(&agent);
    let before = host(&agent);
    agent.must(&["network", "create", "lan", "--uplink", "up0"]);
    assert_eq!(controller(&agent, "up0"), "pn-lan");
    let addresses = stdout(&agent, "ip", &["-br", "address", "show", "pn-lan"]);
    assert!(!addresses.contains("fe80"), "{addresses}");
    create_guest(
        &agent,
        "web",
        "ip=10.5.0.50 peer=10.5.0.9",
        &["--network", "lan"],
    );
    assert!(machine.reaches("10.5.0.50"), "{}", agent.log());
    let error = agent.must_refuse(&["network", "delete", "lan"]);
    assert!(error.contains("network lan has guests: web"), "{error}");

    // What is gone when the agent comes back is made again; the guest runs on.
    agent.kill();
    assert!(
        agent
            .run("ip", &["link", "delete", "pn-lan"])
            .status
            .success()
    );
    agent.spawn().await;
    assert!(machine.reaches("10.5.0.50"), "{}", agent.log());

    agent.must(&["guest", "delete", "web", "--force", "--yes"]);
    agent.must(&["network", "delete", "lan"]);
    assert_eq!(host(&agent), before);
}

#[tokio::test]
async fn bridge_of_the_host_is_used_and_stays_as_it_is() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let agent = Agent::start_in_namespace("hostbr").await;
    furnish(&agent);
    let before = host(&agent);
    agent.must(&["network", "create", "lan", "--bridge", "br7"]);
    assert_eq!(host(&agent), before);
    let cmdline = "ip=192.168.7.50 peer=192.168.7.1";
    create_guest(&agent, "web", cmdline, &["--network", "lan"]);
    let ping = ["-c", "15", "-i", "0.2", "-W", "1", "192.168.7.50"];
    let answered = stdout(&agent, "ping", &ping);
    assert!(answered.contains("time="), "{answered}");
    agent.must(&["guest", "delete", "web", "--force", "--yes"]);
    agent.must(&["network", "delete", "lan"]);
    assert_eq!(host(&agent), before);
}

#[tokio::test]
async fn uplink_that_would_cut_the_host_off_is_refused_and_nothing_changes() {
    if !is_root() {
        return;
    }
    let agent = Agent::start_in_namespace("refuse").await;
    furnish(&agent);
    for line in [
        "link add port0 type veth peer name port1",
        "link set port0 master br7",
        "link add pn-mine type bridge",
        "link set pn-mine up",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(agent.run("ip", &words).status.success(), "{line}");
    }
    let before = host(&agent);
    for (arguments, expected) in [
        (
            ["lan", "--uplink", "used0"],
            "cannot use used0 on node node1: it has the host's address 192.168.8.1/24",
        ),
        (["lan", "--uplink", "none0"], "there is no such interface"),
        (["lan", "--uplink", "lo"], "it leads to the host itself"),
        (["lan", "--uplink", "br7"], "it is a bridge"),
        (["lan", "--uplink", "port0"], "it is a port of br7 already"),
        (
            ["lan", "--bond", "port1,used0"],
            "it has the host's address",
        ),
        (["lan", "--bridge", "used0"], "it is no bridge"),
        (["lan", "--bridge", "none0"], "there is no such interface"),
        (["mine", "--uplink", "port1"], "somebody else's"),
        (["node", "--uplink", "port1"], "is there already"),
    ] {
        let mut command = vec!["network", "create"];
        command.extend(arguments);
        let error = agent.must_refuse(&command);
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert_eq!(host(&agent), before, "{arguments:?}");
    }
    let networks = agent.must(&["network", "list"]);
    assert_eq!(networks.lines().count(), 2, "{networks}");

    agent.must(&["network", "create", "lan", "--uplink", "port1"]);
    let error = agent.must_refuse(&["network", "create", "dmz", "--uplink", "port1"]);
    assert!(error.contains("network lan has port1 already"), "{error}");
    let error = agent.must_refuse(&["network", "create", "lan"]);
    assert!(error.contains("there is a network lan already"), "{error}");
    let error = agent.must_refuse(&["network", "delete", "node"]);
    assert!(error.contains("each node's own"), "{error}");
    agent.must(&["network", "delete", "lan"]);
    assert_eq!(host(&agent), before);
}

#[tokio::test]
async fn node_tells_what_is_the_matter_with_an_uplink() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start_in_namespace("state").await;
    let machine = Machine::new("state-m");
    machine.plug("eth0", &agent, "up0", "10.5.0.9/24");
    agent.must(&["network", "create", "lan", "--uplink", "up0"]);
    agent.must(&["network", "create", "inner"]);
    let node = || agent.must(&["node", "show", "node1"]);
    assert!(
        node().contains("node: ready, inner: ready, lan: ready"),
        "{}",
        node()
    );
    machine.stdout("ip", &["link", "set", "eth0", "down"]);
    let said = node();
    assert!(said.contains("lan: no carrier: up0 has no link"), "{said}");
    let said = agent.must(&["node", "list"]);
    assert!(said.contains("ready, network lan no carrier"), "{said}");
    machine.stdout("ip", &["link", "delete", "eth0"]);
    let said = node();
    assert!(said.contains("there is no interface up0"), "{said}");

    // It is back, and taken again.
    machine.plug("eth0", &agent, "up0", "10.5.0.9/24");
    agent.kill();
    agent.spawn().await;
    let said = agent.must(&["network", "show", "lan", "--json"]);
    let lan: Value = serde_json::from_str(&said).unwrap();
    let state = &lan["nodes"]["node1"];
    assert_eq!(state["state"], "ready", "{lan}\n{}", agent.log());
    assert_eq!(controller(&agent, "up0"), "pn-lan");
}

#[tokio::test]
async fn network_that_cannot_be_is_refused() {
    let agent = Agent::start().await;
    for (body, status, expected) in [
        (json!({}), 422, "missing field `name`"),
        (json!({ "name": "../x" }), 422, "name of a network"),
        (json!({ "name": "node" }), 422, "each node's own network"),
        (json!({ "name": "lan", "uplink": "eth0" }), 422, "uplink"),
        (
            json!({ "name": "lan", "uplink": { "by": "tunnel" } }),
            422,
            "unknown variant",
        ),
        (
            json!({ "name": "lan", "surprise": 1 }),
            422,
            "unknown field",
        ),
    ] {
        let (got, answer) = agent.request(Method::POST, "/networks", Some(&body)).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(got, status, "{body}: {answer}");
        assert!(message.contains(expected), "{body}: {message}");
    }
    for path in ["/networks/none", "/networks/..%2Fx", "/networks/A"] {
        let (status, _) = agent.request(Method::GET, path, None).await;
        assert_eq!(status, 404, "{path}");
        let (status, _) = agent.request(Method::DELETE, path, None).await;
        assert_eq!(status, 404, "{path}");
    }
    let guest = json!({ "name": "web", "memory_mib": 64, "disks": [{ "size_mib": 1 }],
        "interfaces": [{ "network": "none" }] });
    let (status, answer) = agent.request(Method::POST, "/guests", Some(&guest)).await;
    assert_eq!(status, 422, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("net0.network = \"none\": must be a network"),
        "{message}"
    );
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn bond_goes_on_when_one_of_its_interfaces_fails() {
    if !is_root() {
        return;
    }
    let agent = Agent::start_in_namespace("bond").await;
    let machine = Machine::new("bond-m");
    let before = host(&agent);
    for number in ["0", "1"] {
        let (ours, theirs) = (format!("eth{number}"), format!("up{number}"));
        machine.plug(&ours, &agent, &theirs, &format!("10.5.{number}.9/24"));
    }
    let plugged = host(&agent);
    let create = ["network", "create", "lan", "--bond", "up0,up1"];
    let (ok, _, error) = agent.pindah(&create);
    if !ok {
        assert!(
            error.contains("the kernel lacks what it needs (CONFIG_BONDING)"),
            "{error}"
        );
        assert_eq!(host(&agent), plugged);
        eprintln!("skipped: this kernel has no bonds");
        return;
    }
    assert_eq!(controller(&agent, "up0"), "pd-lan");
    assert_eq!(controller(&agent, "pd-lan"), "pn-lan");
    let ready = || {
        agent
            .must(&["node", "show", "node1"])
            .contains("lan: ready")
    };
    assert!(ready());
    machine.stdout("ip", &["link", "set", "eth0", "down"]);
    assert!(ready());
    agent.must(&["network", "delete", "lan"]);
    assert_eq!(host(&agent), plugged);
    machine.stdout("ip", &["link", "delete", "eth0"]);
    machine.stdout("ip", &["link", "delete", "eth1"]);
    assert_eq!(host(&agent), before);
}

#[tokio::test]
async fn network_gets_another_uplink_and_its_guests_stay_connected() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let agent = Agent::start_in_namespace("edit").await;
    let (first, second) = (Machine::new("edit-1"), Machine::new("edit-2"));
    first.plug("eth0", &agent, "up0", "10.5.0.9/24");
    second.plug("eth0", &agent, "up1", "10.5.0.9/24");
    furnish(&agent);
    let before = host(&agent);
    agent.must(&["network", "create", "lan", "--uplink", "up0"]);
    let cmdline = "ip=10.5.0.50 peer=10.5.0.9";
    create_guest(&agent, "web", cmdline, &["--network", "lan"]);
    assert!(first.reaches("10.5.0.50"), "{}", agent.log());
    agent.must(&["network", "edit", "lan", "--uplink", "node1=up1"]);
    let ports = ["up0", "up1"].map(|port| controller(&agent, port));
    assert_eq!(ports, ["", "pn-lan"]);
    assert!(second.reaches("10.5.0.50"), "{}", agent.log());
    for (flags, expected) in [
        (["--uplink", "node1=used0"], "it has the host's address"),
        (
            ["--bridge", "node1=br7"],
            "guests of node node1 are connected to pn-lan: web",
        ),
        (
            ["--common-uplink", "node2"],
            "node2 has no uplink of its own",
        ),
    ] {
        let error = agent.must_refuse(&[&["network", "edit", "lan"], &flags[..]].concat());
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert_eq!(controller(&agent, "up1"), "pn-lan");
    }
    agent.must(&["network", "edit", "lan", "--no-uplink", "node1"]);
    assert_eq!(controller(&agent, "up1"), "");
    agent.must(&["network", "edit", "lan", "--common-uplink", "node1"]);
    assert!(first.reaches("10.5.0.50"), "{}", agent.log());

    agent.must(&["guest", "delete", "web", "--force", "--yes"]);
    agent.must(&["network", "edit", "lan", "--bridge", "node1=br7"]);
    assert_eq!(host(&agent), before);
    agent.must(&["network", "edit", "lan", "--common-uplink", "node1"]);
    assert_eq!(controller(&agent, "up0"), "pn-lan");
    agent.must(&["network", "delete", "lan"]);
    assert_eq!(host(&agent), before);
}
