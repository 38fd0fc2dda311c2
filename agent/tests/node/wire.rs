//! Machines at the other end of a cable: network namespaces, and pairs of virtual interfaces.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::harness::Agent;
use super::programs::programs;

/// A machine beside the agent's; it goes with the test.
pub struct Machine {
    namespace: String,
}

impl Machine {
    /// A machine that is connected to nothing. `name` is unique among the tests.
    pub fn new(name: &str) -> Self {
        let namespace = format!("pindah-{name}-{}", std::process::id());
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        Self { namespace }
    }

    /// A cable from its interface `ours` to the agent's `theirs`, which is off and has no address.
    pub fn plug(&self, ours: &str, agent: &Agent, theirs: &str, address: &str) {
        let (here, there) = (self.namespace.as_str(), agent.namespace());
        ip(&[
            "-n", here, "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", there,
        ]);
        ip(&["-n", here, "address", "add", address, "dev", ours]);
        ip(&["-n", here, "link", "set", ours, "up"]);
    }

    /// A cable from its interface `ours` to `theirs` of another machine.
    pub fn plug_into(&self, ours: &str, other: &Self, theirs: &str) {
        let (here, there) = (self.namespace.as_str(), other.namespace.as_str());
        ip(&[
            "-n", here, "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", there,
        ]);
        ip(&["-n", here, "link", "set", ours, "up"]);
    }

    /// Runs `ip` there.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.namespace], arguments].concat());
    }

    /// Runs this there, in a thread of its own.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.namespace);
        std::thread::spawn(move || {
            let namespace = File::open(&path).expect("a namespace");
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("we are root");
            work()
        })
    }

    /// What a program prints there.
    pub fn stdout(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace, program])
            .args(arguments)
            .output()
            .expect("the program starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether this address answers within some seconds.
    pub fn reaches(&self, address: &str) -> bool {
        let ping = ["-c", "15", "-i", "0.2", "-W", "1", address];
        self.stdout("ping", &ping).contains("time=")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.namespace])
            .status();
    }
}

/// Runs `ip`.
pub fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.expect("ip starts").success(), "ip {arguments:?}");
}

/// Creates and starts a probe with a network interface.
pub fn create_guest(agent: &Agent, name: &str, cmdline: &str, extra: &[&str]) {
    let probe = programs().join("pindah-probe");
    let cmdline = format!("ws_mib=4 net=1 {cmdline}");
    let mut arguments = vec!["guest", "create", name, "--memory", "64M", "--kernel"];
    arguments.extend([probe.to_str().unwrap(), "--cmdline", &cmdline, "--start"]);
    arguments.extend(extra);
    agent.must(&arguments);
}
