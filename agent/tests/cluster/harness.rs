//! Starts a site of several nodes, lets parts of it fail, and leaves nothing behind.

mod ask;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pindah_agent::supervisor::{Identity, find_process};

pub use ask::Said;

use super::programs::{pindahd, programs};

/// How long a condition may take on the slowest host before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// Whom VMMs become, as on the appliance: nobody of this host's.
pub const VMM_USER: u32 = 64_990;
/// The port of all APIs.
const PORT: u16 = 7480;

/// Whether everything is here; says what is not.
pub fn host_can() -> bool {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let missing = if kvm.is_err() {
        "/dev/kvm does not open"
    } else if !rustix::process::geteuid().is_root() {
        "network namespaces need root"
    } else if Command::new("etcd").arg("--version").output().is_err() {
        "etcd is not installed"
    } else {
        return true;
    };
    eprintln!("skipped: {missing}");
    false
}

/// A node: an agent in its namespace.
pub struct Node {
    /// `node1`, …
    pub name: String,
    namespace: String,
    directory: PathBuf,
    process: Option<Child>,
}

/// Some nodes on one link.
pub struct Site {
    hub: String,
    nodes: Vec<Node>,
    directory: tempfile::TempDir,
    /// Programs that all agents find before the host's.
    programs: Option<PathBuf>,
}

impl Site {
    /// Nodes that are alone yet. `tag` is two letters, unique among the tests.
    pub fn new(tag: &str, count: usize) -> Self {
        Self::with_programs(tag, count, &[])
    }

    /// The same, whose agents find these programs as these shell scripts; `$HERE` is the node's
    /// directory.
    pub fn with_programs(tag: &str, count: usize, scripts: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix("pc-").tempdir_in("/tmp");
        let directory = directory.expect("a temporary directory");
        let base = format!("pc{tag}{}", std::process::id());
        let hub = format!("{base}h");
        ip(&["netns", "add", &hub]);
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &hub, "link", "set", "br0", "up"]);
        let mut site = Self {
            hub,
            nodes: Vec::new(),
            programs: (!scripts.is_empty()).then(|| directory.path().join("programs")),
            directory,
        };
        site.put_programs(scripts);
        for number in 1..=count {
            let node = site.make_node(&base, number);
            site.nodes.push(node);
            site.start(number);
        }
        site
    }

    fn put_programs(&self, scripts: &[(&str, &str)]) {
        let Some(programs) = &self.programs else {
            return;
        };
        fs::create_dir(programs).expect("a directory");
        for (name, script) in scripts {
            let path = programs.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
        }
    }

    fn make_node(&self, base: &str, number: usize) -> Node {
        let namespace = format!("{base}n{number}");
        let port = format!("port{number}");
        let address = format!("10.77.0.{number}/24");
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&[
            "-n", &namespace, "link", "add", "eth0", "type", "veth", "peer", "name", &port,
            "netns", &self.hub,
        ]);
        ip(&["-n", &self.hub, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        let directory = self.directory.path().join(format!("{number}"));
        fs::create_dir(&directory).expect("a directory");
        let config = format!(
            "node = 'node{number}'\nlisten = '0.0.0.0:{PORT}'\nstop_deadline_s = 1\n\
             state_dir = '{}'\nvmm = '{}'\nvmm_user = '{VMM_USER}:{VMM_USER}'\n\
             network.enabled = false\n",
            directory.join("s").display(),
            programs().join("pindah-vmm").display(),
        );
        fs::write(directory.join("pindahd.toml"), config).expect("a configuration");
        Node {
            name: format!("node{number}"),
            namespace,
            directory,
            process: None,
        }
    }

    /// The network namespace that the node lives in.
    pub fn namespace(&self, number: usize) -> &str {
        &self.node(number).namespace
    }

    /// Has the node's agent run guests by another program, from its next start on.
    pub fn replace_vmm(&self, number: usize, vmm: &Path) {
        let path = self.node(number).directory.join("pindahd.toml");
        let config = fs::read_to_string(&path).expect("a configuration");
        let (before, after) = (programs().join("pindah-vmm"), vmm.display().to_string());
        let config = config.replace(&before.display().to_string(), &after);
        fs::write(&path, config).expect("a configuration");
    }

    fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// A path in the node's directory.
    pub fn here(&self, number: usize, name: &str) -> PathBuf {
        self.node(number).directory.join(name)
    }

    /// A path in the node's state directory.
    pub fn state(&self, number: usize, name: &str) -> PathBuf {
        self.node(number).directory.join("s").join(name)
    }

    /// A path that all nodes have.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the node's agent has logged.
    pub fn log(&self, number: usize) -> String {
        fs::read_to_string(self.node(number).directory.join("log")).unwrap_or_default()
    }

    /// Starts the node's agent; it may not serve yet.
    pub fn start(&mut self, number: usize) {
        let node = &mut self.nodes[number - 1];
        let log = File::options()
            .append(true)
            .create(true)
            .open(node.directory.join("log"))
            .expect("a log");
        let mut command = Command::new("ip");
        if let Some(programs) = &self.programs {
            let path = std::env::var("PATH").unwrap_or_default();
            command
                .env("PATH", format!("{}:{path}", programs.display()))
                .env("HERE", &node.directory);
        }
        let child = command
            .args(["netns", "exec", &node.namespace])
            .arg(pindahd())
            .arg("--config")
            .arg(node.directory.join("pindahd.toml"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        node.process = Some(child.expect("pindahd starts"));
    }

    /// SIGKILL to the agent, in the middle of whatever it does.
    pub fn kill_agent(&mut self, number: usize) {
        if let Some(mut process) = self.nodes[number - 1].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn etcd(&self, number: usize) -> Option<Identity> {
        find_process("--data-dir", &self.state(number, "etcd/data"))
    }

    /// SIGKILL to the node's etcd.
    pub fn kill_etcd(&self, number: usize) {
        let etcd = self.etcd(number).expect("an etcd");
        etcd.kill().expect("etcd can be killed");
    }

    /// The same, if it has one.
    pub fn kill_etcd_if_any(&self, number: usize) {
        if let Some(etcd) = self.etcd(number) {
            let _ = etcd.kill();
        }
    }

    /// How many etcds the node has.
    pub fn etcds(&self, number: usize) -> usize {
        count_processes("--data-dir", &self.state(number, "etcd/data"))
    }

    /// The node as after a pulled plug, its guests too.
    pub fn power_off(&mut self, number: usize) {
        self.kill_agent(number);
        for _ in 0..3 {
            if let Some(etcd) = self.etcd(number) {
                let _ = etcd.kill();
            }
            for guest in self.guest_sockets(number) {
                if let Some(vmm) = find_process("--api", &guest) {
                    let _ = vmm.kill();
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGKILL to the guest's process on the node.
    pub fn kill_vmm(&self, number: usize, uuid: &str) {
        let socket = self.state(number, "guests").join(uuid).join("api");
        let vmm = find_process("--api", &socket).expect("it has a process");
        vmm.kill().expect("it can be killed");
    }

    fn guest_sockets(&self, number: usize) -> Vec<PathBuf> {
        let guests = fs::read_dir(self.state(number, "guests"));
        let guests = guests.into_iter().flatten().flatten();
        guests.map(|guest| guest.path().join("api")).collect()
    }

    /// The nodes on which a guest has a process, a node as often as it has one.
    pub fn runs_on(&self, uuid: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let socket = self.state(index + 1, "guests").join(uuid).join("api");
            for _ in 0..count_processes("--api", &socket) {
                found.push(node.name.clone());
            }
        }
        found
    }

    /// Cuts the node off the others.
    pub fn cut(&self, number: usize) {
        let port = format!("port{number}");
        ip(&["-n", &self.hub, "link", "set", &port, "down"]);
    }

    /// Connects it again.
    pub fn heal(&self, number: usize) {
        let port = format!("port{number}");
        ip(&["-n", &self.hub, "link", "set", &port, "up"]);
    }

    /// Lets its link carry no more than this in either direction, as `tc` writes it.
    pub fn slow(&self, number: usize, rate: &str) {
        let port = format!("port{number}");
        for (namespace, link) in [(self.namespace(number), "eth0"), (&self.hub, &port)] {
            let limit = ["qdisc", "replace", "dev", link, "root", "tbf", "rate", rate];
            let status = Command::new("tc")
                .args(["-n", namespace])
                .args(limit)
                .args(["burst", "64kb", "latency", "100ms"])
                .status();
            let status = status.expect("tc starts");
            assert!(status.success(), "tc on {link}: {status}");
        }
    }

    /// Gives the node another address, as a new router might.
    pub fn readdress(&self, number: usize, address: &str) {
        let namespace = &self.node(number).namespace;
        ip(&["-n", namespace, "addr", "flush", "dev", "eth0"]);
        ip(&["-n", namespace, "addr", "add", address, "dev", "eth0"]);
    }

    /// Waits until the node says so.
    pub fn wait(&self, number: usize, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition() {
            if Instant::now() > end {
                for number in 1..=self.nodes.len() {
                    eprintln!("node{number} says:\n{}", self.log(number));
                }
                panic!("on node{number}: {what}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the node's agent answers.
    pub fn wait_until_it_serves(&self, number: usize) {
        self.wait(number, "it does not serve", || {
            self.pindah(number, &["node", "list"]).is_ok()
        });
    }

    /// Waits until the node sees the guest do this.
    pub fn wait_state(&self, number: usize, guest: &str, state: &str) {
        self.wait(number, &format!("{guest} is not {state}"), || {
            self.json(number, &["guest", "show", guest])["state"] == state
        });
    }

    /// Waits until the node sees that all are ready.
    pub fn wait_ready(&self, number: usize) {
        self.wait(number, "not all nodes are ready", || {
            let nodes = self.json(number, &["node", "list"]);
            let nodes = nodes.as_array().cloned().unwrap_or_default();
            !nodes.is_empty() && nodes.iter().all(|node| node["health"] == "ready")
        });
    }

    /// Waits until the node sees a majority, or none.
    pub fn wait_majority(&self, number: usize, there: bool) {
        self.wait(number, &format!("majority is not {there}"), || {
            self.json(number, &["cluster", "show"])["majority"] == there
        });
    }

    /// Makes a cluster of all nodes, the first one first.
    pub fn form(&self) {
        for number in 1..=self.nodes.len() {
            self.wait_until_it_serves(number);
        }
        self.must(1, &["cluster", "init"]);
        for number in 2..=self.nodes.len() {
            self.join(number, 1);
        }
        self.wait(1, "not all vote", || {
            let members = self.json(1, &["cluster", "show"])["members"].clone();
            let members = members.as_array().cloned().unwrap_or_default();
            members.len() == self.nodes.len() && members.iter().all(|one| one["votes"] == true)
        });
    }

    /// Takes a node in by a token of another.
    pub fn join(&self, number: usize, by: usize) {
        let token = self.must(by, &["cluster", "token"]);
        let address = format!("10.77.0.{by}");
        self.must(number, &["cluster", "join", &address, token.trim()]);
    }

    /// Creates and starts a probe on a node, which has its disk, by way of another. Returns its
    /// UUID.
    pub fn create(&self, by: usize, on: usize, name: &str) -> String {
        let probe = programs().join("pindah-probe");
        let probe = probe.to_str().expect("a path in UTF-8");
        let on = self.node(on).name.as_str();
        self.must(
            by,
            &[
                "guest",
                "create",
                name,
                "--memory",
                "64M",
                "--disk",
                "1M",
                "--no-network",
                "--kernel",
                probe,
                "--cmdline",
                "ws_mib=4",
                "--start",
                "--node",
                on,
            ],
        );
        let guest = self.json(by, &["guest", "show", name]);
        assert_eq!(guest["node"], on, "{guest}");
        guest["uuid"].as_str().expect("a UUID").to_owned()
    }

    /// Fails if a guest, an etcd beyond one a node, or a directory is left.
    pub fn assert_clean(&self) {
        for number in 1..=self.nodes.len() {
            for part in ["guests", "pool/volumes"] {
                let left = fs::read_dir(self.state(number, part));
                let left: Vec<_> = left.into_iter().flatten().flatten().collect();
                assert!(left.is_empty(), "node{number} {part} still has {left:?}");
            }
            assert!(self.etcds(number) <= 1, "node{number} has several etcds");
        }
    }
}

fn count_processes(option: &str, path: &Path) -> usize {
    let wanted = path.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let has = |entry: &fs::DirEntry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|&byte| byte == 0);
        arguments.any(|one| one == option.as_bytes()) && arguments.next() == Some(wanted)
    };
    processes.filter(has).count()
}

impl Drop for Site {
    fn drop(&mut self) {
        for number in 1..=self.nodes.len() {
            self.power_off(number);
            let namespace = self.node(number).namespace.clone();
            let _ = Command::new("ip")
                .args(["netns", "delete", &namespace])
                .status();
        }
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.hub])
            .status();
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    let status = status.expect("ip starts");
    assert!(status.success(), "ip {arguments:?}: {status}");
}
