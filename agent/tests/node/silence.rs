//! Storage that stalls: a file system that never answers, mounted over a pool's directory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// What waits for a pool takes five seconds at least; what does not is quicker than this, on a slow
/// host too.
pub const PROMPT: Duration = Duration::from_secs(4);

/// A FUSE file system that nobody serves; what waits for it fails when it goes.
pub struct Silence {
    at: PathBuf,
    _device: File,
}

impl Silence {
    /// `None`, and it is said, if the host has no FUSE.
    pub fn over(at: &Path) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = match device {
            Ok(device) => device,
            Err(error) => {
                eprintln!("skipped: /dev/fuse does not open: {error}");
                return None;
            }
        };
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let options = std::ffi::CString::new(options).unwrap();
        mount(
            "silence",
            at,
            "fuse",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Some(Self {
            at: at.to_owned(),
            _device: device,
        })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}
