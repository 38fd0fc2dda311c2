//! A process found by its arguments.

use std::fs;
use std::path::Path;

use super::Identity;

/// The process that was given `path` as its `option`. An agent that was killed between a start and
/// its note leaves a process that only its arguments tell of.
pub fn find_process(option: &str, path: &Path) -> Option<Identity> {
    let wanted = path.as_os_str().as_encoded_bytes();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let mut arguments = arguments.split(|&byte| byte == 0);
        arguments.find(|argument| *argument == option.as_bytes())?;
        (arguments.next() == Some(wanted))
            .then(|| Identity::of(pid).ok())
            .flatten()
    })
}
