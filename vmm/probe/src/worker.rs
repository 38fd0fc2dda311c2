//! What every vCPU does: its share of the working set is filled, dirtied and verified in small
//! steps, and each step looks at how long ago the last one was.

use core::sync::atomic::Ordering::Relaxed;

use pindah_probe::content::{self, Mismatch, PAGE_BYTES, Pages};
use pindah_probe::gap::GapWatch;
use pindah_probe::options::RATE_MAX;
use pindah_probe::pace::Pacer;

use crate::apic;
use crate::boot;
use crate::machine;
use crate::memory::WorkingSet;
use crate::shared::{EVENT_BAD_PAGE, EVENT_CLOCK_BACK, EVENT_GAP, SETTINGS, STATS, Stats};
use crate::tsc::Clock;

/// Pages that a step dirties or verifies at most: some ten microseconds.
const PAGES_A_STEP: u64 = 16;
const PAGES_A_MIB: u64 = (1 << 20) / PAGE_BYTES;

/// What all workers are made from.
#[derive(Clone, Copy)]
pub struct Plan {
    pub set: WorkingSet,
    pub pages: Pages,
    pub clock: Clock,
    pub cpus: u64,
    pub tick_us: u64,
    pub verify_mib_s: u64,
}

/// One vCPU's work.
pub struct Worker {
    plan: Plan,
    stats: &'static Stats,
    first: u64,
    count: u64,
    filled: u64,
    dirty_next: u64,
    verify_next: u64,
    rate_mib_s: u64,
    dirty_pacer: Pacer,
    verify_pacer: Pacer,
    full_left: u64,
    full_number: u64,
    gaps: GapWatch,
    ticking: bool,
}

impl Worker {
    /// The work of vCPU `cpu`. Each has its own share, so that no page has two writers.
    pub fn new(plan: &Plan, cpu: u64) -> Self {
        let now = machine::tsc();
        let first = plan.set.pages() * cpu / plan.cpus;
        let end = plan.set.pages() * (cpu + 1) / plan.cpus;
        let verify_pages = plan.verify_mib_s * PAGES_A_MIB / plan.cpus;
        let stats = &STATS[cpu as usize];
        stats.online.store(true, Relaxed);
        Self {
            plan: *plan,
            stats,
            first,
            count: end - first,
            filled: 0,
            dirty_next: 0,
            verify_next: 0,
            rate_mib_s: 0,
            dirty_pacer: Pacer::new(0, plan.clock.hz, now),
            verify_pacer: Pacer::new(verify_pages, plan.clock.hz, now),
            full_left: 0,
            full_number: 0,
            gaps: GapWatch::new(now),
            ticking: false,
        }
    }

    /// One step; true if there is more to do at once.
    pub fn step(&mut self) -> bool {
        let now = machine::tsc();
        self.watch_gap(now);
        self.stats.steps.fetch_add(1, Relaxed);
        if self.filled < self.count {
            return self.fill();
        }
        let dirtying = self.dirty(now);
        let verifying = self.verify(now);
        dirtying || verifying
    }

    /// After a step with nothing more to do: sleep until the tick, or go on if told to spin.
    pub fn rest(&mut self) {
        if SETTINGS.spin.load(Relaxed) {
            if self.ticking {
                apic::stop_tick();
                self.ticking = false;
            }
            core::hint::spin_loop();
            return;
        }
        if !self.ticking {
            apic::start_tick(self.plan.tick_us);
            self.ticking = true;
        }
        self.gaps.sleeps(self.plan.clock.cycles(self.plan.tick_us));
        boot::sleep_until_interrupt();
        apic::end_of_interrupt();
    }

    fn watch_gap(&mut self, now: u64) {
        if let Some(back) = self.gaps.went_back(now) {
            self.stats
                .events
                .put([EVENT_CLOCK_BACK, now, back, 0, 0, 0, 0]);
        }
        let threshold = self.plan.clock.cycles(SETTINGS.gap_us.load(Relaxed));
        let gap = self.gaps.step(now, threshold);
        let max = self.gaps.take_max();
        if self.filled < self.count {
            // Pages that are touched for the first time cost what the host's allocator costs.
            return;
        }
        if let Some(gap) = gap {
            self.stats
                .events
                .put([EVENT_GAP, gap.start, gap.len, gap.slept, 0, 0, 0]);
        }
        self.stats.gap_max.fetch_max(max, Relaxed);
    }

    fn fill(&mut self) -> bool {
        for _ in 0..PAGES_A_STEP.min(self.count - self.filled) {
            let page = self.first + self.filled;
            // SAFETY: the page is in this vCPU's share; no other reference to it is alive.
            let words = unsafe { self.plan.set.words(page) };
            self.plan.pages.fill(words, page, 0);
            self.filled += 1;
        }
        self.stats.filled.store(self.filled == self.count, Relaxed);
        true
    }

    fn dirty(&mut self, now: u64) -> bool {
        let rate = SETTINGS.rate_mib_s.load(Relaxed);
        if rate != self.rate_mib_s {
            self.rate_mib_s = rate;
            let pages_s = if rate == RATE_MAX {
                RATE_MAX
            } else {
                rate * PAGES_A_MIB * self.count / self.plan.set.pages().max(1)
            };
            self.dirty_pacer = Pacer::new(pages_s, self.plan.clock.hz, now);
        }
        if self.rate_mib_s == 0 || self.count == 0 {
            return false;
        }
        let verify = SETTINGS.verify.load(Relaxed);
        let due = self.dirty_pacer.take(now, PAGES_A_STEP);
        for _ in 0..due {
            let page = self.first + self.dirty_next;
            self.dirty_next = (self.dirty_next + 1) % self.count;
            // SAFETY: the page is in this vCPU's share; no other reference to it is alive.
            let words = unsafe { self.plan.set.words(page) };
            // SAFETY: as above.
            let generation = unsafe { self.plan.set.generation(page) };
            if verify && let Err(mismatch) = content::check_stamp(words, page, *generation) {
                self.report_bad(page, *generation, mismatch);
            }
            *generation = generation.wrapping_add(1);
            self.plan.pages.dirty(words, page, *generation);
        }
        self.stats.dirtied.fetch_add(due, Relaxed);
        self.dirty_pacer.behind()
    }

    fn verify(&mut self, now: u64) -> bool {
        let wanted = SETTINGS.full_verify.load(Relaxed);
        if wanted != self.full_number && self.full_left == 0 {
            self.full_number = wanted;
            self.full_left = self.count;
            self.verify_next = 0;
        }
        let full = self.full_left > 0;
        let due = if full {
            self.full_left.min(PAGES_A_STEP)
        } else if SETTINGS.verify.load(Relaxed) && self.count > 0 {
            self.verify_pacer.take(now, PAGES_A_STEP)
        } else {
            0
        };
        for _ in 0..due {
            let page = self.first + self.verify_next;
            self.verify_next = (self.verify_next + 1) % self.count;
            // SAFETY: the page is in this vCPU's share; no other reference to it is alive.
            let words = unsafe { self.plan.set.words(page) };
            // SAFETY: as above.
            let generation = unsafe { *self.plan.set.generation(page) };
            if let Err(mismatch) = self.plan.pages.check(words, page, generation) {
                self.report_bad(page, generation, mismatch);
                // Reported once: from here on the page is as it should be.
                self.plan.pages.fill(words, page, generation);
            }
        }
        self.stats.checked.fetch_add(due, Relaxed);
        if full {
            self.full_left -= due;
        }
        if self.full_left == 0 {
            self.stats.full_done.store(self.full_number, Relaxed);
        }
        self.full_left > 0 || (due == PAGES_A_STEP && self.verify_pacer.behind())
    }

    fn report_bad(&self, page: u64, generation: u32, mismatch: Mismatch) {
        self.stats.bad.fetch_add(1, Relaxed);
        self.stats.events.put([
            EVENT_BAD_PAGE,
            self.plan.set.gpa(page) + mismatch.offset,
            page,
            u64::from(generation),
            mismatch.expected,
            mismatch.found,
            0,
        ]);
    }
}
