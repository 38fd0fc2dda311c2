//! Memory.

use std::path::Path;

use super::{Finding, Level};

/// Less than this and the system itself does not run, in KiB. Firmware and kernel keep a part of
/// what is plugged in.
const LEAST_KIB: u64 = 700 << 10;
/// Less than this and hardly a guest fits, in KiB.
const LITTLE_KIB: u64 = 1800 << 10;

pub(super) fn finding(root: &Path) -> Finding {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let Some(kib) = kib else {
        return Finding::new(Level::Warning, "Memory", "the kernel does not say how much");
    };
    let mib = kib >> 10;
    match kib {
        ..LEAST_KIB => {
            let text = format!("{mib} MiB are too little: plug in at least 1 GiB");
            Finding::new(Level::Bad, "Memory", text)
        }
        LEAST_KIB..LITTLE_KIB => {
            let text = format!(
                "{mib} MiB leave room for one or two small guests: 2 GiB or more \
                                are better"
            );
            Finding::new(Level::Warning, "Memory", text)
        }
        _ => Finding::new(Level::Good, "Memory", format!("{mib} MiB")),
    }
}
