//! Programs of the live system.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use thiserror::Error;

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It is not there.
    #[error("cannot start {program}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It says that it failed.
    #[error("{program} ({status}): {message}")]
    Failed {
        /// Which.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        message: String,
    },
    /// It prints what nobody expects.
    #[error("{program} prints what cannot be understood")]
    Answer {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Runs `program` with `arguments` and `input`, and returns what it prints.
///
/// # Errors
/// [`ProgramError`].
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    input: &[u8],
) -> Result<String, ProgramError> {
    let output = output(program, arguments, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let mut last: Vec<&str> = said.lines().map(str::trim).collect();
    last.retain(|line| !line.is_empty());
    let last = last.split_off(last.len().saturating_sub(3));
    Err(ProgramError::Failed {
        program: program.to_owned(),
        status: output.status,
        message: last.join("; "),
    })
}

/// The same for programs whose exit status says something else.
pub(crate) fn output<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    input: &[u8],
) -> Result<std::process::Output, ProgramError> {
    let start = |source| ProgramError::Start {
        program: program.to_owned(),
        source,
    };
    let mut command = Command::new(program);
    let command = command.args(arguments).env("LC_ALL", "C");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it says why itself.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output().map_err(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_gets_its_input_and_its_last_words_are_told() {
        assert_eq!(run::<&str>("cat", &[], b"a\n").unwrap(), "a\n");
        let error = run("sh", &["-c", "echo one; echo two >&2; exit 3"], b"").unwrap_err();
        assert_eq!(error.to_string(), "sh (exit status: 3): one; two");
        let error = run::<&str>("/nonexistent/x", &[], b"").unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nonexistent/x");
    }
}
