//! Memory and what stands behind guest RAM.

use super::{Finding, Host, Section};

pub(super) fn look(host: &Host) -> Section {
    let mut findings = vec![amount(host), transparent(host)];
    for name in host.names("sys/kernel/mm/hugepages") {
        findings.extend(reserved(host, &name));
    }
    findings.push(ksm(host));
    Section {
        name: "Memory",
        findings,
    }
}

fn mib(host: &Host, key: &str) -> Option<u64> {
    let value = host.field("proc/meminfo", key)?;
    let kib: u64 = value.strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

fn amount(host: &Host) -> Finding {
    match (mib(host, "MemTotal"), mib(host, "MemAvailable")) {
        (Some(total), Some(available)) => {
            Finding::good("RAM", format!("{total} MiB, {available} MiB available"))
        }
        _ => Finding::limited("RAM", "unknown", "/proc/meminfo cannot be read"),
    }
}

fn transparent(host: &Host) -> Finding {
    let name = "transparent huge pages";
    let modes = host.text("sys/kernel/mm/transparent_hugepage/enabled");
    let mode = modes.as_deref().and_then(|modes| {
        let (_, rest) = modes.split_once('[')?;
        rest.split_once(']').map(|(mode, _)| mode)
    });
    match mode {
        Some(mode @ ("always" | "madvise")) => Finding::good(name, mode),
        mode => Finding::limited(
            name,
            mode.unwrap_or("not in this kernel"),
            "guests miss the TLB more often: 5 to 20 % slower with much memory",
        )
        .mend("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
    }
}

/// `name` is `hugepages-2048kB`.
fn reserved(host: &Host, name: &str) -> Option<Finding> {
    let kib: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    let count = |file| host.number(&format!("sys/kernel/mm/hugepages/{name}/{file}"));
    let (total, free) = (count("nr_hugepages")?, count("free_hugepages")?);
    let size = match kib {
        1_048_576.. => format!("{} GiB pages", kib >> 20),
        _ => format!("{} MiB pages", kib >> 10),
    };
    Some(Finding::good(
        size,
        format!("{total} reserved, {free} free"),
    ))
}

fn ksm(host: &Host) -> Finding {
    let value = match host.number("sys/kernel/mm/ksm/run") {
        Some(1) => {
            let sharing = host.number("sys/kernel/mm/ksm/pages_sharing").unwrap_or(0);
            format!("on, saves {} MiB", sharing >> 8)
        }
        Some(_) => "off".to_owned(),
        None => "not in this kernel".to_owned(),
    };
    Finding::good("KSM", value)
}
