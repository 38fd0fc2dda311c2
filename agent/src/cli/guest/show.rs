//! `pindah guest list|show`.

use pindah_vmm_api::DiskFormat;

use super::path;
use crate::api::GuestView;
use crate::cli::output::{Output, age, figure, mib, properties, table, used};
use crate::client::Client;
use crate::domain::{Autostart, Boot, CrashPolicy};

pub(super) async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let mut guests: Vec<GuestView> = client.list("/guests").await?;
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    output.show(&guests, |guests| {
        let head = [
            "NAME",
            "STATE",
            "NODE",
            "CPUS",
            "CPU %",
            "MEMORY",
            "USED",
            "RX kbit/s",
            "TX kbit/s",
            "ADDRESS",
            "SINCE",
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
    } else if guest.template {
        "template".to_owned()
    } else {
        guest.state.to_string()
    };
    let usage = &guest.usage;
    vec![
        guest.name.to_string(),
        state,
        guest.node.clone(),
        guest.cpus.to_string(),
        figure(usage.cpu_percent),
        mib(guest.memory_mib),
        used(usage),
        figure(usage.network_rx_kbit_per_s),
        figure(usage.network_tx_kbit_per_s),
        guest.addresses.join(" "),
        age(guest.since_unix_ms),
    ]
}

/// What it takes now; empty while nothing is known.
fn takes(guest: &GuestView) -> String {
    let usage = &guest.usage;
    if usage.sampled_unix_ms.is_none() {
        return String::new();
    }
    format!(
        "{} % of a CPU, {}, network {} in and {} kbit/s out, disks {} read and {} KiB/s written",
        figure(usage.cpu_percent),
        used(usage),
        figure(usage.network_rx_kbit_per_s),
        figure(usage.network_tx_kbit_per_s),
        figure(usage.disk_read_kib_per_s),
        figure(usage.disk_write_kib_per_s),
    )
}

/// What it may take of processors, and why that is not so.
fn cpu_limits(guest: &GuestView) -> String {
    match &guest.limits_error {
        Some(error) => format!("{}; not applied: {error}", guest.cpu_limits),
        None => guest.cpu_limits.to_string(),
    }
}

/// Its RAM, and what it is asked to give back of it and has.
fn memory(guest: &GuestView) -> String {
    let all = mib(guest.memory_mib);
    let returned = guest.usage.memory_returned_mib.unwrap_or(0);
    match guest.memory_target_mib {
        None => all,
        Some(target) => format!(
            "{all}, asked to keep to {}, {} given back",
            mib(target),
            mib(returned)
        ),
    }
}

/// Whether it starts with its node, and when.
fn autostart(autostart: &Autostart) -> String {
    if !autostart.enabled {
        return "no".to_owned();
    }
    let order = autostart.order;
    match autostart.delay_s {
        0 => format!("yes, order {order}"),
        delay_s => format!("yes, order {order}, the next one waits {delay_s} s"),
    }
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
            let limits = if disk.limits.is_empty() {
                String::new()
            } else {
                format!(" (at most {})", disk.limits)
            };
            let size = mib(disk.size_mib);
            format!("{}: {size} {format} in {pool}{limits}", disk.id)
        })
        .collect();
    let interfaces: Vec<String> = guest
        .interfaces
        .iter()
        .map(|interface| {
            let (network, tap) = (&interface.network, &interface.tap);
            format!("{}: {} on {network} by {tap}", interface.id, interface.mac)
        })
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
            "template",
            if guest.template { "yes" } else { "" }.to_owned(),
        ),
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
        ("cpu limits", cpu_limits(guest)),
        ("memory", memory(guest)),
        ("takes", takes(guest)),
        ("boots", boot),
        ("disks", disks.join(", ")),
        ("interfaces", interfaces.join(", ")),
        ("addresses", guest.addresses.join(" ")),
        ("autostart", autostart(&guest.autostart)),
        ("on crash", on_crash.to_owned()),
        ("tags", tags.join(" ")),
        ("notes", guest.notes.clone()),
    ])
}
