//! A running guest changes machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::page::Page;
use super::probe::events;
use crate::channel::Process;
use crate::guest::{Guest, GuestBuilder};
use crate::lab::Lab;
use crate::server::Server;

const LIMIT: Duration = Duration::from_secs(120);
/// Of the small office's better switch.
const LINK_BITS_PER_S: u64 = 1_000_000_000;
const HERE: &str = "10.8.0.1";
const THERE: &str = "10.8.0.2";
const PORT: u16 = 4444;
/// 50 MiB dirtied a second in 64 MiB, every page verified.
const COMMAND_LINE: &str = "ws_mib=64 rate_mib_s=50 verify=1 beat_ms=200";

pub(super) fn show(page: &Page) -> Result<()> {
    page.heading("A running guest changes machine: two networks, 1 Gbit/s between them");
    let (here, there) = (Lab::new("demo-here")?, Lab::new("demo-there")?);
    let addresses = [format!("{HERE}/24"), format!("{THERE}/24")];
    let addresses = [addresses[0].as_str(), addresses[1].as_str()];
    here.network()
        .join(there.network(), addresses, LINK_BITS_PER_S)?;
    let (first, second) = (here.host()?, there.host()?);

    let start = Instant::now();
    let mut guest = probe(&first, "leaving").start()?;
    wait_for_beats(&mut guest, 3)?;
    page.step(
        start,
        "a guest of 512 MiB at work: it writes 50 MiB/s and verifies what it reads",
    );

    let start = Instant::now();
    let keys = keys(&here, &first)?;
    let listen = format!("{THERE}:{PORT}");
    let mut arrived = probe(&second, "arriving").receive(&listen, &keys)?;
    page.step(
        start,
        "a machine of the same kind waits for it, with keys of its own",
    );

    let start = Instant::now();
    follow(page, guest.send(&listen, &keys)?)?;
    page.step(start, "moved, over TLS 1.3, while it ran");
    let left = guest.wait_end()?;
    if left.status != 5 {
        bail!("the source ended with {} instead of 5", left.status);
    }
    let (before, after) = (beats(&left.stdout), wait_for_beats(&mut arrived, 3)?);
    let last = before.last().context("no beat before the move")?;
    let first = after.first().context("no beat after the move")?;
    page.fact(
        "heartbeats",
        &format!(
            "number {} was the last there, {} the first here",
            last["seq"], first["seq"]
        ),
    );
    page.fact(
        "verified",
        &format!("{} pages, {} bad", first["checked"], first["bad"]),
    );
    // The longest since the beat before, which was there.
    let gap_us = first["gap_max_us"]
        .as_u64()
        .context("a beat without its longest gap")?;
    page.fact(
        "blackout",
        &format!("{:.2} ms, as the guest saw it", gap_us as f64 / 1e3),
    );
    Ok(())
}

fn probe<'a>(server: &'a Server, name: &str) -> GuestBuilder<'a> {
    let probe = server.program("pindah-probe");
    server.guest(name).memory_mib(512).configure(|config| {
        config.boot.kernel = Some(probe.into());
        config.boot.cmdline = COMMAND_LINE.to_string();
    })
}

/// Makes keys for both; they see one file system.
fn keys(lab: &Lab, server: &Server) -> Result<String> {
    let directory = lab.directory().join("keys").display().to_string();
    let vmm = server.program("pindah-vmm");
    server.check(&format!("{vmm} keys {directory} {HERE} {THERE}"))?;
    Ok(directory)
}

/// Waits for so many beats on its console.
fn wait_for_beats(guest: &mut Guest<'_>, count: usize) -> Result<Vec<Value>> {
    let process = guest.console().process();
    process.wait_for("beats", LIMIT, |output| {
        let beats = beats(output);
        (beats.len() >= count).then_some(beats)
    })
}

fn beats(output: &[u8]) -> Vec<Value> {
    events(output, "beat")
}

/// Shows what the client says while it says it.
fn follow(page: &Page, mut client: Process) -> Result<()> {
    let mut shown = 0;
    let mut show = |output: &[u8]| {
        let text = String::from_utf8_lossy(output);
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        for line in lines.skip(shown) {
            page.line(line.trim_end());
            shown += 1;
        }
    };
    while !client.has_ended()? {
        show(client.stdout());
        std::thread::sleep(Duration::from_millis(50));
    }
    show(client.stdout());
    client.wait(LIMIT)?.ok()?;
    Ok(())
}
