//! What goes wrong while a server is installed and first started.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use pindah_lab::Lab;
use pindah_lab::bare::{Bus, Firmware, Medium};

use crate::{
    ANSWERS, BOOT_LIMIT, INSTALL_LIMIT, blank_disk, check_api, check_node, installed, iso, log_in,
    wait_until_installed, with_dvd,
};

#[test]
#[ignore = "lab"]
fn full_server_that_lost_power_while_it_was_installed_and_first_started_comes_up() {
    let lab = Lab::new("image-power").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let disk = blank_disk(&lab, "disk.img");
    let start = |name: &str| {
        let installer = with_dvd(&lab, name, Firmware::Bios).disk(Bus::Sata, &disk);
        installer.answers(ANSWERS).start().unwrap()
    };
    // In the middle of the copy, and of the file systems: the disk is blank then, and is installed
    // on without being asked for.
    for (number, moment) in ["30 %", "Making the state partition"].iter().enumerate() {
        let mut installer = start(&format!("cut{number}"));
        installer.wait_for(moment, INSTALL_LIMIT).unwrap();
        installer.kill();
    }
    let server = installed(&lab, &disk);
    let mut server = server.start().unwrap();
    let port = server.port().clone();
    // The state is being made, and the agent has its first start.
    server.wait_for("node1 login:", BOOT_LIMIT).unwrap();
    server.kill();

    let server = lab.bare_server("again", Firmware::Bios).port(&port);
    let mut server = server.disk(Bus::Sata, &disk).start().unwrap();
    log_in(&mut server);
    check_api(&lab, &mut server);
    check_node(&mut server);
}

#[test]
#[ignore = "lab"]
fn full_installer_says_what_is_wrong_with_answers_and_writes_nothing() {
    let lab = Lab::new("image-mistakes").unwrap();
    let disk = blank_disk(&lab, "disk.img");
    let answers = "host_name = 'Node 1'\nroot.password = 'short'\nnetwork.adress = '10.0.0.1/24'\n";
    let installer = with_dvd(&lab, "installer", Firmware::Bios).disk(Bus::Sata, &disk);
    let mut installer = installer.answers(answers).start().unwrap();
    for shown in [
        "THE INSTALLATION HAS STOPPED",
        "adress",
        "Press Enter to go on by hand",
    ] {
        installer.wait_for(shown, BOOT_LIMIT).unwrap();
    }
    installer.type_text("\r").unwrap();
    installer.wait_for("This machine", BOOT_LIMIT).unwrap();
    assert!(is_blank(&disk));
}

#[test]
#[ignore = "lab"]
fn full_medium_with_a_wrong_byte_is_not_installed() {
    let lab = Lab::new("image-flipped").unwrap();
    let copy = lab.directory().join("flipped.iso");
    std::fs::copy(iso(), &copy).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&copy)
        .unwrap();
    // In the root's files: it is by far the largest part.
    let place = file.metadata().unwrap().len() * 3 / 4;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();

    let disk = blank_disk(&lab, "disk.img");
    let installer = lab.bare_server("installer", Firmware::Bios);
    let installer = installer.medium(Medium::Dvd, &copy).disk(Bus::Sata, &disk);
    let mut installer = installer.answers(ANSWERS).start().unwrap();
    let shown = "is damaged, its SHA-256 is not the published one: write the medium again";
    installer.wait_for(shown, INSTALL_LIMIT).unwrap();
    assert!(!has_boot_code(&disk));
}

#[test]
#[ignore = "lab"]
fn full_second_disk_with_another_pindah_is_left_alone() {
    let lab = Lab::new("image-second").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let (first, second) = (
        blank_disk(&lab, "first.img"),
        blank_disk(&lab, "second.img"),
    );
    drop(installed(&lab, &second));

    // Of two disks the blank one must be named; the other one is refused.
    let named = |serial: &str| format!("{ANSWERS}\ndisk.serial = '{serial}'\n");
    let installer = |name: &str, answers: &str| {
        let installer = with_dvd(&lab, name, Firmware::Bios).disk(Bus::Sata, &first);
        let installer = installer.disk(Bus::Sata, &second).answers(answers);
        installer.start().unwrap()
    };
    let mut refused = installer("refused", &named("DISK2"));
    let shown = "THE INSTALLATION HAS STOPPED";
    refused.wait_for(shown, BOOT_LIMIT).unwrap();
    refused.wait_for("pindah-state", BOOT_LIMIT).unwrap();
    drop(refused);
    let installer = installer("both", &named("DISK1"));
    let port = installer.port().clone();
    wait_until_installed(installer);

    // Whatever lies on the other one, the roots and the state are those of the disk that starts.
    let server = lab.bare_server("node1", Firmware::Bios).port(&port);
    let server = server.disk(Bus::Sata, &first).disk(Bus::Sata, &second);
    let mut server = server.start().unwrap();
    log_in(&mut server);
    check_api(&lab, &mut server);
    check_node(&mut server);
    let device = "$(readlink -f /run/pindah/disk/state)";
    server
        .run(&format!("findmnt -no SOURCE /state | grep -qx {device}"))
        .unwrap();
    let disk = server.run(&format!("lsblk -no PKNAME {device}")).unwrap();
    let serial = format!("lsblk -dno SERIAL /dev/{}", disk.trim());
    assert_eq!(server.run(&serial).unwrap(), "DISK1");
}

fn is_blank(disk: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(disk).unwrap().blocks() == 0
}

fn has_boot_code(disk: &std::path::Path) -> bool {
    let mut sector = [0; 512];
    let file = std::fs::File::open(disk).unwrap();
    file.read_exact_at(&mut sector, 0).unwrap();
    sector.iter().any(|byte| *byte != 0)
}
