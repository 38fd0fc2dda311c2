//! Machines at the other end of a cable: network namespaces, and pairs of virtual interfaces.

use std::process::Command;

use super::harness::Agent;

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
