//! The node's own network, in a network namespace that goes with the test.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{Agent, DEADLINE, is_root, kvm_opens, stdout};
use super::programs::programs;

#[tokio::test]
async fn guest_is_reached_on_the_bridge_and_its_tap_goes_with_it() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = Agent::start_in_namespace("net").await;
    let probe = programs().join("pindah-probe");
    let cmdline = "ws_mib=4 net=1 ip=10.87.0.50 peer=10.87.0.1";
    let (ok, _, error) = agent.pindah(&[
        "guest",
        "create",
        "web",
        "--memory",
        "64M",
        "--kernel",
        probe.to_str().unwrap(),
        "--cmdline",
        cmdline,
        "--start",
    ]);
    assert!(ok, "{error}\n{}", agent.log());
    let ping = ["-c", "20", "-i", "0.2", "-W", "1", "10.87.0.50"];
    let answered = stdout(&agent, "ping", &ping);
    assert!(answered.contains("time="), "{answered}");
    let links = stdout(&agent, "ip", &["-br", "link", "show", "master", "pindah0"]);
    assert_eq!(links.lines().count(), 1, "{links}");
    let tables = stdout(&agent, "nft", &["list", "tables", "ip"]);
    assert_eq!(tables.trim(), "table ip pindah_pindah0");

    // The agent's end and start change nothing, and make nothing twice.
    let dnsmasq = std::fs::read(agent.path("state/network/dnsmasq.json")).unwrap();
    agent.kill();
    assert!(stdout(&agent, "ping", &ping).contains("time="));
    agent.spawn().await;
    assert!(stdout(&agent, "ping", &ping).contains("time="));
    let again = std::fs::read(agent.path("state/network/dnsmasq.json")).unwrap();
    assert_eq!(dnsmasq, again, "dnsmasq was started anew");
    let rules = stdout(&agent, "nft", &["list", "ruleset"]);
    assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");

    let (ok, _, error) = agent.pindah(&["guest", "delete", "web", "--force", "--yes"]);
    assert!(ok, "{error}");
    let links = stdout(&agent, "ip", &["-br", "link"]);
    assert!(!links.contains("pt"), "{links}");
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn figures_of_the_network_have_the_directions_of_the_guest() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let agent = Agent::start_in_namespace("figures").await;
    let probe = programs().join("pindah-probe");
    let cmdline = "ws_mib=4 net=1 net_op=tx net_s=0 ip=10.87.0.50 peer=10.87.0.1";
    let (ok, _, error) = agent.pindah(&[
        "guest",
        "create",
        "web",
        "--memory",
        "64M",
        "--kernel",
        probe.to_str().unwrap(),
        "--cmdline",
        cmdline,
        "--start",
    ]);
    assert!(ok, "{error}\n{}", agent.log());
    let end = Instant::now() + DEADLINE;
    loop {
        let (_, guest, _) = agent.pindah(&["guest", "show", "web", "--json"]);
        let guest: Value = serde_json::from_str(&guest).unwrap();
        let rate = |name: &str| guest["usage"][name].as_f64().unwrap_or(0.0);
        let (rx, tx) = (rate("network_rx_kbit_per_s"), rate("network_tx_kbit_per_s"));
        if tx > 1000.0 && tx > 10.0 * rx {
            break;
        }
        assert!(Instant::now() < end, "{guest}\n{}", agent.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn foreign_bridge_name_is_left_alone_and_the_node_runs_without_network() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start_in_namespace("foreign").await;
    agent.kill();
    stdout(&agent, "ip", &["link", "delete", "pindah0"]);
    stdout(&agent, "ip", &["tuntap", "add", "pindah0", "mode", "tap"]);
    agent.spawn().await;
    assert!(
        agent.log().contains("pindah0 is there and is no bridge"),
        "{}",
        agent.log()
    );
    let (ok, nodes, error) = agent.pindah(&["node", "list"]);
    assert!(ok && nodes.contains("node1"), "{nodes}{error}");
    let links = stdout(&agent, "ip", &["-br", "link", "show", "pindah0"]);
    assert!(links.contains("pindah0"), "{links}");
}
