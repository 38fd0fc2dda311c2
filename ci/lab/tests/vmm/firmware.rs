//! An ordinary disk image, started by its own boot loader through SeaBIOS.

use pindah_vmm_api::DiskFormat;

use crate::host::{artifacts, copy, server};

#[test]
#[ignore = "lab"]
fn qcow2_by_mmdebstrap_and_grub_boots_through_seabios() {
    let server = server();
    let disk = copy(&server, &artifacts().boot_disk().unwrap(), "firmware.qcow2");
    let guest = server.guest("firmware").cpus(2).memory_mib(512);
    let mut guest = guest.disk(&disk, DiskFormat::Qcow2).start().unwrap();
    guest.wait_ready().unwrap();
    assert_eq!(guest.check("cat /etc/hostname").unwrap(), "boot");
    assert_eq!(
        guest.check("systemctl is-system-running --wait").unwrap(),
        "running"
    );
    // systemd-logind hears the button and shuts everything down in order.
    guest.api("POST", "/vm/power-button", None).unwrap();
    guest.wait_end().unwrap().ok().unwrap();
    server.check(&format!("rm -f {disk}")).unwrap();
}
