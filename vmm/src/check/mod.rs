//! What a host offers to guests, what is missing, what that costs, and how to mend it.
//!
//! ```text
//! /proc, /sys ──┐
//! /dev/kvm ─────┼─► processor, kvm, memory, kernel ─► Report ─► render | JSON
//! system calls ─┘
//! ```
//! Nothing is changed and nothing stays open.

mod host;
mod kernel;
mod kvm;
mod memory;
mod processor;
mod render;

#[cfg(test)]
mod tests;

use pindah_vmm_api::CpuFeatures;
use serde::Serialize;

pub use host::Host;

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Guests can run here.
    pub usable: bool,
    /// Version of this program.
    pub vmm_version: &'static str,
    /// What was looked at, part by part.
    pub sections: Vec<Section>,
    /// What a guest may see of the processor here (`cpus.features` of a configuration).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<CpuFeatures>,
}

/// One part of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How good that is.
    pub level: Level,
    /// What it is.
    pub value: String,
    /// What it costs that it is not better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There, or of no weight.
    Good,
    /// Guests run without it, at a cost.
    Limited,
    /// No guest runs without it.
    Fatal,
}

impl Finding {
    fn good(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            level: Level::Good,
            value: value.into(),
            cost: None,
            remedy: None,
        }
    }

    fn limited(name: impl Into<String>, value: impl Into<String>, cost: impl Into<String>) -> Self {
        Self {
            level: Level::Limited,
            cost: Some(cost.into()),
            ..Self::good(name, value)
        }
    }

    fn fatal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            level: Level::Fatal,
            cost: Some("no guest runs here".to_owned()),
            ..Self::good(name, value)
        }
    }

    fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl Report {
    /// Looks at `host`.
    pub fn gather(host: &Host) -> Self {
        let sections = vec![
            processor::look(host),
            kvm::look(host),
            memory::look(host),
            kernel::look(host),
        ];
        let usable = sections
            .iter()
            .flat_map(|section| &section.findings)
            .all(|finding| finding.level != Level::Fatal);
        Self {
            usable,
            vmm_version: env!("CARGO_PKG_VERSION"),
            sections,
            cpu_features: kvm::features(host),
        }
    }

    /// A table for a person, no wider than 80 columns. `colour` uses ANSI sequences.
    pub fn render(&self, colour: bool) -> String {
        render::render(self, colour)
    }
}
