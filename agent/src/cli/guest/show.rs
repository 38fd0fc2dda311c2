//! `pindah guest list|show`.

use pindah_vmm_api::DiskFormat;

use super::path;
use crate::api::GuestView;
use crate::cli::output::{Output, age, mib, properties, table};
use crate::client::Client;
use crate::domain::{Boot, CrashPolicy};

pub(super) async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let mut guests: Vec<GuestView> = client.list("/guests").await?;
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    output.show(&guests, |guests| {
        let head = [
            "NAME", "STATE", "NODE", "CPUS", "MEMORY", "ADDRESS", "SINCE",
        ];
        table(&head, guests.iter().map(row))
    })
}

pub(super) async fn show(client: &Client, output: Output, name: &str) -> anyhow::Result<()> {
    let guest: GuestView = client.get(&path(name, "")?).await?;
    output.show(&guest, text)
}

fn row(guest: &GuestView) -> Vec<String> {
    let state = if guest.incomplete {
        "creating".to_owned()
    } else {
        guest.state.to_string()
    };
    vec![
        guest.name.to_string(),
        state,
        guest.node.clone(),
        guest.cpus.to_string(),
        mib(guest.memory_mib),
        guest.addresses.join(" "),
        age(guest.since_unix_ms),
    ]
}

fn text(guest: &GuestView) -> String {
    let disks: Vec<String> = guest
        .disks
        .iter()
        .map(|disk| {
            let format = match disk.format {
                DiskFormat::Raw => "raw",
                DiskFormat::Qcow2 => "qcow2",
            };
            let pool = &disk.volume.pool;
            format!("{}: {} {format} in {pool}", disk.id, mib(disk.size_mib))
        })
        .collect();
    let interfaces: Vec<String> = guest
        .interfaces
        .iter()
        .map(|interface| format!("{}: {} on {}", interface.id, interface.mac, interface.tap))
        .collect();
    let boot = match &guest.boot {
        Boot::Firmware => "its first disk".to_owned(),
        Boot::Kernel {
            kernel, cmdline, ..
        } => format!("kernel {kernel} {cmdline}"),
    };
    let on_crash = match guest.on_crash {
        CrashPolicy::Restart => "restart",
        CrashPolicy::Stay => "stay",
    };
    let tags: Vec<&str> = guest.tags.iter().map(String::as_str).collect();
    properties(&[
        ("name", guest.name.to_string()),
        ("uuid", guest.uuid.to_string()),
        (
            "state",
            format!("{} for {}", guest.state, age(guest.since_unix_ms)),
        ),
        ("reason", guest.reason.clone().unwrap_or_default()),
        ("node", guest.node.clone()),
        (
            "process",
            guest.pid.map_or_else(String::new, |pid| pid.to_string()),
        ),
        ("crashes", guest.crashes.to_string()),
        ("cpus", guest.cpus.to_string()),
        ("memory", mib(guest.memory_mib)),
        ("boots", boot),
        ("disks", disks.join(", ")),
        ("interfaces", interfaces.join(", ")),
        ("addresses", guest.addresses.join(" ")),
        (
            "autostart",
            if guest.autostart.enabled { "yes" } else { "no" }.to_owned(),
        ),
        ("on crash", on_crash.to_owned()),
        ("tags", tags.join(" ")),
        ("notes", guest.notes.clone()),
    ])
}
