//! `pindah node update` and `pindah cluster update`.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use reqwest::Method;

use super::output::{Output, age};
use super::progress::show_to_the_end;
use super::upload::put_file;
use crate::api::NodeView;
use crate::client::Client;
use crate::cluster::ClusterView;
use crate::update::{Bundle, LastUpdate, RolloutRequest, Slots, UpdateRequest};

/// How long a node may be away while it restarts, the way back included.
const SILENCE: Duration = Duration::from_secs(2700);

/// Which node, and by what.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub(super) struct UpdateArguments {
    /// The node [default: the one that is asked].
    #[arg(id = "name", value_name = "NODE")]
    node: Option<String>,
    /// The bundle, pindah-VERSION.raucb: a file of this machine, or a URL that the node fetches.
    #[arg(value_name = "FILE|URL")]
    bundle: String,
    /// Take a bundle that is older than what the node runs.
    #[arg(long)]
    force: bool,
    /// Guests shut down with the node and start again after it, in the place of moving to other nodes
    /// and back.
    #[arg(long)]
    stop_guests: bool,
    /// Do not wait; print the task.
    #[arg(long)]
    no_wait: bool,
}

/// By what.
#[derive(Debug, Args)]
pub(super) struct RolloutArguments {
    /// The bundle, pindah-VERSION.raucb: a file of this machine, or a URL that the node that is asked
    /// fetches.
    #[arg(value_name = "FILE|URL")]
    bundle: String,
    /// Take a bundle that is older than what nodes run.
    #[arg(long)]
    force: bool,
    /// Do not wait; print the task.
    #[arg(long)]
    no_wait: bool,
}

impl UpdateArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let node = match self.node {
            Some(node) => node,
            None => asked_node(client).await?,
        };
        let segment = super::guest::segment(&node)?;
        let request = UpdateRequest {
            url: hand_over(client, segment, &self.bundle).await?,
            from: None,
            force: self.force,
            stop_guests: self.stop_guests,
        };
        let begin = client.request(Method::POST, &format!("/nodes/{segment}/update"));
        let task = client.begin(begin.json(&request)).await?;
        show_to_the_end(client, task, (!self.no_wait, SILENCE), output).await
    }
}

impl RolloutArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let leader: ClusterView = client.get("/cluster").await?;
        let client = client.clone().on_node(&leader.node)?;
        let request = RolloutRequest {
            url: hand_over(&client, &leader.node, &self.bundle).await?,
            force: self.force,
        };
        let begin = client.request(Method::POST, "/cluster/update");
        let task = client.begin(begin.json(&request)).await?;
        show_to_the_end(&client, task, (!self.no_wait, SILENCE), output).await
    }
}

/// Uploads the bundle, or returns the URL that it is at.
async fn hand_over(client: &Client, node: &str, bundle: &str) -> anyhow::Result<Option<String>> {
    if bundle.contains("://") {
        return Ok(Some(bundle.to_owned()));
    }
    let path = Path::new(bundle);
    if !path.is_file() {
        bail!("there is no file {bundle}");
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let place = format!("/nodes/{node}/bundle");
    let _: Bundle = put_file(client, &place, path, &name).await?;
    Ok(None)
}

/// The node that answers.
async fn asked_node(client: &Client) -> anyhow::Result<String> {
    let nodes: Vec<NodeView> = client.list("/nodes").await?;
    if let [only] = nodes.as_slice() {
        return Ok(only.name.clone());
    }
    let cluster: ClusterView = client.get("/cluster").await?;
    Ok(cluster.node)
}

/// The node's two systems, in a line.
pub(super) fn slots(slots: &Slots) -> String {
    let good = |good: bool| if good { "good" } else { "not good" };
    let (running, other) = (good(slots.running_good), good(slots.other_good));
    let version = slots.other_version.as_deref();
    let version = version.map(|version| format!(", {version}"));
    format!(
        "{} runs, {running}; {} {other}{}",
        slots.running,
        slots.other,
        version.unwrap_or_default()
    )
}

/// How the last update ended, in a line.
pub(super) fn last_update(last: &LastUpdate) -> String {
    let (from, to, age) = (&last.from_version, &last.version, age(last.ended_unix_ms));
    match &last.fell_back {
        None => format!("from {from} to {to}, {age} ago"),
        Some(why) => format!("fell back from {to} to {from}, {age} ago: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_last_update_are_told_in_a_line() {
        let both = Slots {
            running: "B".to_owned(),
            running_good: true,
            other: "A".to_owned(),
            other_good: false,
            other_version: Some("0.1.0".to_owned()),
        };
        assert_eq!(slots(&both), "B runs, good; A not good, 0.1.0");
        let mut last = LastUpdate {
            from_version: "0.1.0".to_owned(),
            version: "0.2.0".to_owned(),
            ended_unix_ms: crate::clock::now_unix_ms(),
            fell_back: None,
        };
        assert!(last_update(&last).starts_with("from 0.1.0 to 0.2.0, "));
        last.fell_back = Some("no KVM".to_owned());
        let told = last_update(&last);
        assert!(
            told.starts_with("fell back from 0.2.0 to 0.1.0, "),
            "{told}"
        );
        assert!(told.ends_with("no KVM"), "{told}");
    }
}
