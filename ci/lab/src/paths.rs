//! Where things are: the repository, our binaries, the lab's logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The program that runs commands in servers.
pub const AGENT: &str = "pindah-lab-agent";

/// The repository's root.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The directory of the cargo profile that the running program was built into.
fn profile() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let profile = program
        .ancestors()
        .find(|path| path.ends_with("debug") || path.ends_with("release"))
        .with_context(|| format!("{} is not in a target directory", program.display()))?;
    Ok(profile.to_path_buf())
}

/// The cargo target directory that the running program was built into.
fn target() -> Result<PathBuf> {
    let profile = profile()?;
    Ok(profile.parent().unwrap_or(&profile).to_path_buf())
}

/// One of our products: its release build, for that is what we ship.
///
/// # Errors
/// If it is not there.
pub fn product(name: &str) -> Result<PathBuf> {
    let path = target()?.join("release").join(name);
    if !path.is_file() {
        bail!("{name} is not built: run `cargo build --release --workspace`");
    }
    Ok(path)
}

/// The agent, which cargo builds along with the program that runs.
///
/// # Errors
/// If it is not there.
pub fn agent() -> Result<PathBuf> {
    let path = profile()?.join(AGENT);
    if !path.is_file() {
        bail!(
            "{} is not built: run `cargo build -p pindah-lab`",
            path.display()
        );
    }
    Ok(path)
}

/// Empty directory for the logs of the lab called `name`.
pub fn fresh_log_directory(name: &str) -> Result<PathBuf> {
    let path = target()?.join("lab").join(name);
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("emptying {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}
