//! Where things are: the repository, our binaries, the lab's logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The repository's root.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The cargo target directory that the running program was built into.
///
/// # Errors
/// If the program does not lie in one.
pub fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let profile = program
        .ancestors()
        .find(|path| path.ends_with("debug") || path.ends_with("release"))
        .with_context(|| format!("{} is not in a target directory", program.display()))?;
    Ok(profile.parent().unwrap_or(profile).to_path_buf())
}

/// One of our binaries: the release build if there is one, else the debug one.
///
/// # Errors
/// If neither is there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let target = target()?;
    for profile in ["release", "debug"] {
        let path = target.join(profile).join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("{name} is not built: run `cargo build --release --workspace`")
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
