//! What else of the kernel a guest's devices and the sandbox use.

use std::io;

use super::{Finding, Host, Section};

pub(super) fn look(host: &Host) -> Section {
    Section {
        name: "Devices and sandbox",
        findings: vec![
            io_uring(host),
            tun(host),
            vhost_net(host),
            landlock(),
            seccomp(host),
            userfaultfd(host),
        ],
    }
}

fn io_uring(host: &Host) -> Finding {
    let name = "io_uring";
    let finding = match io_uring::IoUring::new(2) {
        Ok(_) => return Finding::good(name, "yes"),
        Err(error) => Finding::limited(
            name,
            error.to_string(),
            "raw disks do one request at a time for each queue: slower",
        ),
    };
    match host.number("proc/sys/kernel/io_uring_disabled") {
        Some(1 | 2) => finding.mend("sysctl kernel.io_uring_disabled=0"),
        _ => {
            finding.mend("use Linux 5.11 or newer; in a container, let its seccomp profile pass it")
        }
    }
}

fn tun(host: &Host) -> Finding {
    match host.open_device("dev/net/tun") {
        Ok(_) => Finding::good("tap devices", "yes"),
        Err(error) => Finding::limited(
            "tap devices",
            format!("/dev/net/tun: {error}"),
            "guests have no network",
        )
        .mend("modprobe tun, and run with the right to open it"),
    }
}

fn vhost_net(host: &Host) -> Finding {
    match host.open_device("dev/vhost-net") {
        Ok(_) => Finding::good("vhost-net", "yes"),
        Err(error) => Finding::limited(
            "vhost-net",
            format!("/dev/vhost-net: {error}"),
            "packets pass through the VMM: more CPU time for each",
        )
        .mend("modprobe vhost_net"),
    }
}

fn landlock() -> Finding {
    const VERSION: libc::c_uint = 1;
    let nothing: *const libc::c_void = std::ptr::null();
    // SAFETY: with this flag the call reads no attributes and answers the ABI's version (Linux
    // `Documentation/userspace-api/landlock.rst`).
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    if abi > 0 {
        return Finding::good("Landlock", format!("ABI {abi}"));
    }
    let error = io::Error::last_os_error();
    Finding::limited(
        "Landlock",
        error.to_string(),
        "one layer of the sandbox less: files are kept away by seccomp alone",
    )
    .mend("use Linux 5.13 or newer with lsm=landlock,…")
}

fn seccomp(host: &Host) -> Finding {
    match host.text("proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("kill_process") => Finding::good("seccomp", "yes"),
        _ => Finding::limited(
            "seccomp",
            "no filters",
            "the VMM runs without its main sandbox, and only with --seccomp off",
        ),
    }
}

fn userfaultfd(host: &Host) -> Finding {
    let value = match host.open_device("dev/userfaultfd") {
        Ok(_) => "yes".to_owned(),
        Err(_) => match host.number("proc/sys/vm/unprivileged_userfaultfd") {
            Some(_) => "for privileged callers".to_owned(),
            None => "not in this kernel".to_owned(),
        },
    };
    Finding::good("userfaultfd", value)
}
