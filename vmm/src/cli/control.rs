//! `pindah-vmm ctl`: the API for a person at a terminal.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use pindah_vmm::api::client::Client;
use pindah_vmm_api::{
    BalloonTarget, DiskLimits, DiskResize, Metrics, ResumeRequest, VmConfig, VmInfo,
};
use serde::Serialize;

use super::options::{parse_mib, parse_size};

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub struct ControlArguments {
    /// The guest's API socket.
    #[arg(long, value_name = "SOCKET")]
    api: PathBuf,
    #[command(subcommand)]
    command: ControlCommand,
}

#[derive(Debug, Subcommand)]
enum ControlCommand {
    /// Show what the guest is and how it is doing.
    State,
    /// Show what the guest was built from.
    Config,
    /// Show its counters.
    Metrics,
    /// Show what happens, one JSON object a line, until the guest ends.
    Events,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs go on.
    Resume {
        /// Even where the guest's last migration is in doubt and nothing tells that it does not
        /// run elsewhere: if it does, its disks' content is lost.
        #[arg(long)]
        force: bool,
    },
    /// Press the power button: ask the guest to shut down.
    PowerButton,
    /// Take the power away.
    PowerOff,
    /// Reset the machine.
    Reset,
    /// Ask the guest to give back memory.
    Balloon {
        /// How much in all: 512M.
        #[arg(value_parser = parse_mib)]
        target: u64,
    },
    /// Give a disk another size.
    Resize {
        /// The disk's id.
        disk: String,
        /// Its new size: 20G.
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Limit how much of its storage a disk may take. What is not given is not limited.
    Limit {
        /// The disk's id.
        disk: String,
        /// Most bytes a second, reads and writes together: 20M.
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        bandwidth: Option<u64>,
        /// Most requests a second.
        #[arg(long, value_name = "N")]
        iops: Option<u64>,
    },
    /// Connect standard input and output to a console, until input ends or the guest does.
    Console {
        /// `serial` or `console`.
        #[arg(default_value = "serial")]
        id: String,
    },
}

/// Does one command.
pub fn control(arguments: ControlArguments) -> anyhow::Result<()> {
    let mut client = Client::connect(&arguments.api)?;
    let mut post = |path: &str| client.command::<()>("POST", &format!("/api/v1/vm/{path}"), None);
    match arguments.command {
        ControlCommand::Pause => post("pause")?,
        ControlCommand::Resume { force } => {
            let body = ResumeRequest { force };
            client.command("POST", "/api/v1/vm/resume", Some(&body))?;
        }
        ControlCommand::PowerButton => post("power-button")?,
        ControlCommand::PowerOff => post("power-off")?,
        ControlCommand::Reset => post("reset")?,
        ControlCommand::State => show(&client.get::<VmInfo>("/api/v1/vm")?)?,
        ControlCommand::Config => show(&client.get::<VmConfig>("/api/v1/vm/config")?)?,
        ControlCommand::Metrics => show(&client.get::<Metrics>("/api/v1/metrics")?)?,
        ControlCommand::Events => events(client)?,
        ControlCommand::Balloon { target } => {
            let body = BalloonTarget { target_mib: target };
            client.command("PUT", "/api/v1/balloon", Some(&body))?;
        }
        ControlCommand::Resize { disk, size } => {
            let body = DiskResize { size_bytes: size };
            client.command("PATCH", &format!("/api/v1/disks/{disk}"), Some(&body))?;
        }
        ControlCommand::Limit {
            disk,
            bandwidth,
            iops,
        } => {
            let body = DiskLimits {
                bandwidth_bytes_per_s: bandwidth,
                iops,
            };
            client.command("PUT", &format!("/api/v1/disks/{disk}/limits"), Some(&body))?;
        }
        ControlCommand::Console { id } => console(client, &id)?,
    }
    Ok(())
}

fn show<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot be shown")?;
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

fn events(client: Client) -> anyhow::Result<()> {
    for event in client.events(None)? {
        let line = serde_json::to_string(&event?).context("cannot be shown")?;
        writeln!(std::io::stdout(), "{line}").context("standard output")?;
    }
    Ok(())
}

fn console(client: Client, id: &str) -> anyhow::Result<()> {
    let mut output = client.attach_console(id)?;
    let mut input = output.get_ref().try_clone().context("console")?;
    std::thread::spawn(move || {
        // Either side may end it; the other end is seen by the copy below.
        let _ = std::io::copy(&mut std::io::stdin(), &mut input);
        let _ = input.shutdown(Shutdown::Write);
    });
    let mut buffer = [0; 4096];
    loop {
        let count = output.read(&mut buffer).context("console")?;
        if count == 0 {
            return Ok(());
        }
        let mut stdout = std::io::stdout();
        stdout
            .write_all(&buffer[..count])
            .and_then(|()| stdout.flush())
            .context("standard output")?;
    }
}
