//! The programs that an agent needs beside itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The directory with `pindah-vmm` and the probe, built once a test run.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
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
    })
}
