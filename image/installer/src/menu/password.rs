//! The password of root, which is kept on the state partition: the root itself is read-only.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::Dialog;
use crate::answers;

/// Where it is.
#[derive(Clone, Debug)]
pub struct Places {
    /// Root's line, for the next start (see the image's state.table).
    pub state: PathBuf,
    /// All users of the system that runs, in memory.
    pub running: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            state: "/state/etc/shadow".into(),
            running: "/etc/shadow".into(),
        }
    }
}

/// Asks for it twice and sets it. Nothing changes if nothing is typed.
///
/// # Errors
/// It is not good enough, or cannot be kept.
pub fn change(
    dialog: &mut Dialog<impl BufRead, impl Write>,
    places: &Places,
) -> anyhow::Result<()> {
    let Some(password) = dialog.ask_secret("New password of root: ")? else {
        return Ok(());
    };
    if password.is_empty() {
        return Ok(());
    }
    let hash = answers::hash(&password).map_err(anyhow::Error::msg)?;
    if dialog.ask_secret("Once more: ")?.as_ref() != Some(&password) {
        bail!("the two passwords differ: nothing was changed");
    }
    set(places, &hash)?;
    dialog.say("The password is set.")?;
    Ok(())
}

fn set(places: &Places, hash: &str) -> anyhow::Result<()> {
    let Places { state, running } = places;
    let kept = replace(state, &format!("root:{hash}:::::::\n"));
    kept.with_context(|| format!("cannot write {}", state.display()))?;
    let text = fs::read_to_string(running);
    let text = text.with_context(|| format!("cannot read {}", running.display()))?;
    // It is mounted, so it cannot be replaced by another file.
    fs::write(running, with_hash(&text, hash))
        .with_context(|| format!("it counts from the next start on: {}", running.display()))
}

/// Whatever happens there is the old content or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// `shadow` with another hash in root's line (shadow(5)).
fn with_hash(shadow: &str, hash: &str) -> String {
    let lines = shadow.lines().map(|line| match line.split_once(':') {
        Some(("root", rest)) => {
            let rest = rest.split_once(':').map_or("", |(_, rest)| rest);
            format!("root:{hash}:{rest}\n")
        }
        _ => format!("{line}\n"),
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn changed(typed: &str) -> (tempfile::TempDir, Places, anyhow::Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            state: directory.path().join("state"),
            running: directory.path().join("running"),
        };
        fs::write(&places.running, "root:*:1:0:99999:7:::\nsshd:!:1::::::\n").unwrap();
        let changed = change(&mut Dialog::new(typed.as_bytes(), Vec::new()), &places);
        (directory, places, changed)
    }

    #[test]
    fn password_counts_at_once_and_at_the_next_start() {
        let (_directory, places, changed) = changed("long enough\nlong enough\n");
        changed.unwrap();
        let state = fs::read_to_string(&places.state).unwrap();
        let hash = state.split(':').nth(1).unwrap();
        assert!(
            hash.starts_with("$6$") && state.ends_with(":::::::\n"),
            "{state}"
        );
        let mode = fs::metadata(&places.state).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let running = fs::read_to_string(&places.running).unwrap();
        let expected = format!("root:{hash}:1:0:99999:7:::\nsshd:!:1::::::\n");
        assert_eq!(running, expected);
    }

    #[test]
    fn password_that_is_not_typed_twice_or_too_short_changes_nothing() {
        for (typed, message) in [
            ("long enough\nlong enoug\n", "differ"),
            ("long enough\n", "differ"),
            ("short\nshort\n", "too short"),
        ] {
            let (_directory, places, changed) = changed(typed);
            let error = changed.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(!places.state.exists());
        }
        let (_directory, places, changed) = changed("\n");
        changed.unwrap();
        assert!(!places.state.exists());
    }
}
