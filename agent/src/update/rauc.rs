//! RAUC, by its command line: it writes slots, and tells the boot loader which one is to start.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::UpdateError;
use super::version::is_image;

const RAUC: &str = "rauc";
/// How long it may take for all but an installation: its service may have to start.
const DEADLINE: Duration = Duration::from_secs(90);
/// How long an installation of the agent before us may take to its end, and how often we look.
const BUSY_PATIENCE: Duration = Duration::from_secs(900);
const BUSY_POLL: Duration = Duration::from_secs(5);
/// What is wrong with a bundle whose signature is.
const SIGNATURE: &str = "signature verification failed";
/// Longest complaint that is passed on, in characters.
const COMPLAINT_MAX: usize = 200;

/// A node's two systems.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slots {
    /// The one that runs: `A` or `B`.
    pub running: String,
    /// Whether the boot loader takes it for one that works.
    pub running_good: bool,
    /// The other one.
    pub other: String,
    /// Whether the boot loader takes that for one that works.
    pub other_good: bool,
    /// The version that an update has written there last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_version: Option<String>,
}

/// What the boot loader is told of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    /// It works.
    RunningGood,
    /// It starts first.
    RunningActive,
    /// It starts first, once, unless it is marked good then.
    OtherActive,
    /// It is not started.
    OtherBad,
}

impl Mark {
    fn arguments(self) -> [&'static str; 3] {
        match self {
            Self::RunningGood => ["status", "mark-good", "booted"],
            Self::RunningActive => ["status", "mark-active", "booted"],
            Self::OtherActive => ["status", "mark-active", "other"],
            Self::OtherBad => ["status", "mark-bad", "other"],
        }
    }
}

/// What a bundle says of itself, when its signature is right.
#[derive(Debug, Deserialize)]
pub(super) struct Description {
    pub compatible: String,
    #[serde(default)]
    pub version: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    compatible: String,
    slots: Vec<BTreeMap<String, Slot>>,
}

#[derive(Deserialize)]
struct Slot {
    bootname: Option<String>,
    state: Option<String>,
    boot_status: Option<String>,
    #[serde(default, rename = "slot_status")]
    written: Option<SlotStatus>,
}

#[derive(Deserialize)]
struct SlotStatus {
    #[serde(default)]
    bundle: Option<SlotBundle>,
}

#[derive(Deserialize)]
struct SlotBundle {
    #[serde(default)]
    version: Option<String>,
}

/// The node's slots, and what bundles for it are for.
///
/// # Errors
/// [`UpdateError::NotAppliance`], [`UpdateError::Program`].
pub(super) async fn slots(node: &str) -> Result<(Slots, String), UpdateError> {
    let absent = || UpdateError::NotAppliance(node.to_owned());
    // The image is only tried, from a DVD or a stick: RAUC's service would find no slot and fail.
    if is_image() && !started_from_slot() {
        return Err(absent());
    }
    let printed = match run(&["status", "--detailed", "--output-format=json"]).await {
        Ok(printed) => printed,
        Err(Complaint::Absent) => return Err(absent()),
        // Somebody's own RAUC, for nothing of ours.
        Err(Complaint::Said(_)) if !started_from_slot() => return Err(absent()),
        Err(Complaint::Said(reason)) => return Err(refuses(reason)),
    };
    let read = parse_slots(&printed).map_err(|error| refuses(error.to_string()))?;
    read.ok_or_else(absent)
}

fn started_from_slot() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains("rauc.slot="))
}

fn parse_slots(json: &str) -> serde_json::Result<Option<(Slots, String)>> {
    let status: Status = serde_json::from_str(json)?;
    let (mut running, mut other) = (None, None);
    for slot in status.slots.into_iter().flat_map(BTreeMap::into_values) {
        let Some(name) = slot.bootname else { continue };
        let good = slot.boot_status.as_deref() == Some("good");
        let version = slot.written.and_then(|status| status.bundle?.version);
        if slot.state.as_deref() == Some("booted") {
            running = Some((name, good));
        } else {
            other = Some((name, good, version));
        }
    }
    let slots = running.zip(other).map(|(running, other)| Slots {
        running: running.0,
        running_good: running.1,
        other: other.0,
        other_good: other.1,
        other_version: other.2.filter(|version| !version.is_empty()),
    });
    Ok(slots.map(|slots| (slots, status.compatible)))
}

/// Reads a bundle's description, after its signature.
///
/// # Errors
/// [`UpdateError::Signature`], [`UpdateError::Damaged`].
pub(super) async fn describe(node: &str, bundle: &Path) -> Result<Description, UpdateError> {
    let path = bundle.to_string_lossy();
    let printed = match run(&["info", "--output-format=json", &path]).await {
        Ok(printed) => printed,
        Err(Complaint::Absent) => return Err(UpdateError::NotAppliance(node.to_owned())),
        Err(Complaint::Said(reason)) => {
            return Err(match reason.strip_prefix(SIGNATURE) {
                Some(why) => UpdateError::Signature {
                    node: node.to_owned(),
                    reason: why.trim_start_matches(": ").to_owned(),
                },
                None => UpdateError::Damaged(reason),
            });
        }
    };
    serde_json::from_str(&printed).map_err(|error| UpdateError::Damaged(error.to_string()))
}

/// Tells the boot loader.
///
/// # Errors
/// [`UpdateError::Program`].
pub(super) async fn mark(mark: Mark) -> Result<(), UpdateError> {
    let marked = run(&mark.arguments()).await;
    marked.map_err(|complaint| refuses(complaint.reason()))?;
    Ok(())
}

/// Writes a bundle to the other slot, which does not start first by that. `tell` hears how far it
/// is.
///
/// # Errors
/// [`UpdateError::Damaged`], [`UpdateError::Program`].
pub(super) async fn install(
    bundle: &Path,
    mut tell: impl FnMut(u8, &str),
) -> Result<(), UpdateError> {
    let end = Instant::now() + BUSY_PATIENCE;
    loop {
        match try_to_install(bundle, &mut tell).await {
            // One that an agent before us has begun comes to its end without that.
            Err(reason) if reason.contains("Already processing") && Instant::now() < end => {
                tokio::time::sleep(BUSY_POLL).await;
            }
            // What the kernel says where hash and content differ (dm-verity).
            Err(reason) if reason.contains("Input/output error") => {
                return Err(UpdateError::Damaged(reason));
            }
            done => return done.map_err(refuses),
        }
    }
}

async fn try_to_install(bundle: &Path, tell: &mut impl FnMut(u8, &str)) -> Result<(), String> {
    let mut command = Command::new(RAUC);
    let spawned = command
        .arg("install")
        .arg(bundle)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| format!("it does not start: {error}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let complaints = tokio::spawn(async move {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            // What cannot be read says nothing.
            let _ = stderr.read_to_string(&mut text).await;
        }
        text
    });
    let mut last_error = None;
    if let Some(stdout) = stdout {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((percent, what)) = parse_progress(&line) {
                tell(percent, what);
            } else if let Some(error) = line.trim().strip_prefix("LastError: ") {
                last_error = Some(error.to_owned());
            }
        }
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let complaints = complaints.await.unwrap_or_default();
    Err(shortened(
        &last_error.unwrap_or_else(|| telling_line(&complaints)),
    ))
}

/// ` 40% Copying image to root.1`
fn parse_progress(line: &str) -> Option<(u8, &str)> {
    let (percent, what) = line.trim_start().split_once('%')?;
    Some((percent.parse().ok()?, what.trim()))
}

enum Complaint {
    /// The program is not there.
    Absent,
    /// It fails, and says why.
    Said(String),
}

impl Complaint {
    fn reason(self) -> String {
        match self {
            Self::Absent => "it is not installed".to_owned(),
            Self::Said(reason) => reason,
        }
    }
}

async fn run(arguments: &[&str]) -> Result<String, Complaint> {
    let mut command = Command::new(RAUC);
    let output = command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(DEADLINE, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return Err(Complaint::Absent),
        Ok(Err(error)) => return Err(Complaint::Said(error.to_string())),
        Err(_) => {
            let reason = format!("no answer after {} s", DEADLINE.as_secs());
            return Err(Complaint::Said(reason));
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = telling_line(&String::from_utf8_lossy(&output.stderr));
    Err(Complaint::Said(shortened(&said)))
}

/// The last line that is no news of its ordinary work.
fn telling_line(complaints: &str) -> String {
    let lines = complaints.lines().map(str::trim);
    let mut telling = lines.filter(|line| !line.is_empty() && !line.starts_with("rauc-Message"));
    let last = telling.next_back();
    last.unwrap_or("it does not say why").to_owned()
}

fn shortened(text: &str) -> String {
    text.chars().take(COMPLAINT_MAX).collect()
}

fn refuses(reason: String) -> UpdateError {
    UpdateError::Program {
        program: RAUC,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_with_what_was_written_to_the_other() {
        let json = r#"{"compatible":"pindah-x86_64","variant":"","booted":"B","boot_primary":"root.1",
            "slots":[{"root.1":{"class":"root","device":"/run/pindah/disk/root-b","type":"raw",
            "bootname":"B","state":"booted","parent":null,"mountpoint":null,"boot_status":"good",
            "slot_status":{"bundle":{"version":"0.2.0"}}}},{"root.0":{"class":"root","device":
            "/run/pindah/disk/root-a","type":"raw","bootname":"A","state":"inactive","boot_status":
            "bad","slot_status":{"bundle":{"version":"0.1.0"}}}}]}"#;
        let (slots, compatible) = parse_slots(json).unwrap().unwrap();
        assert_eq!(compatible, "pindah-x86_64");
        assert_eq!((&*slots.running, slots.running_good), ("B", true));
        assert_eq!((&*slots.other, slots.other_good), ("A", false));
        assert_eq!(slots.other_version.as_deref(), Some("0.1.0"));

        let fresh = json.replace(r#""slot_status":{"bundle":{"version":"0.1.0"}}"#, "\"x\":0");
        let (slots, _) = parse_slots(&fresh).unwrap().unwrap();
        assert_eq!(slots.other_version, None);
        let live = json.replace("booted\"", "inactive\"");
        assert_eq!(parse_slots(&live).unwrap(), None);
        assert!(parse_slots("").is_err());
    }

    #[test]
    fn progress_and_complaints_are_found_among_other_lines() {
        let line = " 40% Copying image to root.1";
        assert_eq!(parse_progress(line), Some((40, "Copying image to root.1")));
        assert_eq!(parse_progress("Installing `x` succeeded"), None);
        assert_eq!(parse_progress("100% of it"), Some((100, "of it")));
        let said = "rauc-Message: 1: Reading bundle: /x\nsignature verification failed: no\n\n";
        assert_eq!(telling_line(said), "signature verification failed: no");
        assert_eq!(telling_line("rauc-Message: x"), "it does not say why");
    }
}
