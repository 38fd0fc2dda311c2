//! The agent's own tests of what Debian's kernels have and a build host's may lack, in a server.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use pindah_lab::{Lab, repository};
use serde_json::Value;

use crate::node::ACTION_LIMIT;
use crate::turn;

/// They say that they were skipped where the kernel lacks what they are about.
const TESTS: [&str; 3] = [
    "interfaces::vlans_are_apart",
    "interfaces::allowed_port_is_open_and_the_rest_is_closed",
    "networks::bond_goes_on_when_one_of_its_interfaces_fails",
];
/// What they are called in the server.
const PROGRAM: &str = "agent-tests";

/// The program that has them.
fn build() -> Result<PathBuf> {
    let build = Command::new(env!("CARGO"))
        .args(["test", "--package", "pindah-agent", "--test", "node"])
        .args(["--no-run", "--locked", "--message-format", "json"])
        .current_dir(repository())
        .output()
        .context("starting cargo")?;
    if !build.status.success() {
        let said = String::from_utf8_lossy(&build.stderr);
        bail!("the agent's tests do not build\n{said}");
    }
    let messages = build.stdout.split(|&byte| byte == b'\n');
    let mut messages = messages.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let program = messages.find_map(|message| {
        let ours = message["target"]["name"] == "node" && message["profile"]["test"] == true;
        ours.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    program.context("cargo names no program")
}

#[test]
#[ignore = "lab"]
fn vlans_bonds_and_the_stateful_firewall_work_on_debians_kernel() {
    let program = build().unwrap();
    let _turn = turn();
    let lab = Lab::new("kernel").unwrap();
    lab.stage(&program, PROGRAM).unwrap();
    let server = lab.server("node1").start().unwrap();
    let run = format!(
        "PINDAH_TEST_PROGRAMS=/lab/bin {PROGRAM} --exact --nocapture --test-threads 1 {} 2>&1",
        TESTS.join(" ")
    );
    let output = server.run_within(ACTION_LIMIT, &run).unwrap().ok().unwrap();
    let said = output.text();
    println!("{said}");
    assert!(!said.contains("skipped"), "{said}");
    let passed = format!("{} passed", TESTS.len());
    assert!(said.contains(&passed), "{said}");
}
