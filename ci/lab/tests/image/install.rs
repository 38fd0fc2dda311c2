//! Unattended installations, and what starts from the disk then.

use std::time::Instant;

use pindah_lab::Lab;
use pindah_lab::bare::{Bus, Firmware, Medium};

use crate::{
    ANSWERS, BOOT_LIMIT, blank_disk, check_api, check_node, installed, iso, log_in, tell,
    wait_until_installed, with_dvd,
};

#[test]
#[ignore = "lab"]
fn server_that_was_installed_unattended_starts_as_the_cluster_that_was_asked_for() {
    let lab = Lab::new("image-install").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let start = Instant::now();
    let server = installed(&lab, &blank_disk(&lab, "disk.img"));
    tell(
        "started from DVD by BIOS, installed and switched off",
        start,
    );

    let start = Instant::now();
    let mut server = server.start().unwrap();
    log_in(&mut server);
    check_api(&lab, &mut server);
    check_node(&mut server);
    tell(
        "started from disk until the API and the cluster answer",
        start,
    );

    // The root stays as it is, and the log is there.
    server.run("! touch /usr/bin/x 2>/dev/null").unwrap();
    let log = server.run("cat /var/log/pindah-install.log").unwrap();
    assert!(log.contains("] Done"), "{log}");
}

#[test]
#[ignore = "lab"]
fn full_server_is_installed_and_starts_by_uefi_with_secure_boot() {
    let lab = Lab::new("image-install-uefi").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let disk = blank_disk(&lab, "disk.img");
    let installer = lab.bare_server("installer", Firmware::UefiSecureBoot);
    let installer = installer.medium(Medium::UsbStick, &iso());
    let installer = installer.disk(Bus::Virtio, &disk).memory_mib(3072);
    let installer = installer.answers(ANSWERS).start().unwrap();
    let port = installer.port().clone();
    wait_until_installed(installer);

    let server = lab.bare_server("node1", Firmware::UefiSecureBoot);
    let server = server.disk(Bus::Virtio, &disk).port(&port);
    let mut server = server.memory_mib(3072).start().unwrap();
    log_in(&mut server);
    check_api(&lab, &mut server);
    check_node(&mut server);
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let enabled = server.run(&format!("od -An -tu1 -j4 {variable}")).unwrap();
    assert_eq!(enabled.trim(), "1", "Secure Boot is off");
}

/// The study's second server: old, with a parallel disk, and without VT-x.
#[test]
#[ignore = "lab"]
fn full_server_without_virtualization_says_so_and_is_installed() {
    let lab = Lab::new("image-install-old").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let disk = blank_disk(&lab, "disk.img");
    let installer = with_dvd(&lab, "installer", Firmware::Bios).cpu("qemu64,-svm");
    let installer = installer.disk(Bus::Ide, &disk).answers(ANSWERS);
    let mut installer = installer.start().unwrap();
    installer.wait_for("witness", BOOT_LIMIT).unwrap();
    let port = installer.port().clone();
    wait_until_installed(installer);

    let server = lab.bare_server("node1", Firmware::Bios).cpu("qemu64,-svm");
    let mut server = server.disk(Bus::Ide, &disk).port(&port).start().unwrap();
    log_in(&mut server);
    check_api(&lab, &mut server);
    check_node(&mut server);
    server.run("! test -e /dev/kvm").unwrap();
}
