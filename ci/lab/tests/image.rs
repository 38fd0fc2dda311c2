//! The image that `image/build` has made, on bare servers.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use pindah_lab::bare::{BareServer, Firmware, Medium};
use pindah_lab::{Lab, repository};

/// A machine shows the boot menu after 5 s, and its login prompt after 40; a loaded host may need
/// much longer.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// An installation takes two minutes.
const INSTALL_LIMIT: Duration = Duration::from_secs(900);

/// A small disk.
const DISK_BYTES: u64 = 6 << 30;

/// The only ISO in `image/out`.
fn iso() -> PathBuf {
    let directory = repository().join("image/out");
    let entries = std::fs::read_dir(&directory).expect("run image/build first");
    let isos: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "iso"))
        .collect();
    let [iso] = isos.as_slice() else {
        panic!("{} should have one ISO: {isos:?}", directory.display());
    };
    iso.clone()
}

/// Takes the entry of the boot menu that installs nothing, and logs in.
fn start_live(lab: &Lab, firmware: Firmware, medium: Medium) -> BareServer {
    let server = lab.bare_server("live", firmware).medium(medium, &iso());
    let mut server = server.start().unwrap();
    server.wait_for("Try Pindah", BOOT_LIMIT).unwrap();
    server.type_text("\x1b[B\r").unwrap();
    server.wait_for("pindah login:", BOOT_LIMIT).unwrap();
    server.type_text("root\r").unwrap();
    server.wait_for("root@pindah", BOOT_LIMIT).unwrap();
    server
}

fn no_unit_has_failed(server: &mut BareServer) {
    let wait =
        "until systemctl is-system-running | grep -qE 'running|degraded'; do sleep 0.5; done";
    server.run(wait).unwrap();
    let failed = server
        .run("systemctl list-units --failed --no-legend --no-pager --plain")
        .unwrap();
    assert_eq!(failed, "");
}

/// The agent answers on the network with the certificate whose fingerprint the console shows.
fn check_api(lab: &Lab, server: &mut BareServer) {
    let address = server.port().address.clone();
    let wait = "until systemctl -q is-active pindahd; do sleep 0.5; done";
    server.run(wait).unwrap();
    let status = "curl -sk --retry 20 --retry-all-errors --max-time 30 -o /dev/null \
                  -w '%{http_code}'";
    let answer = lab
        .network()
        .run(&format!("{status} https://{address}:7480/api/v1/guests"));
    assert_eq!(answer.unwrap(), "401", "who has no token is told so");

    let wait = "until grep -q 'agent *running' /run/issue.d/pindah.issue; do sleep 0.5; done";
    server.run(wait).unwrap();
    let shown = server.run("cat /run/issue.d/pindah.issue").unwrap();
    assert!(
        shown.contains(&format!("https://{address}:7480")),
        "{shown}"
    );
    let authority = format!(
        "openssl s_client -connect {address}:7480 -showcerts </dev/null 2>/dev/null | \
         awk '/BEGIN CERT/ {{ last = \"\" }} {{ last = last $0 \"\\n\" }} END {{ printf \"%s\", last }}' | \
         openssl x509 -outform DER | sha256sum | cut -d' ' -f1"
    );
    let fingerprint = lab.network().run(&authority).unwrap();
    assert!(
        shown.contains(fingerprint.trim()),
        "{shown}\nserved: {fingerprint}"
    );
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

#[test]
#[ignore = "lab"]
fn full_server_that_was_installed_unattended_starts_as_the_cluster_that_was_asked_for() {
    const ANSWERS: &str = r#"
        host_name = "node1"
        end = "power-off"
        root.password = "a long password"
        cluster.mode = "new"
    "#;
    let lab = Lab::new("image-install").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let disk = lab.directory().join("disk.img");
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();

    let installer = lab.bare_server("installer", Firmware::Bios);
    let installer = installer.medium(Medium::Dvd, &iso()).disk(&disk);
    let mut installer = installer.answers(ANSWERS).start().unwrap();
    installer
        .wait_for("node1 is installed", INSTALL_LIMIT)
        .unwrap();
    installer.wait_until_off(BOOT_LIMIT).unwrap();
    drop(installer);

    let server = lab.bare_server("node1", Firmware::Bios).disk(&disk);
    let mut server = server.start().unwrap();
    server.wait_for("node1 login:", BOOT_LIMIT).unwrap();
    server.type_text("root\r").unwrap();
    server.wait_for("Password:", BOOT_LIMIT).unwrap();
    server.type_text("a long password\r").unwrap();
    server.wait_for("root@node1", BOOT_LIMIT).unwrap();
    check_api(&lab, &mut server);
    let wait = "until pindah cluster show | grep -q 'majority *yes'; do sleep 0.5; done";
    server.run(wait).unwrap();
    no_unit_has_failed(&mut server);

    // The slot has come up, so it is started again; the root stays as it is, and the log is there.
    let slot = "grep -qx A_TRY=0 /boot/efi/grub/grubenv && rauc status | grep -q 'Booted from.*A'";
    server.run(slot).unwrap();
    server.run("! touch /usr/bin/x 2>/dev/null").unwrap();
    let log = server.run("cat /var/log/pindah-install.log").unwrap();
    assert!(log.contains("Making the state partition"), "{log}");
}
