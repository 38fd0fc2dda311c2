//! What a report suggests: guests of another size, what follows if a node dies, where a new guest
//! should go. Pure; changes nothing.

mod loss;
mod room;
mod size;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Figures;
pub use loss::{GuestPlace, NodeLoss, NodeThen};
pub use room::NodeRoom;
pub use size::{Resource, SizeAdvice};

/// What a guest is and took.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestUse {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// It has a process.
    pub runs: bool,
    /// It needs something that only its node has.
    pub bound: bool,
    /// Virtual CPUs.
    pub cpus: u8,
    /// RAM, in MiB.
    pub memory_mib: u64,
    /// Memory that its node gives it, its VMM's included, in MiB.
    pub promised_mib: u64,
    /// It says itself how much memory it uses.
    pub tells_memory: bool,
    /// How long it was measured, in seconds.
    pub measured_s: u64,
    /// CPU time; 100 is all its virtual CPUs.
    pub cpu_percent: Option<Figures>,
    /// Memory; 100 is all its RAM.
    pub memory_percent: Option<Figures>,
}

/// A node that runs guests.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeUse {
    /// Its name.
    pub name: String,
    /// It takes guests now.
    pub takes_guests: bool,
    /// Memory that guests may have, in MiB.
    pub memory_mib: u64,
    /// Its processors.
    pub cpus: usize,
    /// CPU time; 100 is all its processors.
    pub cpu_percent: Option<Figures>,
}

/// What a report suggests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Advice {
    /// Guests that have too much or too little.
    pub sizes: Vec<SizeAdvice>,
    /// Guests that were measured for less than a day, of whose size nothing is said.
    pub measured_too_short: Vec<String>,
    /// What follows if a node dies, for each that runs guests.
    pub losses: Vec<NodeLoss>,
    /// Nodes for a new guest, the best first.
    pub places: Vec<NodeRoom>,
}

/// What follows from what guests and nodes took.
pub fn advise(nodes: &[NodeUse], guests: &[GuestUse]) -> Advice {
    let short = guests.iter();
    let short = short.filter(|guest| guest.runs && guest.measured_s < size::LEAST_S);
    let mut losses: Vec<NodeLoss> = Vec::new();
    for node in nodes {
        losses.extend(loss::lose(node, nodes, guests));
    }
    Advice {
        sizes: guests.iter().flat_map(size::sizes).collect(),
        measured_too_short: short.map(|guest| guest.name.clone()).collect(),
        losses,
        places: room::rooms(nodes, guests),
    }
}

/// What running guests are promised on a node, in MiB.
fn promised_mib(node: &str, guests: &[GuestUse]) -> u64 {
    let here = guests
        .iter()
        .filter(|guest| guest.runs && guest.node == node);
    here.map(|guest| guest.promised_mib).sum()
}

fn percent_of(part: f64, whole: f64) -> f64 {
    (part * 1000.0 / whole.max(1.0)).round() / 10.0
}

#[cfg(test)]
mod tests;
