use std::os::unix::fs::symlink;

use super::*;

/// Files of a machine, one a line: `PATH = CONTENT` or `PATH -> TARGET`; `…:` begins a file of
/// several lines, which are indented.
fn tree(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        if let Some((path, target)) = line.split_once(" -> ") {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
            continue;
        }
        let (path, content) = line.split_once(" = ").unwrap();
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content.replace("\\n", "\n")).unwrap();
    }
    root
}

const DESKTOP: &str = include_str!("../../tests/machines/desktop.tree");
const OLD_XEON: &str = include_str!("../../tests/machines/old-xeon.tree");
const XEON_OFF: &str = include_str!("../../tests/machines/xeon-switched-off.tree");

const NOW: u64 = 1_790_000_000;
const VMX: Cpuid = Cpuid {
    vmx: true,
    svm: false,
};
const SVM: Cpuid = Cpuid {
    vmx: false,
    svm: true,
};
const NEITHER: Cpuid = Cpuid {
    vmx: false,
    svm: false,
};

fn disk() -> (Disk, Smart) {
    let disk = Disk {
        path: "/dev/sda".to_owned(),
        size_bytes: 320 << 30,
        model: "LOGICAL VOLUME".to_owned(),
        ..Disk::default()
    };
    (disk, Smart::Silent)
}

fn facts<'a>(root: &'a Path, cpuid: Cpuid, kernel_log: &'a str) -> Facts<'a> {
    Facts {
        root,
        cpuid,
        kernel_log,
        now: NOW,
    }
}

fn look(text: &str, cpuid: Cpuid) -> Hardware {
    Hardware::look(facts(tree(text).path(), cpuid, ""), &[disk()])
}

fn texts(hardware: &Hardware, level: Level) -> Vec<String> {
    let findings = hardware.findings.iter().filter(|it| it.level == level);
    findings.map(ToString::to_string).collect()
}

#[test]
fn machine_that_has_everything_is_good() {
    let hardware = look(DESKTOP, VMX);
    assert_eq!(hardware.machine, "Gigabyte Technology Co., Ltd. B75M-D3H");
    assert_eq!(hardware.virtualization, Virtualization::On("VT-x"));
    assert_eq!(
        texts(&hardware, Level::Good),
        [
            "ok Virtualization: VT-x is there and switched on",
            "ok Memory: 3853 MiB",
            "ok Disk: /dev/sda (320.0 GiB, LOGICAL VOLUME), says nothing of its health",
            "ok Network: enp3s0 (50:e5:49:aa:bb:01, r8169, 1000 Mbit/s)",
            "ok Clock: 2026-09-21 (UTC)",
        ]
    );
    assert_eq!(hardware.findings.len(), 5);
}

#[test]
fn server_without_virtualization_is_told_what_it_is_good_for() {
    let hardware = look(OLD_XEON, NEITHER);
    assert!(!hardware.virtualization.runs_guests() && !hardware.is_bad());
    let [warning] = &*texts(&hardware, Level::Warning) else {
        panic!("{:?}", hardware.findings);
    };
    for part in [
        "Intel(R) Xeon(TM) CPU 3.20GHz has neither",
        "witness",
        "keep images",
        "watch",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    assert_eq!(hardware.links.len(), 2);
}

#[test]
fn switch_in_the_firmware_is_found_off_and_named() {
    // Linux has taken the flag away.
    let hardware = look(XEON_OFF, VMX);
    let warning = &texts(&hardware, Level::Warning)[0];
    assert!(
        warning.contains("VT-x is there but switched off"),
        "{warning}"
    );
    assert!(warning.contains("press F9 at start"), "{warning}");
    assert!(warning.contains("turn the power off once"), "{warning}");
}

#[test]
fn registers_and_kernel_log_tell_what_flags_do_not() {
    let flags = |flag: &str| format!("proc/cpuinfo = flags : fpu {flag}\n");
    let of_log = |text: &str, cpuid, log| Virtualization::of(facts(tree(text).path(), cpuid, log));
    let of = |text: &str, cpuid| of_log(text, cpuid, "");
    assert_eq!(of(&flags("vmx"), VMX), Virtualization::On("VT-x"));
    assert_eq!(of(&flags("svm"), SVM), Virtualization::On("AMD-V (SVM)"));
    let log = "[    5.1] kvm: disabled by bios";
    assert_eq!(of_log(&flags("vmx"), VMX, log), Virtualization::Off("VT-x"));
    assert_eq!(
        of_log(&flags("svm"), SVM, log),
        Virtualization::Off("AMD-V (SVM)")
    );
    for (value, expected) in [
        (LOCKED_OFF, Virtualization::Off("VT-x")),
        (LOCKED_ON, Virtualization::On("VT-x")),
        (0, Virtualization::On("VT-x")),
    ] {
        let root = tree(&flags("vmx"));
        write_msr(root.path(), 0x3a, value);
        assert_eq!(
            Virtualization::of(facts(root.path(), VMX, "")),
            expected,
            "{value}"
        );
    }
    let root = tree(&flags("svm"));
    write_msr(root.path(), 0xc001_0114, 0x10);
    assert_eq!(
        Virtualization::of(facts(root.path(), SVM, "")),
        Virtualization::Off("AMD-V (SVM)")
    );
    // A hypervisor's own device is good whatever the flags are.
    let device = flags("") + "dev/kvm = x\n";
    assert_eq!(of(&device, NEITHER), Virtualization::On("/dev/kvm"));
}

const LOCKED_OFF: u64 = 1;
const LOCKED_ON: u64 = 0b101;

/// The device is read at the register's number: so is a sparse file.
fn write_msr(root: &Path, register: u64, value: u64) {
    use std::os::unix::fs::FileExt as _;
    std::fs::create_dir_all(root.join("dev/cpu/0")).unwrap();
    let file = std::fs::File::create(root.join("dev/cpu/0/msr")).unwrap();
    file.write_all_at(&value.to_le_bytes(), register).unwrap();
}

#[test]
fn machine_without_anything_is_bad_and_says_what_to_plug_in() {
    let root = tree("proc/meminfo = MemTotal:         524288 kB\n");
    let hardware = Hardware::look(facts(root.path(), NEITHER, ""), &[]);
    assert!(hardware.is_bad());
    let bad = texts(&hardware, Level::Bad).join("\n");
    for part in [
        "512 MiB are too little",
        "NO Disk: none is seen",
        "NO Network: no card",
    ] {
        assert!(bad.contains(part), "{bad}");
    }
}

#[test]
fn links_say_speed_and_lack_of_cables() {
    let slow = DESKTOP.replace("enp3s0/speed = 1000", "enp3s0/speed = 10");
    assert!(texts(&look(&slow, VMX), Level::Warning)[0].contains("10 Mbit/s): slow"));
    let off = DESKTOP.replace("enp3s0/carrier = 1", "enp3s0/carrier = 0");
    assert!(texts(&look(&off, VMX), Level::Warning)[0].contains("no interface has a link"));
}

#[test]
fn worn_disk_is_told() {
    let (disk, _) = disk();
    let worn = [(disk, Smart::Bad("8 sectors replaced".to_owned()))];
    let hardware = Hardware::look(facts(tree(DESKTOP).path(), VMX, ""), &worn);
    let warning = &texts(&hardware, Level::Warning)[0];
    assert!(
        warning.ends_with("LOGICAL VOLUME): 8 sectors replaced; replace it soon"),
        "{warning}"
    );
}
