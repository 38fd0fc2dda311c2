//! The VMMs' own reports of each move, for whoever wants to know where the time went:
//! `target/ci/bench/migrate-reports.jsonl`, of the last run only.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::pair::Story;

const NAME: &str = "migrate-reports.jsonl";

/// The file.
pub struct Reports(Mutex<File>);

impl Reports {
    /// Makes it in `directory`, empty.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(Mutex::new(file)))
    }

    /// Adds a line: the report, with the blackout that the guest saw and what its clock hid of it,
    /// if it has moved.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn add(
        &self,
        case: &str,
        subject: &str,
        story: Option<&Story>,
        report: &Value,
    ) -> Result<()> {
        let line = json!({
            "case": case,
            "subject": subject,
            "blackout_us": story.and_then(Story::blackout_us),
            "clock_stood_us": story.map(|story| story.stood_us),
            "clock_unsure_us": story.map(|story| story.unsure_us),
            "report": report,
        });
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(file, "{line}").context("writing the reports")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::lines::Joined;

    #[test]
    fn add_writes_a_line_each() {
        let directory = tempfile::tempdir().unwrap();
        let reports = Reports::create(directory.path()).unwrap();
        let story = Story {
            lines: Joined::new(b"", b""),
            stood_us: 0.0,
            unsure_us: 0.0,
        };
        for case in ["a", "b"] {
            let report = json!({ "downtime": 2 });
            reports.add(case, "qemu", Some(&story), &report).unwrap();
        }
        let text = std::fs::read_to_string(directory.path().join(NAME)).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["report"]["downtime"], 2);
    }
}
