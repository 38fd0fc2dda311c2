//! Two nodes of a cluster on this host: agents, etcds and VMMs are the real ones, each in the
//! namespaces of its node, with which all of it ends.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::page::Page;
use crate::channel::Process;
use crate::lab::Lab;
use crate::server::Server;

/// How long a step may take on a slow host.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// Where guests find who pings them, on the network that they share.
pub(super) const OBSERVER: &str = "10.20.0.254";
/// Of the small office's better switch.
const LINK_BITS_PER_S: u64 = 1_000_000_000;
const ADDRESSES: [&str; 2] = ["10.8.0.1", "10.8.0.2"];
/// A file system of the node's own.
const OWN: &str = "/mnt";

/// The site.
pub(super) struct Site {
    /// Its nodes.
    pub(super) nodes: [Server; 2],
    nas: PathBuf,
    _agents: [Process; 2],
    _labs: [Lab; 2],
}

/// A node's command line.
fn pindah(node: &Server) -> String {
    format!(
        "{} --context {OWN}/pindah/admin.json",
        node.program("pindah")
    )
}

fn start_agent(node: &Server, number: usize) -> Result<Process> {
    node.check(&format!("mount -t tmpfs -o mode=755 none {OWN}"))?;
    // The lab's own switch, which has the same address on both.
    node.check("ip link del br0")?;
    let vmm = node.program("pindah-vmm");
    let config = format!(
        "node = 'node{number}'\nstate_dir = '{OWN}/pindah'\nvmm = '{vmm}'\nstop_deadline_s = 1\n\
         reserved_memory_mib = 64\nmetrics_interval_ms = 1000\nnetwork.enabled = false\n"
    );
    node.put(&format!("{OWN}/pindahd.toml"), config.as_bytes())?;
    let program = node.program("pindahd");
    let agent = format!("exec {program} --config {OWN}/pindahd.toml 2>{OWN}/log");
    let agent = node.spawn(&["sh", "-c", &agent])?;
    let serves = format!("{} node list", pindah(node));
    node.wait_until("the agent serves", LIMIT, &serves)?;
    Ok(agent)
}

impl Site {
    /// Starts both agents, and makes them one cluster.
    pub(super) fn start() -> Result<Self> {
        let labs = [Lab::new("demo-node1")?, Lab::new("demo-node2")?];
        let [one, two] = &labs;
        let [first, second] = ADDRESSES.map(|address| format!("{address}/24"));
        let link = [first.as_str(), second.as_str()];
        one.network().join(two.network(), link, LINK_BITS_PER_S)?;
        one.network().cable(two.network(), "lan0")?;
        let nas = one.directory().join("nas");
        fs::create_dir(&nas)?;
        let nodes = [one.host()?, two.host()?];
        let agents = [start_agent(&nodes[0], 1)?, start_agent(&nodes[1], 2)?];
        let site = Self {
            nodes,
            nas,
            _agents: agents,
            _labs: labs,
        };
        let [here, there] = ADDRESSES;
        site.pindah(&format!("cluster init --address {here}"))?;
        let token = site.pindah("cluster token")?;
        let joining = &site.nodes[1];
        let join = format!("cluster join --own-address {there} {here} {}", token.trim());
        joining.check(&format!("{} {join}", pindah(joining)))?;
        site.wait_for("both nodes", "node list", |list| {
            let nodes = list.as_array().map_or(&[][..], Vec::as_slice);
            nodes.len() == 2 && nodes.iter().all(|node| node["health"] == "ready")
        })?;
        Ok(site)
    }

    /// Makes what both share: a pool with the guests' kernel, and a network.
    pub(super) fn furnish(&self) -> Result<()> {
        let nas = self.nas.display();
        self.pindah(&format!("pool create nas --path {nas} --shared"))?;
        self.wait_for("the pool", "pool show nas", |pool| {
            let nodes = pool["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "ready")
        })?;
        let probe = self.nodes[0].program("pindah-probe");
        self.pindah(&format!("image upload {probe} --pool nas"))?;
        self.pindah("network create lan --uplink lan0")?;
        let network = |node: &Value| {
            let networks = node["networks"].as_array().cloned().unwrap_or_default();
            networks
                .into_iter()
                .find(|network| network["network"] == "lan")
        };
        for node in ["node1", "node2"] {
            self.wait_for("the network", &format!("node show {node}"), |node| {
                network(node).is_some_and(|network| network["state"] == "ready")
            })?;
        }
        let bridge = network(&self.json("node show node1")?).context("no network lan")?;
        let bridge = bridge["bridge"]
            .as_str()
            .context("a network without bridge")?;
        self.nodes[0].check(&format!("ip addr add {OBSERVER}/24 dev {bridge}"))?;
        Ok(())
    }

    /// What `pindah` prints on the first node.
    pub(super) fn pindah(&self, arguments: &str) -> Result<String> {
        let node = &self.nodes[0];
        node.check(&format!("{} {arguments}", pindah(node)))
    }

    /// The same as JSON.
    pub(super) fn json(&self, arguments: &str) -> Result<Value> {
        let said = self.pindah(&format!("{arguments} --json"))?;
        serde_json::from_str(&said).with_context(|| format!("pindah {arguments}: {said}"))
    }

    /// Waits until what `pindah` says fits.
    pub(super) fn wait_for(
        &self,
        what: &str,
        arguments: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = std::time::Instant::now() + LIMIT;
        loop {
            let said = self.json(arguments)?;
            if fits(&said) {
                return Ok(said);
            }
            anyhow::ensure!(end > std::time::Instant::now(), "{what}: still {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Begins a task, shows its log while it runs, and returns it when it is done.
    pub(super) fn follow(&self, page: &Page, arguments: &str) -> Result<Value> {
        let task = self.json(&format!("{arguments} --no-wait"))?;
        let id = task["id"].as_str().context("a task without id")?.to_owned();
        let mut shown = 0;
        loop {
            let task = self.json(&format!("task show {id}"))?;
            let log = self.pindah(&format!("task log {id}"))?;
            for line in log.lines().skip(shown) {
                page.line(line);
                shown += 1;
            }
            match task["state"].as_str() {
                Some("running") => std::thread::sleep(Duration::from_millis(100)),
                Some("done") => return Ok(task),
                _ => anyhow::bail!("pindah {arguments}: {}", task["error"]),
            }
        }
    }

    /// How a person looks around on a node.
    pub(super) fn command_for_a_person(&self) -> String {
        let node = &self.nodes[0];
        let id = node.machine_id();
        format!("nsenter --target {id} --net --mount {}", pindah(node))
    }
}
