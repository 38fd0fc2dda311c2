//! `pindah selftest`: the acceptance test of a site. A small guest that watches itself is booted,
//! and moved to each node in turn.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::output::{Output, table};
use super::progress::follow;
use super::upload::upload;
use crate::api::{NodeHealth, NodeView};
use crate::client::Client;
use crate::domain::{FileName, PoolName, Task};

/// The guest's kernel, as an image.
const IMAGE: &str = "pindah-selftest";
/// It writes and verifies memory, says so each 50 ms, and how long it stood at most in between.
const WORDS: &str = "ws_mib=64 rate_mib_s=10 content=random verify=1 beat_ms=50 gap_us=3600000000";
const MEMORY_MIB: u64 = 128;
/// How long it may take to say something.
const BEAT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);
const POLL: std::time::Duration = std::time::Duration::from_millis(100);

/// Boot a small guest, move it to each node in turn, and say how long it stood.
#[derive(Debug, Args)]
pub(super) struct SelftestArguments {
    /// The guest's kernel [default: pindah-probe beside this program].
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
}

/// One move, as its guest and its task tell it.
#[derive(Debug, Serialize)]
struct Move {
    from: String,
    to: String,
    total_ms: u64,
    /// As the VMM says.
    downtime_ms: f64,
    /// As the guest saw it.
    blackout_ms: f64,
    sent_bytes: u64,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    /// Nodes on which the guest ran.
    nodes: Vec<String>,
    /// Nodes on which it could not, and why.
    left_out: Vec<String>,
    moves: Vec<Move>,
    pages_verified: u64,
}

impl SelftestArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let probe = match self.probe {
            Some(probe) => probe,
            None => std::env::current_exe()?.with_file_name("pindah-probe"),
        };
        ensure!(
            probe.is_file(),
            "there is no {}; name the probe with --probe FILE",
            probe.display()
        );
        let nodes: Vec<NodeView> = client.list("/nodes").await?;
        let why_not = |node: &NodeView| match node {
            node if node.witness => Some("it is a witness"),
            node if node.health != NodeHealth::Ready => Some("it is not ready"),
            node if node.drained => Some("it is drained"),
            node if !node.kvm => Some("it has no /dev/kvm"),
            _ => None,
        };
        let left_out = nodes.iter().filter_map(|node| {
            let reason = why_not(node)?;
            Some(format!("{}: {reason}", node.name))
        });
        let left_out: Vec<String> = left_out.collect();
        let able = nodes.iter().filter(|node| why_not(node).is_none());
        let nodes: Vec<String> = able.map(|node| node.name.clone()).collect();
        ensure!(
            !nodes.is_empty(),
            "no node can run a guest: {}",
            left_out.join("; ")
        );
        for node in &nodes {
            let there = client.clone().on_node(node)?;
            let image = FileName::try_from(IMAGE.to_owned())?;
            upload(&there, &probe, &PoolName::local(), Some(image)).await?;
        }
        let guest = format!(
            "selftest-{}",
            &uuid::Uuid::new_v4().simple().to_string()[..6]
        );
        let outcome = boot_and_move(client, &guest, nodes, left_out, output).await;
        let cleaned = clean_up(client, &guest, outcome.as_ref().ok()).await;
        let report = outcome?;
        cleaned?;
        output.show(&report, text)
    }
}

async fn boot_and_move(
    client: &Client,
    guest: &str,
    nodes: Vec<String>,
    left_out: Vec<String>,
    output: Output,
) -> anyhow::Result<Report> {
    let spec = json!({
        "name": guest, "memory_mib": MEMORY_MIB, "interfaces": [], "start": true,
        "kernel": { "image": format!("local/{IMAGE}"), "cmdline": WORDS },
        "notes": "pindah selftest",
    });
    let first = client.clone().on_node(&nodes[0])?;
    let request = first.request(Method::POST, "/guests").json(&spec);
    let task = client.begin(request).await?;
    follow(client, task.id, output).await?;
    let mut beats = beats_until(client, guest, |beats| beats.len() > 2).await?;
    let mut moves = Vec::new();
    let stations: Vec<&String> = nodes.iter().chain(nodes.first()).collect();
    for pair in stations.windows(2).filter(|pair| pair[0] != pair[1]) {
        let [from, to] = [pair[0].clone(), pair[1].clone()];
        let before = beats.last().context("it does not beat")?["runner"].clone();
        let path = format!("/guests/{guest}/migrate");
        let request = client
            .request(Method::POST, &path)
            .json(&json!({ "to": to }));
        let task = client.begin(request).await?;
        let task = follow(client, task.id, output).await?;
        beats = beats_until(client, guest, |beats| since(beats, &before).len() > 2).await?;
        // Stopped in the midst of a beat the guest tells of it in the next one.
        let first = since(&beats, &before).iter().take(2);
        let gaps = first.filter_map(|beat| beat["gap_max_us"].as_u64());
        let gap_us = gaps
            .max()
            .context("the guest does not tell how long it stood")?;
        moves.push(one_move(from, to, &task, gap_us)?);
    }
    let bad: u64 = beats.iter().filter_map(|beat| beat["bad"].as_u64()).sum();
    ensure!(
        bad == 0,
        "{bad} pages of the guest's memory were not what it wrote"
    );
    let last = beats.last().and_then(|beat| beat["checked"].as_u64());
    Ok(Report {
        nodes,
        left_out,
        moves,
        pages_verified: last.unwrap_or_default(),
    })
}

/// Those that came after the last one of this process.
fn since<'a>(beats: &'a [Value], process: &Value) -> &'a [Value] {
    let last = beats.iter().rposition(|beat| beat["runner"] == *process);
    &beats[last.map_or(0, |last| last + 1)..]
}

fn one_move(from: String, to: String, task: &Task, gap_us: u64) -> anyhow::Result<Move> {
    let result = task.result.as_ref().context("the task tells nothing")?;
    let number = |value: &Value| value.as_u64().context("the task does not tell all");
    Ok(Move {
        from,
        to,
        total_ms: number(&result["total_ms"])?,
        downtime_ms: number(&result["downtime_us"])? as f64 / 1e3,
        blackout_ms: gap_us as f64 / 1e3,
        sent_bytes: number(&result["sent_bytes"])?,
    })
}

/// What the guest says of itself each 50 ms, as soon as that fits.
async fn beats_until(
    client: &Client,
    guest: &str,
    fits: impl Fn(&[Value]) -> bool,
) -> anyhow::Result<Vec<Value>> {
    let end = std::time::Instant::now() + BEAT_DEADLINE;
    loop {
        let request = client.request(Method::GET, &format!("/guests/{guest}/log"));
        let log = client.send(request).await?.bytes().await?;
        let lines = log.split(|&byte| byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let beats: Vec<Value> = lines.filter(|line| line["ev"] == "beat").collect();
        if fits(&beats) {
            return Ok(beats);
        }
        if std::time::Instant::now() > end {
            bail!(
                "guest {guest} has said nothing for {} s",
                BEAT_DEADLINE.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Leaves nothing behind, whatever came of it.
async fn clean_up(client: &Client, guest: &str, report: Option<&Report>) -> anyhow::Result<()> {
    let request = client.request(Method::DELETE, &format!("/guests/{guest}"));
    match client.begin(request.query(&[("force", true)])).await {
        Ok(task) => {
            follow(client, task.id, Output::new(true)).await?;
        }
        // It was never made.
        Err(error) if super::progress::is_absent(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let nodes: Vec<String> = if let Some(report) = report {
        report.nodes.clone()
    } else {
        let nodes: Vec<NodeView> = client.list("/nodes").await?;
        nodes.into_iter().map(|node| node.name).collect()
    };
    for node in nodes {
        let there = client.clone().on_node(&node)?;
        let request = there.request(Method::DELETE, &format!("/images/{IMAGE}"));
        match client.send(request).await {
            Err(error) if report.is_some() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let mut parts = Vec::new();
    if report.moves.is_empty() {
        parts.push(format!(
            "a guest runs on {}; there is no other node to move it to",
            report.nodes[0]
        ));
    } else {
        let head = [
            "FROM",
            "TO",
            "TOTAL ms",
            "DOWNTIME ms",
            "BLACKOUT ms",
            "MiB",
            "MiB/s",
        ];
        let rows = report.moves.iter().map(|one| {
            let mib = one.sent_bytes as f64 / f64::from(1 << 20);
            let speed = mib * 1e3 / one.total_ms.max(1) as f64;
            vec![
                one.from.clone(),
                one.to.clone(),
                one.total_ms.to_string(),
                format!("{:.2}", one.downtime_ms),
                format!("{:.2}", one.blackout_ms),
                format!("{mib:.1}"),
                format!("{speed:.1}"),
            ]
        });
        parts.push(table(&head, rows));
    }
    parts.push(format!(
        "{} pages of memory verified, none bad",
        report.pages_verified
    ));
    parts.extend(
        report
            .left_out
            .iter()
            .map(|left| format!("left out {left}")),
    );
    parts.join("\n")
}
