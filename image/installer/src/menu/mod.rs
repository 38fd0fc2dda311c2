//! What root finds on the console of a node: network, password, logs, restart.
//!
//! A line is asked and a line is answered, so that every terminal will do; who does not know what to
//! answer presses Enter and changes nothing. The console shows it after the login
//! (`/etc/profile.d/pindah-menu.sh` of the image).

mod dialog;
mod network;
pub mod password;

use std::io::{BufRead, Write};
use std::process::Command;

use anyhow::Context as _;

pub use dialog::Dialog;
use password::Places;

/// Tells the shell that it is not to show the menu: it was started from here, or by the installer.
pub(crate) const MARK: &str = "PINDAH_MENU";

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Network,
    Password,
    Logs,
    Shell,
    Restart,
    Off,
    Leave,
}

impl Choice {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Network, "network: address, gateway, name servers"),
        (Self::Password, "password of root"),
        (Self::Logs, "logs"),
        (Self::Shell, "shell"),
        (Self::Restart, "restart this node"),
        (Self::Off, "switch it off"),
        (Self::Leave, "log out"),
    ];

    fn of(text: &str) -> Option<Self> {
        let number: usize = text.parse().ok()?;
        let (choice, _) = Self::ALL.get(number.checked_sub(1)?)?;
        Some(*choice)
    }
}

/// Shows the menu until somebody leaves it.
///
/// # Errors
/// The terminal is gone.
pub fn run(dialog: &mut Dialog<impl BufRead, impl Write>) -> anyhow::Result<()> {
    loop {
        dialog.say("")?;
        for (number, (_, text)) in (1..).zip(Choice::ALL) {
            dialog.say(&format!("  {number}  {text}"))?;
        }
        dialog.say("")?;
        let Some(answer) = dialog.ask("Number: ")? else {
            return Ok(());
        };
        let done = match Choice::of(&answer) {
            Some(Choice::Leave) => return Ok(()),
            Some(choice) => carry_out(choice, dialog),
            None => Ok(()),
        };
        if let Err(error) = done {
            dialog.say(&format!("{error:#}"))?;
        }
    }
}

fn carry_out(choice: Choice, dialog: &mut Dialog<impl BufRead, impl Write>) -> anyhow::Result<()> {
    match choice {
        Choice::Network => network::change(dialog),
        Choice::Password => password::change(dialog, &Places::default()),
        Choice::Logs => start("journalctl", &["--boot", "--pager-end"]),
        Choice::Shell => start("/bin/bash", &["--login"]),
        Choice::Restart => end(dialog, "restart this node", "reboot"),
        Choice::Off => end(dialog, "switch this node off", "poweroff"),
        Choice::Leave => Ok(()),
    }
}

/// Guests are shut down first.
fn end(
    dialog: &mut Dialog<impl BufRead, impl Write>,
    what: &str,
    verb: &str,
) -> anyhow::Result<()> {
    let prompt = format!("Type yes to {what}; its guests are shut down: ");
    if dialog.ask(&prompt)?.as_deref() != Some("yes") {
        return Ok(());
    }
    start("systemctl", &[verb])
}

/// Runs a program on this terminal, and waits for its end; how it ends is its own business.
fn start(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).env(MARK, "1");
    let status = command.status();
    status.with_context(|| format!("cannot start {program}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn menu_asks_until_somebody_leaves() {
        let mut shown = Vec::new();
        let typed = b"9\n\nx\n7\n1\n".as_slice();
        run(&mut Dialog::new(typed, &mut shown)).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert_eq!(shown.matches("2  password of root").count(), 4, "{shown}");
        run(&mut Dialog::new(b"".as_slice(), Vec::new())).unwrap();
    }

    #[test]
    fn restart_wants_the_word() {
        let mut dialog = Dialog::new(b"y\n".as_slice(), Vec::new());
        end(&mut dialog, "restart this node", "no-such-verb").unwrap();
    }
}
