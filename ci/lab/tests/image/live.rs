//! The live system: what is there without any disk.

use pindah_lab::Lab;
use pindah_lab::bare::{BareServer, Firmware, Medium};

use crate::{BOOT_LIMIT, check_api, iso, no_unit_has_failed, take_shell};

/// Takes the entry of the boot menu that installs nothing, and logs in.
fn start_live(lab: &Lab, firmware: Firmware, medium: Medium) -> BareServer {
    let server = lab.bare_server("live", firmware).medium(medium, &iso());
    let mut server = server.start().unwrap();
    server.wait_for("Try Pindah", BOOT_LIMIT).unwrap();
    server.type_text("\x1b[B\r").unwrap();
    server.wait_for("pindah login:", BOOT_LIMIT).unwrap();
    server.type_text("root\r").unwrap();
    take_shell(&mut server, "pindah");
    server
}

#[test]
#[ignore = "lab"]
fn live_system_from_dvd_by_bios_serves_the_api_and_little_else() {
    let lab = Lab::new("image-bios").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let mut server = start_live(&lab, Firmware::Bios, Medium::Dvd);
    check_api(&lab, &mut server);

    no_unit_has_failed(&mut server);
    server.run("test -c /dev/kvm && pindah-vmm check").unwrap();

    // Not by password, though root has none; and nothing listens for others but what is meant to.
    let address = server.port().address.clone();
    let ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null";
    let refused = lab.network().run(&format!("{ssh} root@{address} true"));
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("Permission denied (publickey)"),
        "{refused}"
    );
    let listening = server
        .run("ss -Hltn | awk '{ print $4 }' | grep -v -e '^127' -e '^\\[::1\\]' -e ':22$' -e ':748[0-3]$' || true")
        .unwrap();
    // Guests on the node's own network ask it for names.
    let for_guests = |line: &str| line == "10.87.0.1:53" || line.ends_with("%pindah0:53");
    let others: Vec<&str> = listening.lines().filter(|line| !for_guests(line)).collect();
    assert!(others.is_empty(), "{listening}");
}

#[test]
#[ignore = "lab"]
fn live_system_from_stick_by_uefi_with_secure_boot_serves_the_api() {
    let lab = Lab::new("image-uefi").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let mut server = start_live(&lab, Firmware::UefiSecureBoot, Medium::UsbStick);
    check_api(&lab, &mut server);

    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let enabled = server.run(&format!("od -An -tu1 -j4 {variable}")).unwrap();
    assert_eq!(enabled.trim(), "1", "Secure Boot is off");
}
