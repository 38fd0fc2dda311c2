//! Interfaces of guests, proven by packets. In most tests a machine with a cable stands for a guest
//! with its tap: it has all of Linux to try what a guest may try.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pindah_agent::domain::{Guest, GuestSpec, Interface, NetworkSpec, PoolName};
use pindah_agent::network::{NetworkError, Networks};
use pindah_agent::store::SqliteStore;
use serde_json::{Value, json};

use super::harness::is_root;
use super::wire::Machine;

/// How long a connection may take; denied ones take as long.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A node with an isolated network, and two machines in the place of its guests.
struct Lan {
    node: Machine,
    guests: [Machine; 2],
}

/// Guest `number`'s address.
fn address(number: usize) -> String {
    format!("10.6.0.{}", number + 1)
}

fn tap(number: usize) -> String {
    format!("pt{:09}{number}n0", std::process::id())
}

fn mac(number: usize) -> String {
    format!("52:54:00:00:00:0{}", number + 1)
}

/// Guest `number` with an interface on the network, changed by `extra`.
fn guest(number: usize, extra: &Value) -> Guest {
    let spec = json!({ "name": "web", "memory_mib": 64, "disks": [{ "size_mib": 1 }],
        "interfaces": [extra] });
    let spec: GuestSpec = serde_json::from_value(spec).unwrap();
    let mut guest = spec
        .plan(uuid::Uuid::new_v4(), "node1", &PoolName::local(), 0)
        .unwrap()
        .guest;
    let interface: &mut Interface = &mut guest.interfaces[0];
    interface.network = "lan".to_owned().try_into().unwrap();
    interface.tap = tap(number);
    interface.mac = mac(number);
    guest
}

/// Runs a test's body on the node; `name` is unique among the tests.
fn on_a_lan<T: Future<Output = ()>>(
    name: &str,
    body: impl FnOnce(Arc<Lan>, Networks) -> T + Send + 'static,
) {
    if !is_root() {
        return;
    }
    let node = Machine::new(&format!("{name}-n"));
    let guests = [0, 1].map(|number| {
        let machine = Machine::new(&format!("{name}-{number}"));
        machine.plug_into("eth0", &node, &tap(number));
        machine.ip(&["link", "set", "eth0", "address", &mac(number)]);
        let ipv4 = format!("{}/24", address(number));
        let ipv6 = format!("fd06::{}/64", number + 1);
        machine.ip(&["address", "add", &ipv4, "dev", "eth0"]);
        machine.ip(&["address", "add", &ipv6, "dev", "eth0", "nodad"]);
        machine
    });
    let lan = Arc::new(Lan { node, guests });
    let here = Arc::clone(&lan);
    let test = lan.node.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
            let networks = Networks::open("node1", directory.path(), None, Arc::new(store), true);
            let networks = networks.await.unwrap();
            let spec: NetworkSpec = serde_json::from_value(json!({ "name": "lan" })).unwrap();
            networks.create(&spec).await.unwrap();
            body(here, networks).await;
        });
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Lan {
    /// Whether guest `from` can connect to guest `to`, which listens there.
    fn connects(&self, from: usize, to: usize, target: &str) -> bool {
        let target: SocketAddr = target.parse().unwrap();
        for guest in &self.guests {
            guest.ip(&["neigh", "flush", "nud", "all"]);
        }
        let (ready, listens) = std::sync::mpsc::channel();
        let listener = self.guests[to].run(move || {
            let listener = TcpListener::bind(target).expect("a free port");
            ready.send(()).unwrap();
            listener
        });
        listens.recv().unwrap();
        let connected =
            self.guests[from].run(move || TcpStream::connect_timeout(&target, PATIENCE));
        let connected = connected.join().unwrap().is_ok();
        drop(listener.join().unwrap());
        connected
    }

    /// Whether guest 0 can connect to this port of guest 1.
    fn reaches(&self, port: u16) -> bool {
        self.connects(0, 1, &format!("{}:{port}", address(1)))
    }

    /// How fast guest `from` sends to the other one, in kbit/s.
    fn rate(&self, from: usize, bytes: usize) -> u64 {
        let to = 1 - from;
        let target: SocketAddr = format!("{}:5001", address(to)).parse().unwrap();
        let (ready, listens) = std::sync::mpsc::channel();
        let receiver = self.guests[to].run(move || {
            let listener = TcpListener::bind(target).expect("a free port");
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut first = [0];
            stream.read_exact(&mut first).unwrap();
            let began = Instant::now();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            (received.len() as u64 * 8).div_ceil(began.elapsed().as_millis().max(1) as u64)
        });
        listens.recv().unwrap();
        let sender = self.guests[from].run(move || {
            let mut stream = TcpStream::connect(target).unwrap();
            stream.write_all(&vec![7; bytes]).unwrap();
        });
        sender.join().unwrap();
        receiver.join().unwrap()
    }

    fn rules(&self) -> String {
        self.node
            .stdout("nft", &["list", "table", "bridge", "pindah"])
    }
}

#[test]
fn guest_that_speaks_from_another_mac_address_is_not_heard() {
    on_a_lan("spoofmac", |lan, networks| async move {
        let extra = json!({});
        networks.connect(&guest(0, &extra)).await.unwrap();
        networks.connect(&guest(1, &extra)).await.unwrap();
        assert!(lan.reaches(80), "{}", lan.rules());
        lan.guests[1].ip(&["link", "set", "eth0", "address", "52:54:00:00:00:99"]);
        assert!(!lan.reaches(80), "{}", lan.rules());
        let off = json!({ "spoof_guard": { "enabled": false } });
        networks.connect(&guest(1, &off)).await.unwrap();
        assert!(lan.reaches(80), "{}", lan.rules());
        networks.connect(&guest(1, &extra)).await.unwrap();
        assert!(!lan.reaches(80), "{}", lan.rules());
    });
}

#[test]
fn guest_with_addresses_is_heard_from_these_only() {
    on_a_lan("spoofip", |lan, networks| async move {
        networks.connect(&guest(0, &json!({}))).await.unwrap();
        let own = json!({ "spoof_guard": { "addresses": [address(1), "fd06::2"] } });
        networks.connect(&guest(1, &own)).await.unwrap();
        for other in ["10.6.0.7/24", "fd06::7/64"] {
            let add = ["address", "add", other, "dev", "eth0"];
            lan.guests[1].ip(&add);
        }
        // It takes a moment until an IPv6 address may be used.
        std::thread::sleep(Duration::from_secs(2));
        assert!(lan.reaches(80), "{}", lan.rules());
        assert!(lan.connects(0, 1, "[fd06::2]:80"), "{}", lan.rules());
        assert!(!lan.connects(0, 1, "10.6.0.7:80"), "{}", lan.rules());
        assert!(!lan.connects(0, 1, "[fd06::7]:80"), "{}", lan.rules());
        // Nor does it pass when its neighbour knows the way.
        lan.guests[0].ip(&[
            "neigh",
            "replace",
            "10.6.0.7",
            "lladdr",
            &mac(1),
            "dev",
            "eth0",
        ]);
        assert!(!lan.connects(0, 1, "10.6.0.7:80"), "{}", lan.rules());
    });
}

#[test]
fn denied_port_is_closed_and_others_are_open() {
    on_a_lan("deny", |lan, networks| async move {
        networks.connect(&guest(0, &json!({}))).await.unwrap();
        let deny = |rules: Value| json!({ "firewall": { "stateful": false, "deny": rules } });
        let rules = deny(json!([{ "direction": "in", "protocol": "tcp", "ports": ["81-90"] }]));
        networks.connect(&guest(1, &rules)).await.unwrap();
        assert!(lan.reaches(80), "{}", lan.rules());
        assert!(!lan.reaches(81), "{}", lan.rules());
        assert!(!lan.connects(0, 1, "[fd06::2]:81"), "{}", lan.rules());
        let rules = deny(json!([{ "direction": "in", "remote": "10.6.0.1" }]));
        networks.connect(&guest(1, &rules)).await.unwrap();
        assert!(!lan.reaches(80), "{}", lan.rules());
        assert!(lan.connects(0, 1, "[fd06::2]:80"), "{}", lan.rules());
        let rules = deny(json!([{ "direction": "out", "protocol": "tcp", "ports": ["25"] }]));
        networks.connect(&guest(1, &rules)).await.unwrap();
        let target = format!("{}:25", address(0));
        assert!(!lan.connects(1, 0, &target), "{}", lan.rules());
        assert!(lan.reaches(25), "{}", lan.rules());
    });
}

#[test]
fn allowed_port_is_open_and_the_rest_is_closed() {
    on_a_lan("allow", |lan, networks| async move {
        networks.connect(&guest(0, &json!({}))).await.unwrap();
        let allow = json!([{ "direction": "in", "protocol": "tcp", "ports": ["80"] }]);
        let mut firewall = json!({ "firewall": { "stateful": false, "allow": allow } });
        networks.connect(&guest(1, &firewall)).await.unwrap();
        assert!(lan.reaches(80), "{}", lan.rules());
        assert!(!lan.reaches(81), "{}", lan.rules());
        // ARP and neighbour discovery need no rule.
        assert!(lan.connects(0, 1, "[fd06::2]:80"), "{}", lan.rules());
        // An answer that nobody remembers the question of is no answer.
        let target = format!("{}:80", address(0));
        assert!(!lan.connects(1, 0, &target), "{}", lan.rules());

        firewall["firewall"]["stateful"] = true.into();
        match networks.connect(&guest(1, &firewall)).await {
            Err(NetworkError::NoTracking { .. }) => {
                eprintln!("skipped: this kernel tracks no connections on bridges");
            }
            connected => {
                connected.unwrap();
                assert!(lan.reaches(80), "{}", lan.rules());
                assert!(!lan.reaches(81), "{}", lan.rules());
                assert!(lan.connects(1, 0, &target), "{}", lan.rules());
            }
        }
    });
}

#[test]
fn rate_limits_hold_in_each_direction_and_are_lifted() {
    on_a_lan("rate", |lan, networks| async move {
        networks.connect(&guest(0, &json!({}))).await.unwrap();
        networks.connect(&guest(1, &json!({}))).await.unwrap();
        let free = lan.rate(0, 4 << 20);
        assert!(free > 100_000, "{free} kbit/s without a limit");
        let limit = json!({ "rate_limit": { "rx_kbit_per_s": 4000, "tx_kbit_per_s": 2000 } });
        networks.connect(&guest(1, &limit)).await.unwrap();
        // Set up a second time it is the same.
        networks.connect(&guest(1, &limit)).await.unwrap();
        let rx = lan.rate(0, 1 << 20);
        assert!(
            (2000..=6000).contains(&rx),
            "{rx} kbit/s with a limit of 4000"
        );
        let tx = lan.rate(1, 512 << 10);
        assert!(
            (1000..=3000).contains(&tx),
            "{tx} kbit/s with a limit of 2000"
        );
        networks.connect(&guest(1, &json!({}))).await.unwrap();
        let (rx, tx) = (lan.rate(0, 4 << 20), lan.rate(1, 4 << 20));
        assert!(
            rx > 100_000 && tx > 100_000,
            "{rx}, {tx} kbit/s after the limit"
        );
    });
}

#[test]
fn vlans_are_apart() {
    on_a_lan("vlan", |lan, networks| async move {
        let vlan = |vlan: Value| json!({ "network": "lan", "vlan": vlan });
        let twenty = vlan(json!({ "access": 20 }));
        if let Err(error) = networks.connect(&guest(0, &twenty)).await {
            // Without them a guest is refused, and never connected to what it is not to see.
            assert!(matches!(error, NetworkError::NoVlans { .. }), "{error}");
            let links = lan.node.stdout("ip", &["-o", "link", "show", &tap(0)]);
            assert!(!links.contains("master"), "{links}");
            eprintln!("skipped: this kernel has no VLAN filtering on bridges");
            return;
        }
        networks.connect(&guest(1, &twenty)).await.unwrap();
        assert!(lan.reaches(80));
        for other in [
            json!({ "access": 30 }),
            json!({}),
            json!({ "trunk": ["20-30"] }),
        ] {
            networks.connect(&guest(1, &vlan(other))).await.unwrap();
            assert!(!lan.reaches(80));
        }
        // With its tag what is in the trunk gets through.
        let line = "link add link eth0 name eth0.20 type vlan id 20";
        lan.guests[1].ip(&line.split(' ').collect::<Vec<_>>());
        lan.guests[1].ip(&["address", "add", "10.6.0.22/24", "dev", "eth0.20"]);
        lan.guests[1].ip(&["link", "set", "eth0.20", "up"]);
        lan.guests[1].ip(&["address", "del", "10.6.0.2/24", "dev", "eth0"]);
        assert!(lan.connects(0, 1, "10.6.0.22:80"));
        networks.connect(&guest(1, &twenty)).await.unwrap();
        assert!(!lan.connects(0, 1, "10.6.0.22:80"));
    });
}

#[test]
fn nothing_of_an_interface_is_left_and_nothing_of_the_host_changed() {
    on_a_lan("trace", |lan, networks| async move {
        let nft = |text: &str| lan.node.stdout("nft", &[text]);
        nft(
            "add table bridge theirs; add chain bridge theirs c { type filter hook forward \
             priority 0; }; add rule bridge theirs c ether type ip accept",
        );
        let theirs = || {
            lan.node
                .stdout("nft", &["list", "table", "bridge", "theirs"])
        };
        let before = theirs();
        assert!(before.contains("accept"), "{before}");
        let all = json!({ "rate_limit": { "rx_kbit_per_s": 4000, "tx_kbit_per_s": 2000 },
            "firewall": { "stateful": false, "inbound": "deny" } });
        for number in [0, 1] {
            networks.connect(&guest(number, &all)).await.unwrap();
        }
        assert!(
            lan.rules().contains(&format!("to_{}", tap(1))),
            "{}",
            lan.rules()
        );
        let links = lan.node.stdout("ip", &["-o", "link"]);
        assert!(links.contains(&tap(1).replacen("pt", "pi", 1)), "{links}");
        networks.disconnect(&guest(1, &all)).await;
        assert!(!lan.rules().contains(&tap(1)), "{}", lan.rules());
        assert!(lan.rules().contains(&tap(0)), "{}", lan.rules());
        networks.disconnect(&guest(0, &all)).await;
        networks.delete("lan").await.unwrap();
        let links = lan.node.stdout("ip", &["-o", "link"]);
        assert_eq!(links.lines().count(), 1, "{links}");
        assert!(!lan.rules().contains("n0"), "{}", lan.rules());
        assert_eq!(theirs(), before);
    });
}
