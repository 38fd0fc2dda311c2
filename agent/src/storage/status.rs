//! How a pool is doing on a node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{PoolKind, PoolName};

/// Whether a pool can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// It answers.
    Ready,
    /// It has not answered for some seconds. What uses it waits, and goes on when it is back.
    Stalled,
    /// It cannot be used on this node.
    Unavailable,
}

impl std::fmt::Display for PoolState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Ready => "ready",
            Self::Stalled => "stalled",
            Self::Unavailable => "unavailable",
        })
    }
}

/// How a pool is doing on a node. What is not ready has the figures of when it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// Its kind.
    pub kind: PoolKind,
    /// Whether all nodes have the same.
    pub shared: bool,
    /// Whether it can be used.
    pub state: PoolState,
    /// What is wrong, or what to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Size of the file system that it is on, in MiB.
    pub total_mib: u64,
    /// What is used of it, in MiB.
    pub used_mib: u64,
    /// What is free of it, in MiB.
    pub free_mib: u64,
}
