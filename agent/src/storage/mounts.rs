//! What is mounted, as the kernel tells it: without a look at what is mounted there.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mountinfo";

/// Where something is mounted.
///
/// # Errors
/// Those of reading `/proc`.
pub(super) fn mount_points() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&std::fs::read(MOUNTS)?))
}

/// Whether something is mounted at `path`.
///
/// # Errors
/// As [`mount_points`].
pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(mount_points()?.iter().any(|point| point == path))
}

/// The fifth field of each line (proc_pid_mountinfo(5)).
fn parse(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|&byte| byte == b'\n');
    let points = lines.filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    points
        .map(|point| PathBuf::from(OsString::from_vec(unescape(point))))
        .collect()
}

/// Blanks and backslashes stand there as `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_what_is_escaped() {
        let text = b"22 1 0:20 / /proc rw - proc proc rw\n\
            99 22 0:51 / /srv/my\\040nas\\134x rw,relatime shared:1 - nfs4 nas:/vm rw,vers=4.2\n";
        let expected = [PathBuf::from("/proc"), PathBuf::from("/srv/my nas\\x")];
        assert_eq!(parse(text), expected);
        assert!(is_mounted(Path::new("/proc")).unwrap());
    }
}
