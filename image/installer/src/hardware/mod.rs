//! What the machine has, and whether that does, before anything is written.
//!
//! Everything is read from `/sys`, `/proc` and `/dev` below a directory that is a parameter, so that
//! the machines of the past can be looked at again.

mod clock;
mod links;
mod memory;
mod switch;
mod virtualization;

use std::path::Path;

pub use links::{Link, links};
pub use virtualization::{Cpuid, Virtualization};

use crate::disks::{Disk, Smart};
use crate::size;

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// One should know.
    Warning,
    /// It cannot be installed like this.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How good it is.
    pub level: Level,
    /// What it is about: `Virtualization`, `Memory`, …
    pub subject: &'static str,
    /// What was found, and what to do if it is not good.
    pub text: String,
}

impl Finding {
    fn new(level: Level, subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            level,
            subject,
            text: text.into(),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = match self.level {
            Level::Good => "ok",
            Level::Warning => "!!",
            Level::Bad => "NO",
        };
        write!(formatter, "{mark} {}: {}", self.subject, self.text)
    }
}

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The directory that has `/sys`, `/proc` and `/dev`.
    pub root: &'a Path,
    /// What the processor says of itself.
    pub cpuid: Cpuid,
    /// What the kernel has said since it started.
    pub kernel_log: &'a str,
    /// What the clock says, in seconds since 1970.
    pub now: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Maker and model, as the firmware says.
    pub machine: String,
    /// Whether it runs guests.
    pub virtualization: Virtualization,
    /// The network interfaces.
    pub links: Vec<Link>,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

impl Hardware {
    /// Looks at the machine and its `disks`.
    pub fn look(facts: Facts<'_>, disks: &[(Disk, Smart)]) -> Self {
        let root = facts.root;
        let vendor = read(root, "sys/class/dmi/id/sys_vendor");
        let product = read(root, "sys/class/dmi/id/product_name");
        let virtualization = Virtualization::of(facts);
        let links = links(root);
        let mut findings = vec![virtualization.finding(&vendor), memory::finding(root)];
        findings.extend(disk_findings(disks));
        findings.extend(links::findings(&links));
        findings.push(clock::finding(facts.now));
        Self {
            machine: format!("{vendor} {product}").trim().to_owned(),
            virtualization,
            links,
            findings,
        }
    }

    /// Whether something forbids the installation.
    pub fn is_bad(&self) -> bool {
        self.findings.iter().any(|it| it.level == Level::Bad)
    }
}

fn disk_findings(disks: &[(Disk, Smart)]) -> Vec<Finding> {
    let fixed = disks.iter().filter(|(disk, _)| !disk.is_loop);
    let findings: Vec<Finding> = fixed
        .map(|(disk, smart)| {
            let title = disk.title();
            let (level, text) = match smart {
                Smart::Good(Some(hours)) => (
                    Level::Good,
                    format!("{title}, healthy, {hours} hours in use"),
                ),
                Smart::Good(None) => (Level::Good, format!("{title}, healthy")),
                Smart::Silent => (Level::Good, format!("{title}, says nothing of its health")),
                Smart::Bad(signs) => (Level::Warning, format!("{title}: {signs}; replace it soon")),
            };
            Finding::new(level, "Disk", text)
        })
        .collect();
    if !findings.is_empty() {
        return findings;
    }
    let text = format!(
        "none is seen; {} are needed. Is it plugged in, and a logical drive made in the RAID \
         controller's own menu?",
        size::text(crate::disks::LEAST_BYTES)
    );
    vec![Finding::new(Level::Bad, "Disk", text)]
}

/// A file's first line, or nothing.
fn read(root: &Path, path: &str) -> String {
    let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
