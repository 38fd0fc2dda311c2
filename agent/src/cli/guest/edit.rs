//! `pindah guest edit`.

use clap::Args;
use reqwest::{Method, header};

use super::cpu::CpuFlags;
use super::create::choice;
use super::path;
use crate::api::{Data, GuestEdited, GuestView};
use crate::cli::output::Output;
use crate::cli::size::parse_mib;
use crate::client::Client;
use crate::domain::{Autostart, CrashPolicy, GuestEdit, GuestName};

/// What is to change.
#[derive(Debug, Args)]
pub struct EditArguments {
    /// Name or UUID.
    guest: String,
    /// A new name.
    #[arg(long)]
    name: Option<String>,
    /// RAM, as in 512M or 2G: from the next start on.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    memory: Option<u64>,
    /// Virtual CPUs: from the next start on.
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    #[command(flatten)]
    cpu: CpuFlags,
    /// Whether it starts with its node.
    #[arg(long, value_name = "true|false")]
    autostart: Option<bool>,
    /// When it starts among the others of its node: smaller ones first.
    #[arg(long, value_name = "N")]
    autostart_order: Option<u16>,
    /// How long the next one waits, in seconds.
    #[arg(long, value_name = "SECONDS")]
    autostart_delay: Option<u16>,
    /// What becomes of it when it crashes: restart or stay.
    #[arg(long, value_parser = choice::<CrashPolicy>)]
    on_crash: Option<CrashPolicy>,
    /// All its labels; may be repeated.
    #[arg(long)]
    tag: Vec<String>,
    /// Free text.
    #[arg(long)]
    notes: Option<String>,
}

impl EditArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let path = path(&self.guest, "")?;
        let (guest, etag) = client.get_tagged::<GuestView>(&path).await?;
        let autostart = self.autostart(&guest.autostart);
        let edit = GuestEdit {
            name: self.name.map(GuestName::try_from).transpose()?,
            cpus: self.cpus,
            cpu_limits: self.cpu.apply(guest.cpu_limits),
            memory_mib: self.memory,
            autostart,
            on_crash: self.on_crash,
            tags: (!self.tag.is_empty()).then(|| self.tag.into_iter().collect()),
            notes: self.notes,
        };
        let request = client
            .request(Method::PATCH, &path)
            .header(header::IF_MATCH, etag)
            .json(&edit);
        let edited: Data<GuestEdited> = client.send(request).await?.json().await?;
        output.show(&edited.data, |edited| {
            let name = &edited.guest.name;
            if edited.restart_needed {
                format!("{name} is changed; stop and start it for all of it to count")
            } else {
                format!("{name} is changed")
            }
        })
    }

    /// `None`: it stays as it is.
    fn autostart(&self, now: &Autostart) -> Option<Autostart> {
        let new = Autostart {
            enabled: self.autostart.unwrap_or(now.enabled),
            order: self.autostart_order.unwrap_or(now.order),
            delay_s: self.autostart_delay.unwrap_or(now.delay_s),
        };
        (new != *now).then_some(new)
    }
}
