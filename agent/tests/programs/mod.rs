//! The programs that tests start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a directory with all of them, for a machine that cannot build: a server of the lab.
const READY: &str = "PINDAH_TEST_PROGRAMS";

/// A RAUC that only pretends, and a systemctl that writes down that it was asked to restart.
pub const RAUC: &str = include_str!("rauc.sh");
pub const SYSTEMCTL: &str = r#"[ "$1" = reboot ] && echo reboot >>"$HERE/restarts""#;

fn ready() -> Option<PathBuf> {
    std::env::var_os(READY).map(PathBuf::from)
}

/// The agent.
pub fn pindahd() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_pindahd").into();
    ready().map_or_else(built, |ready| ready.join("pindahd"))
}

/// The command line.
pub fn pindah() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_pindah").into();
    ready().map_or_else(built, |ready| ready.join("pindah"))
}

/// The directory with `pindah-vmm` and the probe, built once a test run.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| ready().unwrap_or_else(build))
}

fn build() -> PathBuf {
    let agent = Path::new(env!("CARGO_BIN_EXE_pindahd"));
    let target = agent.ancestors().nth(2).expect("target/PROFILE/pindahd");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--bins", "-p", "pindah-vmm"])
        .args(["-p", "pindah-probe", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the VMM and the probe do not build");
    target.join("debug")
}
