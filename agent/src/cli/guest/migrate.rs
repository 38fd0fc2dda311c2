//! `pindah guest migrate`.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use pindah_vmm_api::MigrationMode;
use reqwest::Method;

use super::super::output::Output;
use super::super::progress::begin;
use super::super::size::parse_mib;
use super::{Begin, path};
use crate::client::Client;
use crate::guests::{MoveRequest, Plan};

/// How to move.
#[derive(Debug, Args)]
pub(in crate::cli) struct MigrateArguments {
    #[command(flatten)]
    begin: Begin,
    /// The node to move it to [default: the one with the most free memory that can take it].
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// What becomes of a guest that writes faster than the link carries.
    #[arg(long, value_enum, default_value_t = Mode::Precopy)]
    mode: Mode,
    /// Stop the guest only when it is predicted to stand no longer than this, in milliseconds.
    #[arg(long, value_name = "MS")]
    downtime_ms: Option<u64>,
    /// Give up when the switchover has not come by then, in seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Send no more than this in a second: 50M.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    bandwidth: Option<u64>,
    /// Move it although something that it uses stays behind.
    #[arg(long)]
    force: bool,
    /// Say what would be done, and whether it can be, and do nothing.
    #[arg(long, conflicts_with = "no_wait")]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// It is held until it writes less.
    Precopy,
    /// It runs at the destination before all of its memory is there; if the link or its node fails
    /// until it is, the guest is lost.
    Hybrid,
}

impl MigrateArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let path = path(&self.begin.guest, "/migrate")?;
        let body = MoveRequest {
            to: self.to,
            mode: match self.mode {
                Mode::Precopy => MigrationMode::Precopy,
                Mode::Hybrid => MigrationMode::Hybrid,
            },
            downtime_target_ms: self.downtime_ms,
            timeout_s: self.timeout,
            bandwidth_bytes_per_s: self.bandwidth.map(|mib| mib.saturating_mul(1 << 20)),
            force: self.force,
        };
        if self.dry_run {
            let request = client.request(Method::GET, &path).query(&body);
            let plan: Plan = client.data(request).await?;
            return output.show(&plan, |plan| describe(&self.begin.guest, plan));
        }
        let request = client.request(Method::POST, &path).json(&body);
        begin(client, request, !self.begin.no_wait, output).await
    }
}

fn describe(guest: &str, plan: &Plan) -> String {
    let left = format!("{} MiB of memory would be left there", plan.memory_left_mib);
    if !plan.live {
        return format!(
            "{guest} is off and can change to {} at once; {left}",
            plan.to
        );
    }
    let mut text = format!(
        "{guest} can move to {} while it runs: at most {} MiB to send, and again what it writes \
         meanwhile; {left}",
        plan.to, plan.memory_mib
    );
    if let Some(forecast) = &plan.forecast {
        let _ = write!(text, "\nforecast: {forecast}");
    }
    text
}
