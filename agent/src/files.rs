//! Files of ours that are replaced whole: who reads one, and the agent that comes after one that
//! was killed, finds the old content or the new, never a part of it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Gives `path` this content, for root alone to read. It may be lost with the host's power.
///
/// # Errors
/// The disk's; the old content is there still.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let (_, new) = write_new(path, content)?;
    fs::rename(new, path)
}

/// The same, with `value` as JSON.
///
/// # Errors
/// As [`replace`].
pub fn replace_by_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    replace(path, &serde_json::to_vec_pretty(value)?)
}

/// The same, and the disk has it when this returns.
///
/// # Errors
/// As [`replace`].
pub fn replace_by_json_durably(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let (file, new) = write_new(path, &serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<(File, PathBuf)> {
    let mut new = OsString::from(path);
    new.push(".new");
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(content)?;
    Ok((file, new.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn file_is_replaced_for_root_alone_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        replace(&path, b"old and long").unwrap();
        replace_by_json(&path, &1).unwrap();
        replace_by_json_durably(&path, &2).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
