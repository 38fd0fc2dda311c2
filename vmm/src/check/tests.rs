use std::fs;

use super::*;

struct FakeHost {
    directory: tempfile::TempDir,
}

impl FakeHost {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Self { directory }
    }

    fn report(&self) -> Report {
        Report::gather(&Host::at(self.directory.path()))
    }

    fn finding(&self, name: &str) -> Finding {
        let sections = self.report().sections;
        let mut findings = sections.into_iter().flat_map(|section| section.findings);
        findings.find(|finding| finding.name == name).unwrap()
    }
}

const INTEL: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU\n\
    flags\t\t: fpu vmx ept constant_tsc nonstop_tsc cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3\n\
    \nprocessor\t: 1\nvendor_id\t: GenuineIntel\n";

#[test]
fn processor_is_read_from_cpuinfo_and_modules() {
    let host = FakeHost::new(&[
        ("proc/cpuinfo", INTEL),
        ("sys/module/kvm_intel/parameters/nested", "Y\n"),
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "tsc\n",
        ),
    ]);
    assert_eq!(host.finding("model").value, "A CPU, 2 CPUs");
    assert_eq!(host.finding("virtualization").value, "VT-x");
    assert_eq!(host.finding("nested paging").value, "EPT");
    assert_eq!(host.finding("nested guests").value, "guests may run guests");
    assert_eq!(host.finding("feature level").value, "x86-64-v2");
    let clock = host.finding("clock");
    assert_eq!(
        (clock.level, clock.value.as_str()),
        (Level::Good, "clocksource tsc, TSC constant")
    );
}

#[test]
fn missing_virtualization_says_where_to_switch_it_on() {
    for (vendor, flags, expected) in [
        ("GenuineIntel", "fpu", "Intel Virtualization Technology"),
        ("AuthenticAMD", "fpu", "SVM Mode"),
        (
            "AuthenticAMD",
            "fpu hypervisor",
            "this host is a virtual machine",
        ),
    ] {
        let cpuinfo = format!("vendor_id : {vendor}\nflags : {flags}\n");
        let host = FakeHost::new(&[("proc/cpuinfo", &cpuinfo)]);
        let remedy = host.finding("virtualization").remedy.unwrap();
        assert!(remedy.contains(expected), "{remedy}");
        let kvm = host.finding("/dev/kvm");
        assert_eq!(kvm.level, Level::Fatal);
        assert!(!host.report().usable);
    }
    let able = FakeHost::new(&[("proc/cpuinfo", INTEL)]).finding("/dev/kvm");
    let remedy = able.remedy.unwrap();
    assert!(
        remedy.starts_with("load the module: modprobe kvm_intel"),
        "{remedy}"
    );
}

#[test]
fn device_that_is_not_kvm_is_fatal() {
    let host = FakeHost::new(&[("dev/kvm", "")]);
    let api = host.finding("API");
    assert_eq!(api.level, Level::Fatal, "{api:?}");
}

#[test]
fn memory_is_read_with_its_huge_pages() {
    let host = FakeHost::new(&[
        (
            "proc/meminfo",
            "MemTotal:       2097152 kB\nMemAvailable:   1048576 kB\n",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always madvise [never]",
        ),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8"),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "3",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
            "1",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
            "0",
        ),
        ("sys/kernel/mm/ksm/run", "1"),
        ("sys/kernel/mm/ksm/pages_sharing", "2560"),
    ]);
    assert_eq!(host.finding("RAM").value, "2048 MiB, 1024 MiB available");
    assert_eq!(host.finding("transparent huge pages").level, Level::Limited);
    assert_eq!(host.finding("2 MiB pages").value, "8 reserved, 3 free");
    assert_eq!(host.finding("1 GiB pages").value, "1 reserved, 0 free");
    assert_eq!(host.finding("KSM").value, "on, saves 10 MiB");
}

#[test]
fn empty_host_and_this_host_have_a_report_of_80_columns() {
    for report in [
        FakeHost::new(&[]).report(),
        Report::gather(&Host::default()),
    ] {
        let text = report.render(false);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(!text.contains('\x1b'));
        assert!(report.render(true).contains("\x1b[1mProcessor\x1b[0m"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["usable"], report.usable);
        assert_eq!(json["sections"][1]["name"], "KVM");
    }
}

#[test]
fn limited_and_fatal_findings_say_what_they_cost() {
    let report = FakeHost::new(&[]).report();
    for finding in report.sections.iter().flat_map(|section| &section.findings) {
        assert_eq!(
            finding.cost.is_some(),
            finding.level != Level::Good,
            "{finding:?}"
        );
    }
}
