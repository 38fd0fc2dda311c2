//! Disks for guests.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::cache::Cache;

pub(super) fn guest(_cache: &Cache) -> Result<PathBuf> {
    bail!("todo")
}

pub(super) fn boot(_cache: &Cache) -> Result<PathBuf> {
    bail!("todo")
}
