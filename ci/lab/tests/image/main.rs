//! The image that `image/build` has made, on bare servers.

mod console;
mod faults;
mod install;
mod live;
mod memory;
mod netboot;
mod update;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pindah_lab::bare::{BareServer, BareServerBuilder, Bus, Firmware, Medium};
use pindah_lab::{Lab, repository};

/// A machine shows the boot menu after 5 s, and its login prompt after 40; a loaded host may need
/// much longer.
const BOOT_LIMIT: Duration = Duration::from_secs(900);

/// An installation takes two minutes.
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);

/// A small disk.
const DISK_BYTES: u64 = 6 << 30;

/// What it takes to install `node1`.
const ANSWERS: &str = r#"
    host_name = "node1"
    end = "power-off"
    root.password = "a long password"
    cluster.mode = "new"
"#;
const PASSWORD: &str = "a long password";

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

/// Says how long something took, also where the output of tests is kept back.
fn tell(what: &str, start: Instant) {
    let seconds = start.elapsed().as_secs();
    let _ = writeln!(std::io::stderr(), "{what}: {seconds} s");
}

/// A new disk's image.
fn blank_disk(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.directory().join(name);
    File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    path
}

/// A machine with the ISO in its DVD drive.
fn with_dvd<'a>(lab: &'a Lab, name: &str, firmware: Firmware) -> BareServerBuilder<'a> {
    lab.bare_server(name, firmware).medium(Medium::Dvd, &iso())
}

/// Waits until an unattended installation is done and the machine off.
fn wait_until_installed(mut installer: BareServer) {
    installer
        .wait_for("node1 is installed", INSTALL_LIMIT)
        .unwrap();
    installer.wait_until_off(BOOT_LIMIT).unwrap();
}

/// Installs `node1` on a SATA disk by BIOS, and returns the machine that starts from that.
fn installed<'a>(lab: &'a Lab, disk: &Path) -> BareServerBuilder<'a> {
    let installer = with_dvd(lab, "installer", Firmware::Bios).disk(Bus::Sata, disk);
    let installer = installer.answers(ANSWERS).start().unwrap();
    let port = installer.port().clone();
    wait_until_installed(installer);
    let server = lab.bare_server("node1", Firmware::Bios);
    server.disk(Bus::Sata, disk).port(&port)
}

/// From the login prompt's answer through the menu to a shell.
fn take_shell(server: &mut BareServer, host: &str) {
    server.wait_for("Number:", BOOT_LIMIT).unwrap();
    server.type_text("4\r").unwrap();
    server
        .wait_for(&format!("root@{host}"), BOOT_LIMIT)
        .unwrap();
}

/// Logs in on `node1` when it has started.
fn log_in(server: &mut BareServer) {
    server.wait_for("node1 login:", BOOT_LIMIT).unwrap();
    server.type_text("root\r").unwrap();
    server.wait_for("Password:", BOOT_LIMIT).unwrap();
    server.type_text(&format!("{PASSWORD}\r")).unwrap();
    take_shell(server, "node1");
}

/// The cluster that the installer was told to begin is there, and the slot is one that works.
fn check_node(server: &mut BareServer) {
    let wait = "until pindah cluster show | grep -q 'majority *yes'; do sleep 0.5; done";
    server.run(wait).unwrap();
    no_unit_has_failed(server);
    let wait = "until grep -qx A_TRY=0 /boot/efi/grub/grubenv; do sleep 0.5; done";
    server.run(wait).unwrap();
    server
        .run("rauc status | grep -q 'Booted from.*A'")
        .unwrap();
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
