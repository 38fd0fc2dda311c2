//! What follows if a node dies: whether its guests fit on the others.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{GuestUse, NodeUse, percent_of, promised_mib};

/// What follows if a node dies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeLoss {
    /// The node.
    pub node: String,
    /// All its guests can run elsewhere.
    pub fits: bool,
    /// The same in a sentence, with figures.
    pub summary: String,
    /// What its guests that could run elsewhere need, in MiB.
    pub needed_mib: u64,
    /// What the others have free, in MiB.
    pub free_mib: u64,
    /// Its guests, and where they could run.
    pub moved: Vec<GuestPlace>,
    /// Guests for which nobody has room.
    pub without_room: Vec<String>,
    /// Guests that need what only this node has, and wait for it.
    pub bound: Vec<String>,
    /// The nodes that are left, with these guests.
    pub nodes: Vec<NodeThen>,
}

/// Where a guest could run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestPlace {
    /// The guest.
    pub guest: String,
    /// The node.
    pub node: String,
}

/// A node that takes guests of one that died.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeThen {
    /// The node.
    pub node: String,
    /// What guests are promised of its memory for guests.
    pub memory_percent: f64,
    /// What 95 of 100 minutes would take of its processors at most, as far as it was measured.
    pub cpu_percent: f64,
}

struct Left<'a> {
    node: &'a NodeUse,
    promised_mib: u64,
    /// 1 is a processor.
    cpu: f64,
}

impl Left<'_> {
    fn free_mib(&self) -> u64 {
        self.node.memory_mib.saturating_sub(self.promised_mib)
    }
}

/// 1 is a processor.
fn cpu_of(guest: &GuestUse) -> f64 {
    let percent = guest.cpu_percent.map_or(0.0, |cpu| cpu.p95);
    percent / 100.0 * f64::from(guest.cpus)
}

/// `None`: it runs no guests. The largest guest goes first, to where most is free.
pub(super) fn lose(dead: &NodeUse, nodes: &[NodeUse], guests: &[GuestUse]) -> Option<NodeLoss> {
    let here = guests.iter();
    let here = here.filter(|guest| guest.runs && guest.node == dead.name);
    let (bound, mut homeless): (Vec<_>, Vec<_>) = here.partition(|guest| guest.bound);
    if bound.is_empty() && homeless.is_empty() {
        return None;
    }
    let others = nodes.iter();
    let others = others.filter(|node| node.name != dead.name && node.takes_guests);
    let mut left: Vec<Left> = others
        .map(|node| Left {
            node,
            promised_mib: promised_mib(&node.name, guests),
            cpu: node.cpu_percent.map_or(0.0, |cpu| cpu.p95) / 100.0 * node.cpus as f64,
        })
        .collect();
    let free_mib = left.iter().map(Left::free_mib).sum();
    let needed_mib = homeless.iter().map(|guest| guest.promised_mib).sum();
    homeless.sort_by(|a, b| {
        let by_size = b.promised_mib.cmp(&a.promised_mib);
        by_size.then_with(|| a.name.cmp(&b.name))
    });
    let (mut moved, mut without_room) = (Vec::new(), Vec::new());
    for guest in homeless {
        let fitting = left.iter_mut();
        let fitting = fitting.filter(|one| one.free_mib() >= guest.promised_mib);
        match fitting.max_by_key(|one| one.free_mib()) {
            Some(place) => {
                place.promised_mib += guest.promised_mib;
                place.cpu += cpu_of(guest);
                moved.push(GuestPlace {
                    guest: guest.name.clone(),
                    node: place.node.name.clone(),
                });
            }
            None => without_room.push(guest.name.clone()),
        }
    }
    let bound: Vec<String> = bound.into_iter().map(|guest| guest.name.clone()).collect();
    let nodes = left.iter().map(|one| NodeThen {
        node: one.node.name.clone(),
        memory_percent: percent_of(one.promised_mib as f64, one.node.memory_mib as f64),
        cpu_percent: percent_of(one.cpu, one.node.cpus as f64),
    });
    let mut loss = NodeLoss {
        node: dead.name.clone(),
        fits: without_room.is_empty() && bound.is_empty(),
        summary: String::new(),
        needed_mib,
        free_mib,
        nodes: nodes.collect(),
        moved,
        without_room,
        bound,
    };
    loss.summary = summary(&loss);
    Some(loss)
}

fn summary(loss: &NodeLoss) -> String {
    let mut parts = Vec::new();
    if loss.needed_mib > 0 {
        let (needed, free) = (loss.needed_mib, loss.free_mib);
        let verdict = match loss.without_room.as_slice() {
            [] => "all fit".to_owned(),
            names => format!("no room for {}", names.join(", ")),
        };
        parts.push(format!(
            "{} need {needed} MiB, the others have {free} MiB free: {verdict}",
            count(loss.moved.len() + loss.without_room.len())
        ));
    }
    if !loss.bound.is_empty() {
        parts.push(format!(
            "{} must wait for it, as only it has what they need: {}",
            count(loss.bound.len()),
            loss.bound.join(", ")
        ));
    }
    parts.join("; ")
}

fn count(guests: usize) -> String {
    match guests {
        1 => "1 guest".to_owned(),
        many => format!("{many} guests"),
    }
}
