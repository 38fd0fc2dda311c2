//! Debian's SeaBIOS on the host's KVM: a disk's boot sector runs, reads the disk and prints by
//! the BIOS, resets the machine, and switches it off when it runs for the second time.

use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use pindah_vmm::boot::DEFAULT_FIRMWARE;
use pindah_vmm::config::Config;
use pindah_vmm::vm::Vm;
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::resources::Resources;
use pindah_vmm_api::Initiator;

/// SeaBIOS takes 13 s where KVM emulates all of ring 0, twice, on a host that does other things.
const DEADLINE: Duration = Duration::from_secs(300);

/// Loaded to 0x7C00, in real mode, with the disk's number in `dl`.
#[rustfmt::skip]
const BOOT_SECTOR: &[u8] = &[
    0x31, 0xc0,                         // 00  xor  ax, ax
    0x8e, 0xd8,                         // 02  mov  ds, ax
    0x8e, 0xd0,                         // 04  mov  ss, ax
    0xbc, 0x00, 0x7c,                   // 06  mov  sp, 0x7c00
    0xfb,                               // 09  sti
    0xbe, 0x45, 0x7c,                   // 0a  mov  si, packet
    0xb4, 0x42,                         // 0d  mov  ah, 0x42        extended read
    0xcd, 0x13,                         // 0f  int  0x13
    0x72, 0x26,                         // 11  jc   stop
    0xbe, 0x00, 0x80,                   // 13  mov  si, 0x8000
    0xac,                               // 16  next: lodsb
    0x84, 0xc0,                         // 17  test al, al
    0x74, 0x0b,                         // 19  jz   printed
    0xb4, 0x0e,                         // 1b  mov  ah, 0x0e        teletype output
    0xbb, 0x07, 0x00,                   // 1d  mov  bx, 7
    0x56,                               // 20  push si
    0xcd, 0x10,                         // 21  int  0x10
    0x5e,                               // 23  pop  si
    0xeb, 0xf0,                         // 24  jmp  next
    0xb0, 0x40,                         // 26  printed: mov al, 0x40
    0xe6, 0x70,                         // 28  out  0x70, al        CMOS memory, 0 at first
    0xe4, 0x71,                         // 2a  in   al, 0x71
    0x84, 0xc0,                         // 2c  test al, al
    0x75, 0x0c,                         // 2e  jnz  off
    0x40,                               // 30  inc  ax
    0xe6, 0x71,                         // 31  out  0x71, al
    0xba, 0xf9, 0x0c,                   // 33  mov  dx, 0xcf9       reset control
    0xb0, 0x06,                         // 36  mov  al, 6
    0xee,                               // 38  out  dx, al
    0xf4,                               // 39  stop: hlt
    0xeb, 0xfd,                         // 3a  jmp  stop
    0xba, 0x04, 0x06,                   // 3c  off: mov dx, 0x604   PM1_CNT
    0xb8, 0x00, 0x20,                   // 3f  mov  ax, 0x2000      SLP_EN, S5
    0xef,                               // 42  out  dx, ax
    0xeb, 0xf4,                         // 43  jmp  stop
    0x10, 0x00, 0x01, 0x00,             // 45  packet: its size, one sector
    0x00, 0x80, 0x00, 0x00,             // 49  to 0:0x8000
    0x01, 0, 0, 0, 0, 0, 0, 0,          // 4d  from sector 1
];

const MESSAGE: &str = "sector one says hello";

fn disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..BOOT_SECTOR.len()].copy_from_slice(BOOT_SECTOR);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[512..512 + MESSAGE.len()].copy_from_slice(MESSAGE.as_bytes());
    disk
}

/// Whether the test can run here; says so if not.
fn can_run() -> bool {
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = opened {
        eprintln!("skipped: /dev/kvm does not open: {error}");
        return false;
    }
    let firmware = Path::new(DEFAULT_FIRMWARE).exists();
    if !firmware {
        eprintln!("skipped: {DEFAULT_FIRMWARE} is not installed");
    }
    firmware
}

#[test]
fn boot_sector_runs_again_after_a_reset_and_switches_off() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("disk"), disk()).unwrap();
    let config = format!(
        "serial = {{ file = '{}' }}\nmemory = {{ size_mib = 64 }}\n\
         [[disks]]\npath = '{}'\nformat = \"raw\"\ncache = \"buffered\"\n",
        path("serial").display(),
        path("disk").display(),
    );
    fs::write(path("guest.toml"), config).unwrap();

    let config = Config::load(&path("guest.toml")).unwrap();
    let resources = Resources::open(&config).unwrap();
    let vm = Vm::build(&config, resources).unwrap();
    vm.boot().unwrap();
    let (sender, ended) = channel();
    thread::spawn(move || {
        let _ = sender.send(vm.run());
    });
    let reason = ended.recv_timeout(DEADLINE);

    let serial = fs::read(path("serial")).unwrap();
    let serial = String::from_utf8_lossy(&serial);
    assert_eq!(
        reason,
        Ok(ExitReason::ShutDown(Initiator::Guest)),
        "{serial}"
    );
    assert_eq!(serial.matches("SeaBIOS (version").count(), 2, "{serial}");
    assert_eq!(serial.matches(MESSAGE).count(), 2, "{serial}");
}
