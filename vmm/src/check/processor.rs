//! The processor: virtualization, features, clocks.

use std::collections::BTreeSet;

use super::{Finding, Host, Section};

/// Which half of the x86 world it comes from; each names things its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    Intel,
    Amd,
    Other,
}

impl Vendor {
    pub(super) fn of(host: &Host) -> Self {
        match host.field("proc/cpuinfo", "vendor_id").as_deref() {
            Some("GenuineIntel") => Self::Intel,
            Some("AuthenticAMD" | "HygonGenuine") => Self::Amd,
            _ => Self::Other,
        }
    }

    /// The switch in the firmware's set-up.
    pub(super) fn firmware_switch(self) -> &'static str {
        match self {
            Self::Intel => "\"Intel Virtualization Technology\" (VT-x)",
            Self::Amd => "\"SVM Mode\" (AMD-V)",
            Self::Other => "VT-x or SVM",
        }
    }

    /// The module that drives it.
    pub(super) fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
            Self::Other => "kvm_intel or kvm_amd",
        }
    }
}

/// The feature flags of the first CPU.
pub(super) fn flags(host: &Host) -> BTreeSet<String> {
    let flags = host.field("proc/cpuinfo", "flags").unwrap_or_default();
    flags.split_whitespace().map(str::to_owned).collect()
}

pub(super) fn look(host: &Host) -> Section {
    let flags = flags(host);
    let has = |flag: &str| flags.contains(flag);
    let mut findings = vec![model(host), virtualization(host, &flags)];
    if has("vmx") || has("svm") {
        findings.push(if has("ept") || has("npt") {
            Finding::good("nested paging", if has("ept") { "EPT" } else { "NPT" })
        } else {
            Finding::limited(
                "nested paging",
                "none",
                "every change of a guest's page tables is an exit: guests are slow",
            )
        });
        findings.push(nested(host));
    }
    findings.push(baseline(&flags));
    findings.push(clock(host, &flags));
    Section {
        name: "Processor",
        findings,
    }
}

fn model(host: &Host) -> Finding {
    let model = host.field("proc/cpuinfo", "model name");
    let text = host.text("proc/cpuinfo").unwrap_or_default();
    let count = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let model = model.unwrap_or_else(|| "unknown".to_owned());
    Finding::good("model", format!("{model}, {count} CPUs"))
}

fn virtualization(host: &Host, flags: &BTreeSet<String>) -> Finding {
    let name = "virtualization";
    if flags.contains("vmx") {
        return Finding::good(name, "VT-x");
    }
    if flags.contains("svm") {
        return Finding::good(name, "SVM");
    }
    let value = "the processor shows neither VT-x nor SVM";
    if host.exists("sys/module/kvm_pvm") {
        return Finding::limited(
            name,
            format!("{value}; KVM works without them (kvm_pvm)"),
            "guest kernels are emulated or must know pvm; most stock kernels do not boot",
        )
        .mend("use a host with VT-x or SVM for production");
    }
    let switch = Vendor::of(host).firmware_switch();
    let remedy = if flags.contains("hypervisor") {
        "this host is a virtual machine: let its hypervisor pass VT-x or SVM on (nested \
         virtualization)"
            .to_owned()
    } else {
        format!("switch on {switch} in the firmware's set-up")
    };
    Finding::limited(name, value, "KVM has nothing to work with").mend(remedy)
}

fn nested(host: &Host) -> Finding {
    let on = ["kvm_intel", "kvm_amd"].iter().any(|module| {
        let parameter = host.text(&format!("sys/module/{module}/parameters/nested"));
        matches!(parameter.as_deref(), Some("Y" | "1"))
    });
    let value = if on { "guests may run guests" } else { "off" };
    Finding::good("nested guests", value)
}

/// Flags as Linux names them for the levels of the psABI, those of a level below included.
const LEVELS: [(&str, &[&str]); 3] = [
    (
        "x86-64-v2",
        &["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"],
    ),
    (
        "x86-64-v3",
        &[
            "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave",
        ],
    ),
    (
        "x86-64-v4",
        &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
    ),
];

fn baseline(flags: &BTreeSet<String>) -> Finding {
    let mut level = "x86-64-v1";
    for (next, needed) in LEVELS {
        if !needed.iter().all(|flag| flags.contains(*flag)) {
            break;
        }
        level = next;
    }
    Finding::good("feature level", level)
}

fn clock(host: &Host, flags: &BTreeSet<String>) -> Finding {
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = host.text(path).unwrap_or_else(|| "unknown".to_owned());
    let stable = flags.contains("constant_tsc") && flags.contains("nonstop_tsc");
    let value = format!(
        "clocksource {source}, TSC {}",
        if stable { "constant" } else { "not constant" }
    );
    if stable
        && matches!(
            source.as_str(),
            "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page"
        )
    {
        Finding::good("clock", value)
    } else {
        Finding::limited(
            "clock",
            value,
            "reading the time costs guests an exit, or drifts between CPUs",
        )
    }
}
