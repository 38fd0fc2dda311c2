//! What happens when all is done.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;

use crate::answers::End;
use crate::program;

/// Does it. A shell replaces the installer where a person can use one.
///
/// # Errors
/// It cannot be done.
pub fn carry_out(end: End) -> anyhow::Result<()> {
    let verb = match end {
        End::Reboot => "reboot",
        End::PowerOff => "poweroff",
        End::Shell => return shell(),
    };
    program::run("systemctl", &[verb], b"")?;
    Ok(())
}

/// Replaces the installer by a shell, on a terminal.
///
/// # Errors
/// There is none.
pub fn shell() -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Ok(());
    }
    let mut shell = Command::new("/bin/bash");
    let error = shell.arg("--login").env(crate::menu::MARK, "1").exec();
    Err(error).context("cannot start a shell")
}
