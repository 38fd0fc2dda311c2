//! What is measured, as `ci/bench` built it, and where our own files go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Our programs, and the directory for what the subjects are given and what they say.
pub struct Artifacts {
    /// `pindah-vmm`, the release build.
    pub vmm: PathBuf,
    /// The guest.
    pub probe: PathBuf,
    /// `pindahd`, the release build.
    pub agent: PathBuf,
    /// `pindah`, the release build.
    pub cli: PathBuf,
    /// `target/ci/bench`: configurations and logs of the last runs.
    pub directory: PathBuf,
    /// Two benchmarks at once would measure each other.
    _lock: Flock<File>,
}

impl Artifacts {
    /// Finds all in the cargo target directory that this program lies in.
    ///
    /// # Errors
    /// If something is not built, or another benchmark runs.
    pub fn find() -> Result<Self> {
        let here = std::env::current_exe()?;
        let profile = here.parent().context("this program has no directory")?;
        let target = profile.parent().context("not in a target directory")?;
        let directory = target.join("ci/bench");
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let lock = File::create(directory.join("lock")).context("creating the lock file")?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("another ci/bench is running: they would measure each other");
        };
        Ok(Self {
            vmm: built(profile, "pindah-vmm")?,
            probe: built(profile, "pindah-probe")?,
            agent: built(profile, "pindahd")?,
            cli: built(profile, "pindah")?,
            directory,
            _lock: lock,
        })
    }
}

fn built(profile: &Path, name: &str) -> Result<PathBuf> {
    let path = profile.join(name);
    if !path.is_file() {
        bail!("{} is not there: start this by ci/bench", path.display());
    }
    Ok(path)
}
