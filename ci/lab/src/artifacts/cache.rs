//! A directory of things that are made once.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::output::tail;
use crate::process::{BoundChild, Inheritance};

/// The cache. Several processes may use it at once.
pub(super) struct Cache {
    directory: PathBuf,
}

impl Cache {
    pub(super) fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(Self { directory })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory `<name>-<hash of inputs>`; `make` fills it if it is not there.
    pub(super) fn get(
        &self,
        name: &str,
        inputs: &impl Hash,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        inputs.hash(&mut hasher);
        let path = self
            .directory
            .join(format!("{name}-{:016x}", hasher.finish()));
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        if path.exists() {
            return Ok(path);
        }
        let start = Instant::now();
        eprintln!("lab: making {name}");
        self.remove_others(name)?;
        let part = self.directory.join(format!("{name}.part"));
        fs::create_dir(&part)?;
        make(&part).with_context(|| format!("making the lab's {name}"))?;
        fs::rename(&part, &path)?;
        eprintln!("lab: made {name} in {:.1} s", start.elapsed().as_secs_f64());
        Ok(path)
    }

    fn lock(&self, name: &str) -> Result<Flock<File>> {
        let file = File::create(self.directory.join(format!("{name}.lock")))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("locking the lab's {name}"))
    }

    /// Removes what other inputs or an interrupted run have left of `name`.
    fn remove_others(&self, name: &str) -> Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let file_name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let hash = file_name
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('-'));
            let is_old = hash.is_some_and(|hash| {
                hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            if is_old || file_name == format!("{name}.part") {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Runs a program to its end, within 15 minutes; what it says is kept for the error.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = BoundChild::spawn(command, Inheritance::default())?;
    let collector = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = std::io::Read::read_to_end(&mut reader, &mut said);
        said
    });
    let status = child.wait_until(Instant::now() + Duration::from_secs(900))?;
    child.kill();
    let said = collector.join().unwrap_or_default();
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{program} ended: {status}\n{}", tail(&said)),
        None => bail!("{program} did not end within 15 minutes\n{}", tail(&said)),
    }
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("the repository's path is UTF-8")
}
