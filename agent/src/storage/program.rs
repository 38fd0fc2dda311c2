//! Programs of Debian's that this module runs.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Longest complaint that is passed on, in characters.
const COMPLAINT_MAX: usize = 200;

/// A program, and Debian's package that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

/// How a program that was run to its end has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Its exit code; `None`: it did not start, or was killed.
    pub code: Option<i32>,
    /// What it says, one line.
    pub reason: String,
}

impl Program {
    /// A command with these arguments, which ends with its caller's interest in it.
    pub(super) fn command(self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.name);
        command.args(arguments);
        command
    }

    /// Runs the command to its end, or kills it if the caller does not wait for that. What it
    /// prints.
    ///
    /// # Errors
    /// [`Complaint`]; its reason is the line that `telling` finds best, or else the first one.
    pub(super) async fn run(
        self,
        mut command: Command,
        telling: impl Fn(&str) -> bool,
    ) -> Result<String, Complaint> {
        let output = command
            .kill_on_drop(true)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output();
        let output = output.await.map_err(|error| {
            let Self { name, package } = self;
            Complaint {
                code: None,
                reason: format!("{name} does not start: {error}; is Debian's {package} installed?"),
            }
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
        let best = lines.clone().find(|line| telling(line));
        let best = best.or_else(|| lines.clone().next());
        let reason = best.unwrap_or("it does not say why");
        Err(Complaint {
            code: output.status.code(),
            reason: reason.chars().take(COMPLAINT_MAX).collect(),
        })
    }

    /// The same, but kills it after `deadline`.
    ///
    /// # Errors
    /// [`Complaint`].
    pub(super) async fn run_within(
        self,
        deadline: Duration,
        command: Command,
        telling: impl Fn(&str) -> bool,
    ) -> Result<String, Complaint> {
        let run = self.run(command, telling);
        let done = tokio::time::timeout(deadline, run).await;
        done.unwrap_or_else(|_| {
            Err(Complaint {
                code: None,
                reason: format!("no answer after {} s", deadline.as_secs()),
            })
        })
    }
}
