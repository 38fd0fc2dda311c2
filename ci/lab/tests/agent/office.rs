//! Two nodes that act as one, with a NAS.

use std::sync::MutexGuard;
use std::thread;

use anyhow::{Context, Result};
use pindah_lab::Flavour::Cloud;
use pindah_lab::Lab;
use pindah_lab::guest::{BOOT_LIMIT, Console};
use pindah_lab::nas::{EXPORT, Nas};
use pindah_lab::network::HOST_ADDRESS;

use crate::node::Node;
use crate::turn;

/// The second node's clock is ahead by as much: nobody keeps the clocks right.
const CLOCK_AHEAD_S: u32 = 5;

/// A small office.
pub struct Office {
    /// The two.
    pub nodes: [Node; 2],
    /// What it keeps its disks on.
    pub nas: Nas,
    /// The lab around it.
    pub lab: Lab,
    _turn: MutexGuard<'static, ()>,
}

impl Office {
    /// With a cluster of both nodes, which share nothing yet.
    pub fn new(name: &str) -> Result<Self> {
        Self::of(name, |lab, node| match node {
            "node1" => Node::new(lab, node, 0),
            _ => Node::new(lab, node, CLOCK_AHEAD_S),
        })
    }

    /// The same, of nodes that systemd starts.
    pub fn with_systemd(name: &str) -> Result<Self> {
        Self::of(name, Node::with_systemd)
    }

    fn of(name: &str, start: impl Fn(&Lab, &str) -> Result<Node> + Sync) -> Result<Self> {
        let turn = turn();
        let lab = Lab::new(name)?;
        let nas = lab.nas()?;
        let nodes = thread::scope(|scope| {
            let second = scope.spawn(|| start(&lab, "node2"));
            let first = start(&lab, "node1")?;
            let second = second.join().ok().context("a thread panicked")??;
            anyhow::Ok([first, second])
        })?;
        let office = Self {
            nodes,
            lab,
            nas,
            _turn: turn,
        };
        office.form()?;
        Ok(office)
    }

    fn form(&self) -> Result<()> {
        let [first, second] = &self.nodes;
        first.pindah("cluster init")?;
        let token = first.pindah("cluster token")?;
        let address = first.server().address();
        second.pindah(&format!("cluster join {address} {}", token.trim()))?;
        second.wait_line("node list", "^node1 *ready")?;
        first.wait_line("node list", "^node2 *ready")
    }

    /// Makes the NAS a pool, and waits until each node has it.
    pub fn create_pool(&self) -> Result<()> {
        let [first, second] = &self.nodes;
        first.pindah(&format!(
            "pool create nas --kind nfs --server {HOST_ADDRESS} --export {EXPORT}"
        ))?;
        wait_pool(first, "node1", "ready")?;
        wait_pool(second, "node2", "ready")
    }
}

/// Uploads, at the node `by`, what [`create_small`] makes guests of.
pub fn upload_small(lab: &Lab, by: &Node, pool: &str) -> Result<()> {
    let artifacts = lab.artifacts();
    let kernel = artifacts.kernel("6.12", Cloud)?;
    for (path, name) in [
        (&kernel.image, "vmlinuz"),
        (&artifacts.guest_initramfs(&kernel)?, "initramfs"),
        (&artifacts.guest_disk()?, "small.raw"),
    ] {
        let path = by.server().artifact(path);
        let path = path.display();
        by.pindah(&format!("image upload {path} --name {name} --pool {pool}"))?;
    }
    Ok(())
}

/// Waits until the node at `by` shows the pool of node `of` in this state.
pub fn wait_pool(by: &Node, of: &str, state: &str) -> Result<()> {
    by.wait_line("pool list", &format!("^nas .* {of} *{state}"))
}

/// Creates, at the node `by`, a guest that boots in moments, with all that it needs in `pool`.
pub fn create_small(by: &Node, name: &str, on: &str, pool: &str) -> Result<()> {
    by.pindah(&format!(
        "guest create {name} --memory 128M --no-network --node {on} --pool {pool} \
         --image {pool}/small.raw --kernel {pool}/vmlinuz --initrd {pool}/initramfs \
         --cmdline 'console=ttyS0 quiet panic=-1 root=/dev/vda rw'"
    ))?;
    Ok(())
}

/// Starts a guest at its node, and waits until it listens.
pub fn start_small(node: &Node, name: &str) -> Result<Console> {
    node.pindah(&format!("guest start {name}"))?;
    let mut console = node.console(name)?;
    node.explain(console.wait_ready(BOOT_LIMIT))?;
    Ok(console)
}
