//! Networks that the node routes, in a network namespace that goes with the test.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use super::harness::{Agent, DEADLINE, is_root, kvm_opens, stdout};
use super::wire::{Machine, create_guest};

/// Where the probe's datagrams go.
const PROBE_PORT: u16 = 0x5064;

/// A machine in the network of the node, which knows the way to the guests.
fn router(name: &str, agent: &Agent) -> Machine {
    let machine = Machine::new(name);
    machine.plug("eth0", agent, "up0", "10.5.0.9/24");
    for line in ["address add 10.5.0.1/24 dev up0", "link set up0 up"] {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(agent.run("ip", &words).status.success(), "{line}");
    }
    machine.ip(&["route", "add", "10.20.0.0/24", "via", "10.5.0.1"]);
    machine
}

/// Interfaces with their addresses, and tables of rules, but for those that the kernel gives.
fn host(agent: &Agent) -> String {
    let addresses = stdout(agent, "ip", &["-o", "-4", "address"]);
    let links = stdout(agent, "ip", &["-br", "link"]);
    let names = links.lines().filter_map(|line| line.split(' ').next());
    let names: Vec<&str> = names.collect();
    let tables = stdout(agent, "nft", &["list", "tables"]);
    let tables = tables.lines().filter(|&line| line != "table bridge pindah");
    let tables: Vec<&str> = tables.collect();
    format!("{addresses}{names:?}{tables:?}")
}

/// How many of them run with a configuration below the directory.
fn dnsmasqs(directory: &Path) -> usize {
    let wanted = format!("--conf-file={}/", directory.display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ours = processes.filter(|entry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|&byte| byte == 0);
        arguments.any(|one| one.starts_with(wanted.as_bytes()))
    });
    ours.count()
}

/// The address that somebody offers to the machine (RFC 2131).
fn offered(machine: &Machine) -> Option<Ipv4Addr> {
    let work = || {
        let socket = UdpSocket::bind(("0.0.0.0", 68)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let mut discover = [0; 244];
        discover[..8].copy_from_slice(&[1, 1, 6, 0, 0x70, 0x69, 0x6e, 0x64]);
        // Its answer is to go to all.
        discover[10] = 0x80;
        discover[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 9]);
        discover[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            socket.send_to(&discover, ("255.255.255.255", 67)).unwrap();
            let mut offer = [0; 1500];
            if let Ok((length, _)) = socket.recv_from(&mut offer)
                && length > 240
                && offer[4..8] == discover[4..8]
            {
                return Some(Ipv4Addr::new(offer[16], offer[17], offer[18], offer[19]));
            }
        }
        None
    };
    machine.run(work).join().unwrap()
}

#[tokio::test]
async fn guest_is_reached_and_speaks_by_its_own_address() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = Agent::start_in_namespace("routed").await;
    let machine = router("routed-m", &agent);
    let before = host(&agent);
    let create = ["network", "create", "dmz", "--routed"];
    let said = agent.must(&[&create[..], &["node1=10.20.0.1/24"]].concat());
    for expected in [
        "routed 10.20.0.1/24",
        "guests leave their addresses behind",
        "the router of node1's network sends 10.20.0.0/24 to node1",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    let state = agent.path("state/networks");
    assert_eq!(dnsmasqs(&state), 1);

    // The node answers for the machine behind it, as the probe knows no gateway.
    let answer = "echo 1 > /proc/sys/net/ipv4/conf/pn-dmz/proxy_arp";
    assert!(agent.run("sh", &["-c", answer]).status.success());
    let heard = machine.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", PROBE_PORT)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.recv_from(&mut [0; 2048]).map(|(_, from)| from)
    });
    let cmdline = "net_op=tx net_s=0 ip=10.20.0.50 peer=10.5.0.9";
    create_guest(&agent, "web", cmdline, &["--network", "dmz"]);
    let from = heard
        .join()
        .unwrap()
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
    assert_eq!(from.ip().to_string(), "10.20.0.50");
    assert!(machine.reaches("10.20.0.50"), "{}", agent.log());
    let rules = stdout(&agent, "nft", &["list", "table", "ip", "pindah_pn_dmz"]);
    assert!(rules.contains("saddr != 10.20.0.0/24 drop"), "{rules}");
    assert!(!rules.contains("masquerade"), "{rules}");

    // What is right when the agent comes back stays, and what is gone is made again.
    let dnsmasq = || fs::read(state.join("dmz/dnsmasq.json")).unwrap();
    let first = dnsmasq();
    agent.kill();
    assert!(machine.reaches("10.20.0.50"), "{}", agent.log());
    agent.spawn().await;
    assert!(machine.reaches("10.20.0.50"), "{}", agent.log());
    assert_eq!(dnsmasq(), first, "dnsmasq was started anew");
    agent.kill();
    assert!(
        agent
            .run("ip", &["link", "delete", "pn-dmz"])
            .status
            .success()
    );
    agent.spawn().await;
    assert!(machine.reaches("10.20.0.50"), "{}", agent.log());
    assert_ne!(dnsmasq(), first, "dnsmasq hears a bridge that is gone");
    assert_eq!(dnsmasqs(&state), 1);

    agent.must(&["guest", "delete", "web", "--force", "--yes"]);
    agent.must(&["network", "delete", "dmz"]);
    assert_eq!(host(&agent), before);
    assert_eq!(dnsmasqs(&state), 0);
    assert!(!state.join("dmz").exists());
}

#[tokio::test]
async fn guest_gets_an_address_and_the_uplink_can_become_another() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start_in_namespace("rdhcp").await;
    let _router = router("rdhcp-m", &agent);
    let before = host(&agent);
    agent.must(&["network", "create", "dmz", "--routed", "node1=10.20.0.1/24"]);
    let guest = Machine::new("rdhcp-g");
    guest.plug("eth0", &agent, "port0", "192.168.99.9/24");
    for line in ["link set port0 master pn-dmz", "link set port0 up"] {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(agent.run("ip", &words).status.success(), "{line}");
    }
    guest.ip(&["route", "add", "default", "dev", "eth0"]);
    let offer = offered(&guest).unwrap_or_else(|| panic!("no offer\n{}", agent.log()));
    assert_eq!(offer.octets()[..3], [10, 20, 0]);

    // The subnet becomes another one, and then none.
    let state = agent.path("state/networks");
    agent.must(&["network", "edit", "dmz", "--routed", "node1=10.21.0.1/24"]);
    let offer = offered(&guest).unwrap_or_else(|| panic!("no offer\n{}", agent.log()));
    assert_eq!(offer.octets()[..3], [10, 21, 0]);
    assert_eq!(dnsmasqs(&state), 1);
    let addresses = stdout(&agent, "ip", &["-o", "-4", "address", "show", "pn-dmz"]);
    assert_eq!(addresses.matches("inet ").count(), 1, "{addresses}");
    let quiet = ["--routed", "node1=10.21.0.1/24", "--no-dhcp"];
    agent.must(&[&["network", "edit", "dmz"], &quiet[..]].concat());
    assert_eq!(dnsmasqs(&state), 0);
    agent.must(&["network", "edit", "dmz", "--no-uplink", "node1"]);
    let addresses = stdout(&agent, "ip", &["-o", "-4", "address", "show", "pn-dmz"]);
    assert_eq!(addresses, "");
    let tables = stdout(&agent, "nft", &["list", "tables"]);
    assert!(!tables.contains("pindah_pn_dmz"), "{tables}");

    // One that was deleted while its node's agent was away goes when that is back.
    agent.must(&["network", "edit", "dmz", "--routed", "node1=10.20.0.1/24"]);
    assert!(
        agent
            .run("ip", &["link", "delete", "port0"])
            .status
            .success()
    );
    agent.must(&["network", "delete", "dmz"]);
    fs::create_dir(state.join("gone")).unwrap();
    agent.kill();
    agent.spawn().await;
    let end = Instant::now() + DEADLINE;
    while state.join("gone").exists() {
        assert!(Instant::now() < end, "{}", agent.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(host(&agent), before);
    assert_eq!(dnsmasqs(&state), 0);
}

#[tokio::test]
async fn subnet_that_the_host_or_another_network_has_is_refused() {
    if !is_root() {
        return;
    }
    let agent = Agent::start_in_namespace("rsame").await;
    let _router = router("rsame-m", &agent);
    agent.must(&["network", "create", "dmz", "--routed", "node1=10.20.0.1/24"]);
    let before = host(&agent);
    for (subnet, expected) in [
        (
            "node1=10.5.0.200/24",
            "cannot route 10.5.0.200/24 on node node1, which has addresses of it on up0 \
             (10.5.0.1/24)",
        ),
        (
            "node1=10.0.0.1/8",
            "network dmz has addresses of 10.0.0.1/8 on node node1",
        ),
        (
            "node2=10.20.0.129/25",
            "network dmz has addresses of 10.20.0.129/25 on node node1",
        ),
        ("node1=10.87.1.1/24", "on pindah0"),
        ("node1=10.30.0.0/24", "must be a host's IPv4 address"),
        ("10.30.0.1/24", "must be of one node"),
    ] {
        let error = agent.must_refuse(&["network", "create", "lab", "--routed", subnet]);
        assert!(error.contains(expected), "{subnet}: {error}");
        assert_eq!(host(&agent), before, "{subnet}");
    }
    agent.must(&["network", "delete", "dmz"]);
}
