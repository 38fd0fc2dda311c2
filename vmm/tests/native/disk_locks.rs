//! A disk that fails, and whose image's locks are lost with it: as a NAS forgets those of a client
//! that it has not heard of for longer than its lease.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;

use super::api_client::request;
use super::harness::{DEADLINE, Guest, Setup, kvm_opens};

const VM: &str = "/api/v1/vm";
const SIZE: u64 = 16 << 20;

fn post(guest: &Guest, action: &str) -> (u16, Value) {
    request(&guest.path("api"), "POST", &format!("{VM}/{action}"), None)
}

fn wait_until(guest: &Guest, what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !reached() {
        if Instant::now() > end {
            guest.fail(what);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn info(guest: &Guest) -> Value {
    request(&guest.path("api"), "GET", VM, None).1
}

fn bytes_read(guest: &Guest) -> u64 {
    let (_, metrics) = request(&guest.path("api"), "GET", "/api/v1/metrics", None);
    metrics["disks"][0]["read"]["bytes"].as_u64().unwrap()
}

/// The open file that a process has of the image, with all that belongs to it.
fn open_file_of(process: u32, image: &Path) -> OwnedFd {
    let process = i32::try_from(process).unwrap();
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let of_image = entries.flatten().find(|entry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| target == image)
    });
    let number = of_image.expect("it has the image open").file_name();
    let number = number.to_str().unwrap().parse().unwrap();
    let pid = Pid::from_raw(process).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
}

/// Sets a lock of this kind on all of the open file, or none.
fn lock(file: &impl AsRawFd, kind: i32) -> io::Result<()> {
    let range = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the command reads one struct flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn guest_whose_disk_failed_goes_on_only_with_its_locks() {
    if !kvm_opens() {
        return;
    }
    let setup = Setup::new("ws_mib=4 blk=1 blk_s=0");
    let image = setup.path("disk.img");
    let file = File::create_new(&image).unwrap();
    file.set_len(SIZE).unwrap();
    let disk = format!(
        "[[disks]]\npath = '{}'\nformat = 'raw'\ncache = 'buffered'\non_error = 'pause'",
        image.display()
    );
    let mut guest = setup.table(&disk).start();
    guest.wait_event("ready");

    file.set_len(0).unwrap();
    wait_until(&guest, "it does not pause", || {
        info(&guest)["state"] == "paused"
    });
    let reason = info(&guest)["pause_reason"].clone();
    assert_eq!(reason["cause"], "device", "{reason}");
    assert_eq!(reason["no_space"], false, "{reason}");
    let other = File::options().write(true).open(&image).unwrap();
    lock(&other, libc::F_WRLCK).expect_err("the image is locked");

    // Lost, and somebody else's by now: the guest stands, as often as it is told to go on.
    lock(&open_file_of(guest.pid(), &image), libc::F_UNLCK).unwrap();
    lock(&other, libc::F_WRLCK).unwrap();
    file.set_len(SIZE).unwrap();
    for action in ["relock", "resume", "resume"] {
        let (status, answer) = post(&guest, action);
        assert_eq!(status, 409, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("disk.img is in use"), "{message}");
        assert_eq!(info(&guest)["state"], "paused", "{action}");
    }

    // Free again: they are taken, and stay while it stands and when it goes on.
    lock(&other, libc::F_UNLCK).unwrap();
    let before = bytes_read(&guest);
    for (action, state) in [("relock", "paused"), ("resume", "running")] {
        let (status, answer) = post(&guest, action);
        assert_eq!(status / 100, 2, "{answer}");
        lock(&other, libc::F_WRLCK).expect_err(action);
        assert_eq!(info(&guest)["state"], state, "{action}");
    }
    wait_until(&guest, "it does not go on", || bytes_read(&guest) > before);
}
