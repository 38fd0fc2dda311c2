//! What moving a guest takes, besides the VMMs themselves: the link between the two processes
//! ([`link`]), how they are told ([`socket`]), and what is watched meanwhile: the guest's own
//! lines ([`lines`]) and its clock ([`clock`]), ping on the same link ([`ping`]), the processors' time ([`cpu`]).

pub mod clock;
pub mod cpu;
pub mod lines;
pub mod link;
pub mod output;
pub mod ping;
pub mod socket;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::subject::Machine;
use link::Link;

/// A guest that is to move, and where to.
pub struct Move<'a> {
    /// Built alike on both sides.
    pub machine: &'a Machine,
    /// What is between them.
    pub link: &'a Link,
    /// For sockets, keys and configurations. Gone after the move.
    pub directory: &'a Path,
}

impl Move<'_> {
    /// Path of the source's control socket.
    pub fn source_socket(&self) -> PathBuf {
        self.directory.join("source.sock")
    }

    /// Path of the destination's control socket.
    pub fn destination_socket(&self) -> PathBuf {
        self.directory.join("destination.sock")
    }
}

/// A VMM that moves guests between two of its processes.
pub trait Migrates {
    /// The command that runs the guest, as [`crate::subject::Subject::command`]. It runs on the
    /// link's source side.
    ///
    /// # Errors
    /// If such a machine is more than it can do.
    fn source(&self, order: &Move) -> Result<Command>;

    /// The command that waits for the guest, with the same serial port. It runs on the link's
    /// destination side.
    ///
    /// # Errors
    /// As `source`.
    fn destination(&self, order: &Move) -> Result<Command>;

    /// What the destination writes before the guest's first byte: one line with this beginning.
    fn greeting(&self) -> Option<&'static [u8]> {
        None
    }

    /// Talks to both processes, until nothing is left to do but to move the guest.
    ///
    /// # Errors
    /// If one of them does not answer.
    fn prepare(&self, order: &Move) -> Result<Box<dyn Mover>>;
}

/// Two processes that are ready.
pub trait Mover {
    /// Moves the guest. If it has not moved by `deadline`, both processes are for the caller to
    /// kill.
    ///
    /// # Errors
    /// If the VMM gives it up for another reason.
    fn go(&mut self, deadline: Instant) -> Result<Outcome>;
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The guest runs at the destination.
    Moved(Moved),
    /// It has not moved in time: the VMM's account of how far it is.
    NotInTime(Value),
}

/// A guest has moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// From our order until both sides say that all is done.
    pub total: Duration,
    /// How long the guest stood, by the VMM's own account.
    pub downtime: Duration,
    /// That account.
    pub report: Value,
}
