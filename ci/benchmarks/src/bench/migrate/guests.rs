//! Which guests move over which links.

use std::time::Duration;

use crate::migration::link::Speed;
use crate::subject::PINDAH;

/// What a guest does, as orders to the probe (`vmm/probe`, "Command line").
pub struct Guest {
    name: &'static str,
    /// The orders.
    pub orders: &'static str,
}

/// Uses next to nothing.
const IDLE: Guest = guest("idle", "ws_mib=1");
/// 64 MiB, 50 MB/s of them dirtied: 16 bytes of a page of zeroes.
const COUNTER: Guest = guest("64", "ws_mib=64 rate_mib_s=48");
/// The same, whole pages of text, 3:1 under `zstd -1`.
const TEXT: Guest = guest("text", "ws_mib=64 rate_mib_s=48 content=text rewrite=1");
/// That text, hardly dirtied.
const STILL: Guest = guest("textstill", "ws_mib=64 rate_mib_s=1 content=text rewrite=1");
/// 256 MiB, 500 MB/s of them dirtied.
const HOT: Guest = guest("hot", "ws_mib=256 rate_mib_s=477");
/// 64 MiB, whole pages of noise at 50 MB/s.
const RANDOM: Guest = guest("random", "ws_mib=64 rate_mib_s=48 content=random rewrite=1");
/// The 277 MB of the study that Pindah starts from, incompressible.
const STUDY: Guest = guest("study", "ws_mib=264 rate_mib_s=1 content=random rewrite=1");
/// The same, 3:1 under `zstd -1`.
const STUDY_TEXT: Guest = guest(
    "studytext",
    "ws_mib=264 rate_mib_s=1 content=text rewrite=1",
);

const fn guest(name: &'static str, orders: &'static str) -> Guest {
    Guest { name, orders }
}

/// One case.
pub struct Plan {
    /// What moves.
    pub guest: Guest,
    /// Its RAM.
    pub memory_mib: u64,
    /// What it moves over.
    pub speed: Speed,
    /// How long it may take.
    pub limit: Duration,
    /// Whether a quick run has it.
    pub is_quick: bool,
    /// It is run no more often.
    pub runs_max: u32,
    /// Only these subjects; all, if there are none.
    subjects: &'static [&'static str],
}

const LO: Speed = Speed::Unlimited;
const GIGABIT: Speed = Speed::Mbit(1000);
const FAST_ETHERNET: Speed = Speed::Mbit(100);
/// Long enough for each page to go over several times.
const LIMIT: Duration = Duration::from_secs(20);
/// The study's guest takes 25 s as it is.
const STUDY_LIMIT: Duration = Duration::from_secs(60);
/// More of them, or more runs, would cost many minutes.
const STUDY_RUNS: u32 = 3;
/// See [`STUDY_RUNS`].
const STUDY_SUBJECTS: &[&str] = &[PINDAH, "qemu", "qemu-multifd-zstd"];

/// All cases, in the order in which they are measured.
pub const CASES: &[Plan] = &[
    plan(IDLE, 512, LO).quick(),
    plan(COUNTER, 512, LO).quick(),
    plan(TEXT, 512, LO),
    plan(RANDOM, 512, LO),
    plan(HOT, 512, LO),
    plan(IDLE, 2048, LO),
    plan(COUNTER, 2048, LO),
    plan(IDLE, 512, GIGABIT),
    plan(COUNTER, 512, GIGABIT).quick(),
    plan(TEXT, 512, GIGABIT),
    plan(RANDOM, 512, GIGABIT),
    plan(HOT, 512, GIGABIT),
    plan(IDLE, 512, FAST_ETHERNET).quick(),
    plan(STILL, 512, FAST_ETHERNET),
    plan(COUNTER, 512, FAST_ETHERNET),
    plan(RANDOM, 512, FAST_ETHERNET),
    plan(STUDY, 512, FAST_ETHERNET).study(),
    plan(STUDY_TEXT, 512, FAST_ETHERNET).study(),
];

const fn plan(guest: Guest, memory_mib: u64, speed: Speed) -> Plan {
    Plan {
        guest,
        memory_mib,
        speed,
        limit: LIMIT,
        is_quick: false,
        runs_max: u32::MAX,
        subjects: &[],
    }
}

impl Plan {
    const fn quick(self) -> Self {
        Self {
            is_quick: true,
            ..self
        }
    }

    const fn study(self) -> Self {
        Self {
            limit: STUDY_LIMIT,
            runs_max: STUDY_RUNS,
            subjects: STUDY_SUBJECTS,
            ..self
        }
    }

    /// The case's name.
    pub fn name(&self) -> String {
        let link = self.speed.name();
        format!("{}-{}@{link}", self.guest.name, self.memory_mib)
    }

    /// Whether a subject is measured.
    pub fn wants(&self, subject: &str) -> bool {
        self.subjects.is_empty() || self.subjects.contains(&subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cases_say_guest_memory_and_link_and_are_distinct() {
        let mut names: Vec<String> = CASES.iter().map(Plan::name).collect();
        for name in ["idle-512@lo", "64-512@1000", "textstill-512@100"] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }
}
