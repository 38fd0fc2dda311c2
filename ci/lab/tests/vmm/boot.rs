//! Unmodified kernels boot, see what they were given, and switch themselves off.

use pindah_lab::Flavour::{self, Cloud, Generic};
use pindah_vmm_api::DiskFormat;

use crate::host::{artifacts, copy, kernel, server};

/// Boots from initramfs alone and says what it sees.
fn boots(version: &str, flavour: Flavour, cpus: u8) {
    let kernel = kernel(version, flavour);
    let name = format!("boot-{version}-{flavour}-{cpus}");
    let server = server();
    let guest = server.guest(&name).kernel(artifacts(), &kernel).unwrap();
    let mut guest = guest.cpus(cpus).start().unwrap();
    guest.wait_ready().unwrap();
    assert_eq!(guest.check("uname -r").unwrap(), kernel.release);
    assert_eq!(guest.check("nproc").unwrap(), cpus.to_string());
    let clock = guest.check("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert_eq!(clock.unwrap(), "kvm-clock");
    guest.power_off().unwrap();
}

/// Boots with its root on a disk, writes to it, and finds that again after a second boot.
fn boots_from_disk(version: &str, flavour: Flavour, cpus: u8, format: DiskFormat) {
    let kernel = kernel(version, flavour);
    let name = format!("disk-{version}-{flavour}-{cpus}-{format:?}").to_lowercase();
    let server = server();
    let image = artifacts().guest_disk().unwrap();
    let mut disk = copy(&server, &image, &format!("{name}.raw"));
    if format == DiskFormat::Qcow2 {
        let qcow2 = format!("/root/{name}.qcow2");
        server
            .check(&format!("qemu-img convert -f raw -O qcow2 {disk} {qcow2}"))
            .unwrap();
        disk = qcow2;
    }
    let start = || {
        let guest = server.guest(&name).kernel(artifacts(), &kernel).unwrap();
        let guest = guest
            .cpus(cpus)
            .cmdline("root=/dev/vda rw")
            .disk(&disk, format);
        let mut guest = guest.start().unwrap();
        guest.wait_ready().unwrap();
        guest
    };
    let mut guest = start();
    assert!(
        guest
            .check("mount")
            .unwrap()
            .contains("/dev/vda on / type ext4")
    );
    let write = "head -c 8000000 /dev/urandom >/file && sync && md5sum /file";
    let sum = guest.check(write).unwrap();
    guest.check("mount -o remount,ro /").unwrap();
    guest.power_off().unwrap();

    let mut guest = start();
    assert_eq!(guest.check("md5sum /file").unwrap(), sum);
    guest.power_off().unwrap();
    server.check(&format!("rm -f /root/{name}.*")).unwrap();
}

macro_rules! cases {
    ($($name:ident: $function:ident($($argument:expr),*);)*) => {
        $(
            #[test]
            #[ignore = "lab"]
            fn $name() {
                $function($($argument),*);
            }
        )*
    };
}

cases! {
    kernel_6_1_generic_with_1_cpu: boots("6.1", Generic, 1);
    kernel_6_12_cloud_with_2_cpus: boots("6.12", Cloud, 2);
    full_kernel_6_1_generic_with_2_cpus: boots("6.1", Generic, 2);
    full_kernel_6_1_cloud_with_1_cpu: boots("6.1", Cloud, 1);
    full_kernel_6_1_cloud_with_2_cpus: boots("6.1", Cloud, 2);
    full_kernel_6_12_generic_with_1_cpu: boots("6.12", Generic, 1);
    full_kernel_6_12_generic_with_2_cpus: boots("6.12", Generic, 2);
    full_kernel_6_12_cloud_with_1_cpu: boots("6.12", Cloud, 1);

    raw_disk_under_6_12_generic: boots_from_disk("6.12", Generic, 2, DiskFormat::Raw);
    qcow2_disk_under_6_1_cloud: boots_from_disk("6.1", Cloud, 1, DiskFormat::Qcow2);
    full_raw_disk_under_6_1_generic: boots_from_disk("6.1", Generic, 1, DiskFormat::Raw);
    full_raw_disk_under_6_1_cloud: boots_from_disk("6.1", Cloud, 2, DiskFormat::Raw);
    full_raw_disk_under_6_12_cloud: boots_from_disk("6.12", Cloud, 1, DiskFormat::Raw);
    full_qcow2_disk_under_6_1_generic: boots_from_disk("6.1", Generic, 2, DiskFormat::Qcow2);
    full_qcow2_disk_under_6_12_generic: boots_from_disk("6.12", Generic, 1, DiskFormat::Qcow2);
    full_qcow2_disk_under_6_12_cloud: boots_from_disk("6.12", Cloud, 2, DiskFormat::Qcow2);
}
