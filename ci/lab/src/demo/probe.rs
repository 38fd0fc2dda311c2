//! The probe on this host's KVM.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::page::Page;
use crate::lab::Lab;

const LIMIT: Duration = Duration::from_secs(60);
/// 50 MiB dirtied a second in 64 MiB, every page verified; two seconds of it.
const COMMAND_LINE: &str =
    "ws_mib=64 rate_mib_s=50 verify=1 beat_ms=500 exit_after_ms=2200 exit_by=poweroff";

pub(super) fn show(page: &Page) -> Result<()> {
    page.heading("The probe, a bare-metal guest, on this host's KVM");
    let lab = Lab::new("demo-probe")?;
    let host = lab.host()?;
    let probe = host.program("pindah-probe");
    let start = Instant::now();
    let guest = host.guest("probe").memory_mib(128).configure(|config| {
        config.boot.kernel = Some(probe.into());
        config.boot.cmdline = COMMAND_LINE.to_string();
    });
    let mut guest = guest.start()?;
    let process = guest.console().process();
    process.wait_for("first byte", LIMIT, |output| {
        (!output.is_empty()).then_some(())
    })?;
    page.step(start, "first byte from the guest");
    process.wait_for("second beat", LIMIT, |output| {
        (events(output, "beat").len() > 1).then_some(())
    })?;
    page.step(start, "beating");
    let output = guest.wait_end()?.ok()?;
    page.step(start, "powered off by itself");
    let beats = events(&output.stdout, "beat");
    let last = beats.last().context("the probe has not beaten")?;
    page.fact("wrote", &format!("{} pages of 4 KiB", last["pages"]));
    page.fact(
        "verified",
        &format!("{} pages, {} bad", last["checked"], last["bad"]),
    );
    page.fact(
        "longest gap",
        &format!("{} µs between two steps", last["gap_max_total_us"]),
    );
    Ok(())
}

/// The probe's lines of one kind; it may be in the middle of its last one.
pub(super) fn events(output: &[u8], kind: &str) -> Vec<Value> {
    let lines = output.split(|byte| *byte == b'\n');
    let values = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    values.filter(|value| value["ev"] == kind).collect()
}
