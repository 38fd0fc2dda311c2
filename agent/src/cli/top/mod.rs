//! `pindah top`: guests and nodes, again and again.

mod live;
mod table;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::output::Output;
use crate::api::{GuestView, NodeView};
use crate::client::{Client, ClientError};

/// How to watch.
#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// Print it once and end.
    #[arg(long)]
    once: bool,
    /// How long between two looks, in seconds; nodes measure every 10.
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// What is seen at one time.
#[derive(Debug, Serialize)]
struct Seen {
    nodes: Vec<NodeView>,
    guests: Vec<GuestView>,
}

/// The busiest guests come first.
async fn look(client: &Client) -> Result<Seen, ClientError> {
    let mut nodes: Vec<NodeView> = client.list("/nodes").await?;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut guests: Vec<GuestView> = client.list("/guests").await?;
    let cpu = |guest: &GuestView| guest.usage.cpu_percent.unwrap_or(-1.0);
    guests.sort_by(|a, b| {
        let by_cpu = cpu(b).total_cmp(&cpu(a));
        by_cpu.then_with(|| a.name.cmp(&b.name))
    });
    Ok(Seen { nodes, guests })
}

impl TopArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        if self.once {
            return output.show(&look(client).await?, table::text);
        }
        let interval = Duration::from_secs(self.interval);
        let on_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        if on_terminal && !output.is_json() {
            return live::run(client, interval).await;
        }
        loop {
            let seen = look(client).await?;
            let text = if output.is_json() {
                serde_json::to_string(&seen)?
            } else {
                format!("{}\n", table::text(&seen))
            };
            let mut stdout = std::io::stdout();
            let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
            match written {
                // A reader that has enough is no failure.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            tokio::time::sleep(interval).await;
        }
    }
}
