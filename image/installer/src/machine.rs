//! This machine, as the live system shows it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};

use crate::answers::Answers;
use crate::disks::{self, Disk, Smart};
use crate::hardware::{Cpuid, Facts, Hardware};
use crate::install::{InstallError, Live, Plan};
use crate::program;

/// Where live-boot has what the machine was started from.
const MEDIA: [&str; 2] = ["/run/live/medium/live", "/run/live/medium"];

/// The machine, and what it was started from.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The live system's root.
    pub root: PathBuf,
    /// The image.
    pub squashfs: PathBuf,
    /// All disks.
    pub disks: Vec<Disk>,
    /// What was found.
    pub hardware: Hardware,
}

impl Machine {
    /// Looks at this machine, whose live system's root is `root`.
    ///
    /// # Errors
    /// The image is not found, or `lsblk` fails.
    pub fn look(root: &Path, squashfs: Option<&Path>) -> anyhow::Result<Self> {
        let squashfs = match squashfs {
            Some(squashfs) => squashfs.to_owned(),
            None => find_squashfs(&MEDIA.map(Path::new))?,
        };
        // Old RAID controllers take their time to show their disks.
        let _ = program::run("udevadm", &["settle", "--timeout=60"], b"");
        // Without this module there are other signs.
        let _ = program::run("modprobe", &["msr"], b"");
        let kernel_log = program::run::<&str>("dmesg", &[], b"").unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let disks = disks::list().context("cannot list the disks")?;
        let healths: Vec<(Disk, Smart)> = disks
            .iter()
            .map(|disk| (disk.clone(), Smart::of(&disk.path)))
            .collect();
        let facts = Facts {
            root: Path::new("/"),
            cpuid: Cpuid::of_this_machine(),
            kernel_log: &kernel_log,
            now: now.unwrap_or_default().as_secs(),
        };
        let hardware = Hardware::look(facts, &healths);
        Ok(Self {
            root: root.to_owned(),
            squashfs,
            disks,
            hardware,
        })
    }

    /// What `answers` mean here.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, answers: Answers) -> Result<Plan, InstallError> {
        let live = Live {
            root: &self.root,
            squashfs: &self.squashfs,
            disks: &self.disks,
            links: &self.hardware.links,
            virtualization: &self.hardware.virtualization,
        };
        Plan::new(answers, live)
    }
}

/// The one squashfs in the first of `media` that has any.
fn find_squashfs(media: &[&Path]) -> anyhow::Result<PathBuf> {
    for medium in media {
        let entries = std::fs::read_dir(medium).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        found.retain(|path| path.extension().is_some_and(|it| it == "squashfs"));
        match &*found {
            [] => {}
            [one] => return Ok(one.clone()),
            _ => bail!(
                "{} has several images: say which with --squashfs",
                medium.display()
            ),
        }
    }
    bail!(
        "no image is in {}: was this machine started from Pindah's medium? Otherwise say where \
         one is with --squashfs",
        media[0].display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_found_where_live_boot_puts_it() {
        let directory = tempfile::tempdir().unwrap();
        let live = directory.path().join("live");
        std::fs::create_dir(&live).unwrap();
        let media = [&*live, directory.path()];
        let error = find_squashfs(&media).unwrap_err().to_string();
        assert!(error.contains("started from Pindah's medium"), "{error}");
        std::fs::write(directory.path().join("netboot.squashfs"), "").unwrap();
        let fetched = find_squashfs(&media).unwrap();
        assert!(fetched.ends_with("netboot.squashfs"));
        std::fs::write(live.join("filesystem.squashfs"), "").unwrap();
        std::fs::write(live.join("filesystem.squashfs.sha256"), "").unwrap();
        assert!(find_squashfs(&media).unwrap().starts_with(&live));
        std::fs::write(live.join("other.squashfs"), "").unwrap();
        assert!(find_squashfs(&media).is_err());
    }
}
