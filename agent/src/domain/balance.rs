//! Which guests should move so that nodes share their load. Pure.
//!
//! A node's load is what its guests take of it: nothing else can be moved. With the shares `m` of
//! its memory for guests and `c` of its processors,
//!
//! ```text
//! load = Σ over nodes (4 m² + c²)
//! ```
//! is lower the more even both are, memory first: a processor can be shared in time. The move that
//! lowers it most comes first, and none is proposed that lowers it by less than [`WORTHWHILE`], so
//! they are few, they end, and the same load gives the same moves. None makes the fullest node
//! fuller, or the busiest busier.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// What memory counts beside processors.
const MEMORY_WEIGHT: f64 = 4.0;
/// What a move must bring: as much as evening out two nodes that are 14 points of memory apart, or
/// 28 of CPU.
const WORTHWHILE: f64 = 0.04;
/// A node's processors may come to this share, even if no other node's are as busy.
const CALM: f64 = 0.5;
/// Most moves that are proposed at a time.
const MOST: usize = 10;

/// A node that runs guests, and takes others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLoad {
    /// Its name.
    pub name: String,
    /// Memory that guests may have, in MiB.
    pub memory_mib: u64,
    /// Its processors.
    pub cpus: usize,
}

/// A guest that has a process.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestLoad {
    /// Which.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Memory that it was promised, its VMM's included, in MiB.
    pub promised_mib: u64,
    /// Memory that it holds, in MiB.
    pub resident_mib: u64,
    /// CPU time that it takes; 100 is one processor.
    pub cpu_percent: f64,
    /// Whether it may move at all.
    pub movable: bool,
}

/// What guests take of a node, in per cent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LoadPercent {
    /// Of its memory for guests.
    pub memory: f64,
    /// Of all its processors.
    pub cpu: f64,
}

/// A node before the first move that is proposed and after the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeBalance {
    /// The node.
    pub node: String,
    /// What its guests take now.
    pub now: LoadPercent,
    /// What they would take.
    pub then: LoadPercent,
}

/// A move that evens out the load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Suggestion {
    /// The guest's name.
    pub guest: String,
    /// The guest.
    pub uuid: Uuid,
    /// Its node.
    pub from: String,
    /// The node that it should move to.
    pub to: String,
    /// Memory that it holds, in MiB.
    pub memory_mib: u64,
    /// CPU time that it takes; 100 is one processor.
    pub cpu_percent: f64,
    /// Why, in figures: what guests take of both nodes before it and after it.
    pub reason: String,
}

/// What is taken of a node.
#[derive(Clone, Copy, Default)]
struct Taken {
    promised_mib: u64,
    resident_mib: u64,
    cpu_percent: f64,
}

impl Taken {
    fn with(self, guest: &GuestLoad) -> Self {
        Self {
            promised_mib: self.promised_mib.saturating_add(guest.promised_mib),
            resident_mib: self.resident_mib.saturating_add(guest.resident_mib),
            cpu_percent: self.cpu_percent + guest.cpu_percent,
        }
    }

    fn without(self, guest: &GuestLoad) -> Self {
        Self {
            promised_mib: self.promised_mib.saturating_sub(guest.promised_mib),
            resident_mib: self.resident_mib.saturating_sub(guest.resident_mib),
            cpu_percent: (self.cpu_percent - guest.cpu_percent).max(0.0),
        }
    }

    fn share(self, node: &NodeLoad) -> Share {
        Share {
            memory: self.resident_mib as f64 / node.memory_mib.max(1) as f64,
            cpu: self.cpu_percent / 100.0 / node.cpus.max(1) as f64,
        }
    }
}

/// 1 is all of a node.
#[derive(Clone, Copy)]
struct Share {
    memory: f64,
    cpu: f64,
}

impl Share {
    fn load(self) -> f64 {
        MEMORY_WEIGHT * self.memory * self.memory + self.cpu * self.cpu
    }

    fn percent(self) -> LoadPercent {
        let rounded = |share: f64| (share * 1000.0).round() / 10.0;
        LoadPercent {
            memory: rounded(self.memory),
            cpu: rounded(self.cpu),
        }
    }
}

/// All guests where they would be.
struct Places<'a> {
    nodes: &'a [NodeLoad],
    taken: Vec<Taken>,
    /// Guests on these nodes, by name, each with its node's index.
    guests: Vec<(&'a GuestLoad, usize)>,
    /// Those that may not move, or did already.
    settled: Vec<bool>,
}

/// A move, by index, and what it brings.
struct Candidate {
    guest: usize,
    to: usize,
    gain: f64,
}

impl<'a> Places<'a> {
    fn new(nodes: &'a [NodeLoad], guests: &'a [GuestLoad]) -> Self {
        let index = |name: &str| nodes.iter().position(|node| node.name == name);
        let placed = guests
            .iter()
            .filter_map(|guest| Some((guest, index(&guest.node)?)));
        let mut guests: Vec<_> = placed.collect();
        guests.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        let mut taken = vec![Taken::default(); nodes.len()];
        for &(guest, node) in &guests {
            taken[node] = taken[node].with(guest);
        }
        Self {
            nodes,
            taken,
            settled: guests.iter().map(|(guest, _)| !guest.movable).collect(),
            guests,
        }
    }

    fn shares(&self) -> Vec<Share> {
        let nodes = self.nodes.iter().zip(&self.taken);
        nodes.map(|(node, taken)| taken.share(node)).collect()
    }

    /// The move that brings most, and enough.
    fn best(&self, allowed: &impl Fn(Uuid, &str) -> bool) -> Option<Candidate> {
        let shares = self.shares();
        let most = |of: fn(&Share) -> f64| shares.iter().map(of).fold(0.0, f64::max);
        let (fullest, busiest) = (most(|share| share.memory), most(|share| share.cpu));
        let mut best: Option<Candidate> = None;
        for (number, &(guest, from)) in self.guests.iter().enumerate() {
            if self.settled[number] {
                continue;
            }
            for (to, node) in self.nodes.iter().enumerate() {
                let there = self.taken[to].with(guest);
                let then = there.share(node);
                let fits = there.promised_mib <= node.memory_mib;
                let harmless = then.memory <= fullest && then.cpu <= busiest.max(CALM);
                if to == from || !fits || !harmless || !allowed(guest.uuid, &node.name) {
                    continue;
                }
                let here = self.taken[from].without(guest).share(&self.nodes[from]);
                let before = shares[from].load() + shares[to].load();
                let gain = before - here.load() - then.load();
                let more = best.as_ref().is_none_or(|best| gain > best.gain);
                if gain >= WORTHWHILE && more {
                    let guest = number;
                    best = Some(Candidate { guest, to, gain });
                }
            }
        }
        best
    }

    fn carry_out(&mut self, candidate: &Candidate) -> Suggestion {
        let (guest, from) = self.guests[candidate.guest];
        let to = candidate.to;
        let before = self.shares();
        self.taken[from] = self.taken[from].without(guest);
        self.taken[to] = self.taken[to].with(guest);
        self.guests[candidate.guest].1 = to;
        self.settled[candidate.guest] = true;
        let after = self.shares();
        let (from_name, to_name) = (&self.nodes[from].name, &self.nodes[to].name);
        let change = |node: usize, of: fn(LoadPercent) -> f64| {
            let (now, then) = (of(before[node].percent()), of(after[node].percent()));
            format!("{now} % → {then} %")
        };
        let both = |of: fn(LoadPercent) -> f64| {
            let (here, there) = (change(from, of), change(to, of));
            format!("{here} on {from_name}, {there} on {to_name}")
        };
        Suggestion {
            guest: guest.name.clone(),
            uuid: guest.uuid,
            from: from_name.clone(),
            to: to_name.clone(),
            memory_mib: guest.resident_mib,
            cpu_percent: guest.cpu_percent,
            reason: format!(
                "memory {}; CPU {}",
                both(|percent| percent.memory),
                both(|percent| percent.cpu)
            ),
        }
    }
}

/// The moves that even out the load of these nodes, in order, and what comes of them. `allowed`
/// tells whether a guest may move to a node.
pub fn balance(
    nodes: &[NodeLoad],
    guests: &[GuestLoad],
    allowed: impl Fn(Uuid, &str) -> bool,
) -> (Vec<Suggestion>, Vec<NodeBalance>) {
    let mut places = Places::new(nodes, guests);
    let now = places.shares();
    let mut moves = Vec::new();
    while moves.len() < MOST
        && let Some(best) = places.best(&allowed)
    {
        moves.push(places.carry_out(&best));
    }
    let then = places.shares();
    let shares = now.iter().zip(&then);
    let of_nodes = nodes.iter().zip(shares).map(|(node, (now, then))| {
        let (now, then) = (now.percent(), then.percent());
        let node = node.name.clone();
        NodeBalance { node, now, then }
    });
    (moves, of_nodes.collect())
}
