//! Programs that do what netlink does not, or not well.

use tokio::process::Command;

use super::NetworkError;

/// Runs a program to its end, with `input` as its standard input.
pub(super) async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<(), NetworkError> {
    use tokio::io::AsyncWriteExt;

    let failed = |reason: String| NetworkError::Program { program, reason };
    let mut child = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is Debian's package of it installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(input.as_bytes()).await;
        written.map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().await;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(failed(
        complaint
            .lines()
            .next()
            .unwrap_or("no reason given")
            .to_owned(),
    ))
}
