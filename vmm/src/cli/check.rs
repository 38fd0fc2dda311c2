//! `pindah-vmm check`.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use clap::Args;
use pindah_vmm::check::{Host, Report};
use pindah_vmm::vm::machine::ExitReason;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints what this host offers. The exit code says whether guests can run.
pub fn check(arguments: &CheckArguments) -> anyhow::Result<u8> {
    let report = Report::gather(&Host::default());
    let mut stdout = std::io::stdout();
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).context("cannot be shown")? + "\n"
    } else {
        report.render(stdout.is_terminal())
    };
    stdout
        .write_all(text.as_bytes())
        .context("standard output")?;
    Ok(if report.usable {
        0
    } else {
        ExitReason::HostError.code()
    })
}
