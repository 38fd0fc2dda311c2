//! Debian's `qemu-img`, with the format always said and never guessed, and within limits: what it
//! reads may come from an attacker.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::{ImageFormat, StorageError};

/// Limits while a header is read: memory in bytes, processor time in seconds.
const INFO_LIMITS: [&str; 2] = ["--as=1073741824", "--cpu=30"];
/// How much of its complaints is kept, in bytes.
const COMPLAINT_MAX: u64 = 4096;

/// What `qemu-img info` says, as far as we look.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Info {
    pub virtual_size: u64,
    pub backing_filename: Option<String>,
    #[serde(default)]
    pub encrypted: bool,
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    data: serde_json::Value,
}

impl Info {
    /// The file outside of the image at `path` that it would have us open.
    pub(super) fn outside(&self, path: &Path) -> Option<&str> {
        let data = self.format_specific.as_ref().map(|specific| &specific.data);
        let data_file = data.and_then(|data| data["data-file"].as_str());
        let extents = data.and_then(|data| data["extents"].as_array());
        let extents = extents.into_iter().flatten();
        let mut files = extents.filter_map(|extent| extent["filename"].as_str());
        let elsewhere = files.find(|file| Path::new(file) != path);
        self.backing_filename.as_deref().or(data_file).or(elsewhere)
    }
}

/// Reads the header of an image without opening what it refers to.
pub(super) async fn info(path: &Path, format: ImageFormat) -> Result<Info, StorageError> {
    let mut command = Command::new("prlimit");
    command
        .args(INFO_LIMITS)
        .args(["--", "qemu-img", "info", "--output=json", "-U", "-f"])
        .arg(format.name())
        .arg(path);
    let output = run(command, "read the image's header", |_| {}).await?;
    serde_json::from_slice(&output).map_err(|error| StorageError::QemuImg {
        action: "read the image's header",
        reason: error.to_string(),
    })
}

/// Makes an empty disk.
pub(super) async fn create(path: &Path, format: &str, bytes: u64) -> Result<(), StorageError> {
    let mut command = qemu_img();
    command.args(["create", "-q", "-f", format]).arg(path);
    command.arg(bytes.to_string());
    run(command, "make a disk", |_| {}).await.map(|_| ())
}

/// Grows a disk.
pub(super) async fn grow(path: &Path, format: &str, bytes: u64) -> Result<(), StorageError> {
    let mut command = qemu_img();
    command.args(["resize", "-q", "-f", format]).arg(path);
    command.arg(bytes.to_string());
    run(command, "make the disk larger", |_| {})
        .await
        .map(|_| ())
}

/// It ends when we do.
fn qemu_img() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "qemu-img"]);
    command
}

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copying {
    /// Through the host's page cache, in which an image may be already.
    Cached,
    /// Past it: what another node has written counts, and what is written is written.
    Direct,
}

/// What to copy to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// A file that is not there yet, in this format.
    New(&'a Path, &'a str),
    /// A block device that is as large at least, and all zeroes.
    Zeroed(&'a Path),
}

/// Copies an image into a disk, and tells `progress` the per cent that are done.
pub(super) async fn convert(
    from: (&Path, ImageFormat),
    to: Target<'_>,
    copying: Copying,
    progress: impl FnMut(u8) + Send,
) -> Result<(), StorageError> {
    let mut command = qemu_img();
    command.args(["convert", "-p", "-f", from.1.name()]);
    if copying == Copying::Direct {
        command.args(["-T", "none"]);
    }
    let to = match to {
        Target::New(path, format) => {
            command.args(["-O", format]);
            if copying == Copying::Direct {
                command.args(["-t", "none"]);
            }
            path
        }
        Target::Zeroed(path) => {
            command.args(["-O", "raw", "-t", "none", "-n", "--target-is-zero"]);
            path
        }
    };
    command.args([from.0, to]);
    run(command, "copy the image", progress).await.map(|_| ())
}

/// Runs to the end, and is ended itself if the caller drops it.
async fn run(
    mut command: Command,
    action: &'static str,
    mut progress: impl FnMut(u8) + Send,
) -> Result<Vec<u8>, StorageError> {
    let failed = |reason: String| StorageError::QemuImg { action, reason };
    let mut child = command
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is Debian's qemu-utils installed?")))?;
    let stderr = child.stderr.take();
    let complaints = tokio::spawn(async move { read_some(stderr).await });
    let mut output = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        let mut chunk = [0; 4096];
        loop {
            let count = stdout.read(&mut chunk).await;
            match count.map_err(|error| failed(error.to_string()))? {
                0 => break,
                count => output.extend_from_slice(&chunk[..count]),
            }
            if let Some(percent) = last_percent(&output) {
                progress(percent);
            }
        }
    }
    let status = child
        .wait()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let complaints = complaints.await.unwrap_or_default();
    if status.success() {
        return Ok(output);
    }
    let reason = complaints.lines().next().unwrap_or_default();
    let reason = reason.strip_prefix("qemu-img: ").unwrap_or(reason);
    Err(failed(if reason.is_empty() {
        status.to_string()
    } else {
        reason.to_owned()
    }))
}

async fn read_some(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let mut limited = (&mut pipe).take(COMPLAINT_MAX);
        let _ = limited.read_to_end(&mut bytes).await;
        // The rest is taken too: a full pipe would stop the program.
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The number in the last `(12.34/100%)`.
fn last_percent(output: &[u8]) -> Option<u8> {
    let tail = &output[output.len().saturating_sub(64)..];
    let text = std::str::from_utf8(tail).ok()?;
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let percent: f64 = number.trim().parse().ok()?;
    Some(percent.clamp(0.0, 100.0) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_the_last_whole_number_of_the_line() {
        let line = b"    (0.00/100%)\r    (12.55/100%)\r    (13.0";
        assert_eq!(last_percent(line), Some(12));
        assert_eq!(last_percent(b"(100.00/100%)"), Some(100));
        assert_eq!(last_percent(b"nothing"), None);
    }
}
