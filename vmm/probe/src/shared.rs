//! What the vCPUs share: settings that commands change, and what each vCPU has to tell.

use core::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

use pindah_probe::options::Options;

use crate::boot::CPUS_MAX;

/// Settings that may change while the guest runs.
pub struct Settings {
    pub rate_mib_s: AtomicU64,
    pub gap_us: AtomicU64,
    pub spin: AtomicBool,
    pub verify: AtomicBool,
    /// Number of the full verification that is wanted.
    pub full_verify: AtomicU64,
}

pub static SETTINGS: Settings = Settings {
    rate_mib_s: AtomicU64::new(0),
    gap_us: AtomicU64::new(0),
    spin: AtomicBool::new(false),
    verify: AtomicBool::new(false),
    full_verify: AtomicU64::new(0),
};

impl Settings {
    /// Takes those of `options` that may change.
    pub fn take(&self, options: &Options) {
        self.rate_mib_s.store(options.rate_mib_s, Relaxed);
        self.gap_us.store(options.gap_us, Relaxed);
        self.spin.store(options.spin, Relaxed);
        self.verify.store(options.verify, Relaxed);
    }
}

/// What one vCPU has done.
pub struct Stats {
    pub online: AtomicBool,
    pub filled: AtomicBool,
    pub steps: AtomicU64,
    pub dirtied: AtomicU64,
    pub checked: AtomicU64,
    pub bad: AtomicU64,
    /// Longest gap, in cycles, since it was last taken.
    pub gap_max: AtomicU64,
    /// Number of the last full verification that this vCPU has done.
    pub full_done: AtomicU64,
    pub events: Events,
}

pub static STATS: [Stats; CPUS_MAX] = [const { Stats::new() }; CPUS_MAX];

impl Stats {
    const fn new() -> Self {
        Self {
            online: AtomicBool::new(false),
            filled: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            dirtied: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            gap_max: AtomicU64::new(0),
            full_done: AtomicU64::new(0),
            events: Events::new(),
        }
    }
}

/// Sum of one figure over all vCPUs.
pub fn sum(figure: impl Fn(&Stats) -> &AtomicU64) -> u64 {
    STATS.iter().map(|stats| figure(stats).load(Relaxed)).sum()
}

/// An event as it travels from its vCPU to the first, which prints it.
pub type Event = [u64; 7];
/// Kinds of event, in word 0; the others hold what their lines show.
pub const EVENT_GAP: u64 = 1;
pub const EVENT_BAD_PAGE: u64 = 2;
pub const EVENT_CLOCK_BACK: u64 = 3;

const EVENTS: usize = 16;

/// One writer, one reader; what finds no room is dropped, its count is in the stats all the same.
pub struct Events {
    slots: [[AtomicU64; 7]; EVENTS],
    head: AtomicU64,
    tail: AtomicU64,
}

impl Events {
    const fn new() -> Self {
        Self {
            slots: [const { [const { AtomicU64::new(0) }; 7] }; EVENTS],
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
        }
    }

    /// Tells.
    pub fn put(&self, event: Event) {
        let head = self.head.load(Relaxed);
        if head - self.tail.load(Acquire) == EVENTS as u64 {
            return;
        }
        let slot = &self.slots[head as usize % EVENTS];
        for (word, value) in slot.iter().zip(event) {
            word.store(value, Relaxed);
        }
        self.head.store(head + 1, Release);
    }

    /// Listens.
    pub fn get(&self) -> Option<Event> {
        let tail = self.tail.load(Relaxed);
        if tail == self.head.load(Acquire) {
            return None;
        }
        let slot = &self.slots[tail as usize % EVENTS];
        let event = core::array::from_fn(|word| slot[word].load(Relaxed));
        self.tail.store(tail + 1, Release);
        Some(event)
    }
}
