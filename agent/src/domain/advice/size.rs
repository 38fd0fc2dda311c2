//! Guests that have too much or too little.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::GuestUse;

/// Nothing is said of a guest that was measured for less: a day has its backup and its night.
pub(super) const LEAST_S: u64 = 86_400;
/// Memory is too little if 95 of 100 minutes come near so much of it.
const MEMORY_FULL_PERCENT: f64 = 90.0;
/// It is too much if it never came near so much of it.
const MEMORY_IDLE_PERCENT: f64 = 40.0;
/// What the most that was used should be of memory.
const MEMORY_WELL_PERCENT: f64 = 75.0;
/// CPUs are too few if 95 of 100 minutes come near so much of them.
const CPU_FULL_PERCENT: f64 = 85.0;
/// What 95 of 100 minutes should be of the CPUs at most.
const CPU_WELL_PERCENT: f64 = 60.0;
/// Memory is given in steps of so many MiB, and a smaller gain is not worth a restart.
const MEMORY_STEP_MIB: u64 = 64;
/// Most virtual CPUs that are proposed.
const CPUS_MAX: u8 = 64;

/// What a guest has too much or too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// RAM, in MiB.
    Memory,
    /// Virtual CPUs.
    Cpus,
}

/// A guest that should be of another size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SizeAdvice {
    /// The guest.
    pub guest: String,
    /// Of what.
    pub resource: Resource,
    /// What it has: MiB, or virtual CPUs.
    pub now: u64,
    /// What it should have.
    pub better: u64,
    /// Why, in figures.
    pub reason: String,
    /// The command that changes it.
    pub command: String,
}

/// What is to be said of a guest.
pub(super) fn sizes(guest: &GuestUse) -> Vec<SizeAdvice> {
    if guest.measured_s < LEAST_S {
        return Vec::new();
    }
    memory(guest).into_iter().chain(cpus(guest)).collect()
}

fn memory(guest: &GuestUse) -> Option<SizeAdvice> {
    let used = guest.memory_percent?;
    let for_peak = |percent: f64| {
        let mib = guest.memory_mib as f64 * percent / MEMORY_WELL_PERCENT;
        (mib.ceil() as u64).next_multiple_of(MEMORY_STEP_MIB)
    };
    let (better, reason) = if used.p95 >= MEMORY_FULL_PERCENT && guest.tells_memory {
        let reason = format!("95 of 100 minutes use up to {} % of it", used.p95);
        (for_peak(used.p95), reason)
    } else if used.maximum <= MEMORY_IDLE_PERCENT {
        let reason = format!("it never used more than {} % of it", used.maximum);
        (for_peak(used.maximum), reason)
    } else {
        return None;
    };
    if better.abs_diff(guest.memory_mib) < MEMORY_STEP_MIB {
        return None;
    }
    Some(SizeAdvice {
        guest: guest.name.clone(),
        resource: Resource::Memory,
        now: guest.memory_mib,
        better,
        reason,
        command: format!("pindah guest edit {} --memory {better}M", guest.name),
    })
}

fn cpus(guest: &GuestUse) -> Option<SizeAdvice> {
    let used = guest.cpu_percent?;
    let has = f64::from(guest.cpus);
    let (better, reason) = if used.p95 >= CPU_FULL_PERCENT {
        let reason = format!("95 of 100 minutes use up to {} % of them", used.p95);
        ((has * used.p95 / CPU_WELL_PERCENT).ceil(), reason)
    } else {
        let reason = format!("it never used more than {} % of them", used.maximum);
        (
            (has * used.maximum / CPU_WELL_PERCENT).ceil().max(1.0),
            reason,
        )
    };
    let better = (better as u64).min(CPUS_MAX.into());
    let full = used.p95 >= CPU_FULL_PERCENT;
    // One that rests may need all of them at once for a moment: fewer only if it never did.
    let worth = if full {
        better > u64::from(guest.cpus)
    } else {
        better < u64::from(guest.cpus)
    };
    worth.then(|| SizeAdvice {
        guest: guest.name.clone(),
        resource: Resource::Cpus,
        now: guest.cpus.into(),
        better,
        reason,
        command: format!("pindah guest edit {} --cpus {better}", guest.name),
    })
}
