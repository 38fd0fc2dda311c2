//! Disks of this host that are files, and its tools.

use std::fs;
use std::process::{Command, Stdio};

pub const MIB: u64 = 1 << 20;
pub const DISK_MIB: u64 = 4096;

/// Runs a tool that must succeed, and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let error = text(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    text(&output.stdout)
}

/// Whether loop devices are to be had; says so if not.
pub fn usable() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|it| {
        use std::os::unix::fs::MetadataExt as _;
        it.uid() == 0
    });
    if !root {
        println!("skipped: loop devices need root");
    }
    root
}

/// A disk that is a file.
pub struct Loop {
    pub path: String,
    pub file: tempfile::NamedTempFile,
}

impl Loop {
    pub fn new() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK_MIB * MIB).unwrap();
        let arguments = ["--find", "--show", file.path().to_str().unwrap()];
        let output = Command::new("losetup").args(arguments).output().ok()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            println!(
                "skipped: loop devices cannot be used here: {}",
                error.trim()
            );
            return None;
        }
        let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Some(Self { path, file })
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; length];
        let file = fs::File::open(&self.path).unwrap();
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// The bytes of a partition as a file of their own.
    pub fn part(&self, begin_mib: u64, mib: u64) -> tempfile::NamedTempFile {
        let part = tempfile::NamedTempFile::new().unwrap();
        let (from, to) = (
            format!("if={}", self.path),
            format!("of={}", part.path().display()),
        );
        let (skip, count) = (format!("skip={begin_mib}"), format!("count={mib}"));
        run(
            "dd",
            &[
                "bs=1M",
                "conv=sparse",
                "status=none",
                &from,
                &to,
                &skip,
                &count,
            ],
        );
        part
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.path])
            .status();
    }
}
