//! `pindah guest memory`.

use clap::Args;
use reqwest::Method;

use super::path;
use crate::api::{Data, GuestView, MemoryTarget};
use crate::cli::output::{Output, mib};
use crate::cli::size::parse_mib;
use crate::client::Client;

/// Which guest, and how much it is to keep to.
#[derive(Debug, Args)]
pub(in crate::cli) struct MemoryArguments {
    /// Name or UUID.
    guest: String,
    /// How much of its RAM it is to keep to, as in 256M, or all.
    #[arg(value_name = "SIZE|all", value_parser = parse_target)]
    target: MemoryTarget,
}

fn parse_target(text: &str) -> Result<MemoryTarget, String> {
    let target_mib = match text {
        "all" => None,
        size => Some(parse_mib(size)?),
    };
    Ok(MemoryTarget { target_mib })
}

impl MemoryArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let path = path(&self.guest, "/memory")?;
        let request = client.request(Method::PUT, &path).json(&self.target);
        let guest: Data<GuestView> = client.send(request).await?.json().await?;
        output.show(&guest.data, |guest| {
            let (name, all) = (&guest.name, mib(guest.memory_mib));
            match guest.memory_target_mib {
                Some(target) => format!("{name} is to keep to {} of its {all}", mib(target)),
                None => format!("{name} may have all of its {all}"),
            }
        })
    }
}
