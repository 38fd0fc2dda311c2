//! The agent: `pindahd`, one daemon a node, and `pindah`, its command line.
//!
//! ```text
//! cli ──HTTPS──► api ──► guests ──► domain            what a guest is, pure
//!                 │        ├──────► store             intent, in one transaction
//!                 │        ├──────► supervisor, vmm_client   one process a guest
//!                 │        ├──────► network           bridge, taps, DHCP
//!                 │        ├──────► storage           pools, images, volumes
//!                 │        └──────► metrics           what guests and the node take
//!                 ├──────► update ──► guests           the other slot, and the way back
//!                 ├──────► cluster, peer               several nodes that act as one
//!                 ├──────► report            what was taken over days, as tables
//!                 └──────► tasks, events, security
//! ```
//!
//! The agent owns intent and resources. A guest's process is a session of its own, and lives
//! through the agent's end: everything here can be killed and started again at any moment.
#![forbid(unsafe_code)]

pub mod api;
pub mod causes;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
mod descriptors;
pub mod domain;
pub mod events;
pub mod files;
pub mod guests;
pub mod metrics;
mod names;
pub mod network;
pub mod node;
pub mod peer;
pub mod report;
pub mod security;
pub mod storage;
pub mod store;
pub mod supervisor;
pub mod tasks;
pub mod update;
pub mod vmm_client;
mod web;
