//! The lines that tell what the vCPUs do.

use core::sync::atomic::Ordering::Relaxed;

use pindah_probe::json::Line;
use pindah_probe::options::Options;

use crate::boot_info::BootInfo;
use crate::machine;
use crate::serial::{Output, RING};
use crate::shared::{EVENT_BAD_PAGE, EVENT_GAP, SETTINGS, STATS, sum};
use crate::tsc::Clock;

/// Writes lines, and keeps what must be known from line to line.
pub struct Report {
    pub out: Output,
    pub clock: Clock,
    runner_port: u16,
    cpus: usize,
    beats: u64,
    gap_max_total: u64,
}

impl Report {
    /// A report at its start.
    pub fn new(clock: Clock, options: &Options, ring: &'static mut [u8; RING]) -> Self {
        Self {
            out: Output::new(ring),
            clock,
            runner_port: options.runner_port,
            cpus: options.cpus as usize,
            beats: 0,
            gap_max_total: 0,
        }
    }

    /// A line of this moment.
    pub fn line(&mut self, event: &str) -> Line<'_, Output> {
        let now = self.clock.us(machine::tsc());
        Line::new(&mut self.out, now, event)
    }

    /// The first line, whose brace the entry has sent.
    pub fn start(&mut self, info: &BootInfo, options: &Options, ram_bytes: u64, entry_us: u64) {
        let clock = self.clock;
        Line::opened(&mut self.out, clock.us(machine::tsc()), "start")
            .text("version", env!("CARGO_PKG_VERSION"))
            .text("protocol", info.protocol)
            .num("tsc_khz", clock.hz / 1000)
            .text("tsc_from", clock.source)
            .num("ram_mib", ram_bytes >> 20)
            .num("cpus", options.cpus)
            .num("ws_mib", options.ws_mib)
            .num("tick_us", options.tick_us)
            .num("setup_us", entry_us)
            .text("cmdline", info.command_line())
            .finish();
    }

    /// The heartbeat.
    pub fn beat(&mut self, verify: bool) {
        let gap_max = STATS
            .iter()
            .map(|stats| stats.gap_max.swap(0, Relaxed))
            .max()
            .unwrap_or(0);
        self.gap_max_total = self.gap_max_total.max(gap_max);
        let (clock, seq, total) = (self.clock, self.beats, self.gap_max_total);
        self.beats += 1;
        let runner = machine::in32(self.runner_port);
        let line = self
            .line("beat")
            .num("seq", seq)
            .num("steps", sum(|stats| &stats.steps))
            .num("pages", sum(|stats| &stats.dirtied))
            .num("gap_max_us", clock.span_us(gap_max))
            .num("gap_max_total_us", clock.span_us(total));
        let line = match runner {
            u32::MAX => line.num("runner", "null"),
            runner => line.num("runner", runner),
        };
        if verify {
            line.num("checked", sum(|stats| &stats.checked))
                .num("bad", sum(|stats| &stats.bad))
                .finish();
        } else {
            line.finish();
        }
    }

    /// What the vCPUs have to tell since the last call.
    pub fn events(&mut self) {
        for (cpu, stats) in STATS[..self.cpus].iter().enumerate() {
            while let Some(event) = stats.events.get() {
                self.event(cpu, event);
            }
        }
    }

    fn event(&mut self, cpu: usize, event: crate::shared::Event) {
        let clock = self.clock;
        let [kind, first, second, third, fourth, fifth, _] = event;
        match kind {
            EVENT_GAP => self
                .line("gap")
                .num("cpu", cpu)
                .num("start_us", clock.us(first))
                .num("len_us", clock.span_us(second))
                .num("slept_us", clock.span_us(third))
                .finish(),
            EVENT_BAD_PAGE => self
                .line("bad_page")
                .num("cpu", cpu)
                .hex("gpa", first)
                .num("page", second)
                .num("generation", third)
                .hex("expected", fourth)
                .hex("found", fifth)
                .finish(),
            _ => self
                .line("clock_back")
                .num("cpu", cpu)
                .num("back_us", clock.span_us(second))
                .finish(),
        }
    }

    /// What a person asks for.
    pub fn status(&mut self, options: &Options, pages: u64) {
        let rate = SETTINGS.rate_mib_s.load(Relaxed);
        let online = STATS.iter().filter(|stats| stats.online.load(Relaxed));
        let online = online.count();
        self.line("status")
            .num("cpus", online)
            .num("pages", pages)
            .text("content", options.content.name())
            .num("rate_mib_s", rate.cast_signed())
            .num("spin", u8::from(SETTINGS.spin.load(Relaxed)))
            .num("verify", u8::from(SETTINGS.verify.load(Relaxed)))
            .num("gap_us", SETTINGS.gap_us.load(Relaxed))
            .num("beat_ms", options.beat_ms)
            .num("dirtied", sum(|stats| &stats.dirtied))
            .num("checked", sum(|stats| &stats.checked))
            .num("bad", sum(|stats| &stats.bad))
            .finish();
    }

    /// The outcome of a full verification.
    pub fn verified(&mut self, number: u64, pages: u64) {
        let bad = sum(|stats| &stats.bad);
        let checked = sum(|stats| &stats.checked);
        self.line("verify")
            .num("number", number)
            .num("pages", pages)
            .num("checked_total", checked)
            .num("bad_total", bad)
            .finish();
    }
}
