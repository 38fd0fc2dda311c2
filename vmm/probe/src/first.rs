//! The first vCPU: sets all up, then works as the others do and besides beats, prints, listens
//! and drives the devices.

use core::sync::atomic::Ordering::Relaxed;

use pindah_probe::command::LineBuffer;
use pindah_probe::content::{PAGE_BYTES, Pages};
use pindah_probe::json::Line;
use pindah_probe::options::{Exit, Options};

use crate::boot_info::BootInfo;
use crate::exits::Exits;
use crate::memory::{Memory, WorkingSet};
use crate::report::Report;
use crate::shared::{SETTINGS, STATS, sum};
use crate::tsc::Clock;
use crate::virtio::blk::Blk;
use crate::virtio::net::Net;
use crate::worker::{Plan, Worker};
use crate::{apic, boot, end, machine, serial, smp};

/// Bytes that one step sends: each is an exit of some microseconds.
const BYTES_A_STEP: usize = 8;
/// How often the line is asked for input.
const LISTEN_MS: u64 = 10;

/// Ring 3 starts here.
#[unsafe(no_mangle)]
extern "C" fn first_main(protocol: u32, info: u64) -> ! {
    let start = machine::tsc();
    boot::fill_idt();
    serial::init();
    apic::mask_pics();
    apic::enable();
    let info = match BootInfo::read(protocol, info) {
        Ok(info) => info,
        Err(message) => refuse(message),
    };
    let options = match Options::parse(info.command_line()) {
        Ok(options) => options,
        Err(error) => refuse(error),
    };
    First::set_up(start, &info, &options).run()
}

/// Ends before the first line is out: its brace is used for the error.
fn refuse(message: impl core::fmt::Display) -> ! {
    Line::opened(&mut serial::Direct, 0, "error")
        .text("message", message)
        .finish();
    end::leave(Exit::Reset, &Options::default())
}

/// The first vCPU's state.
pub struct First {
    pub options: Options,
    pub report: Report,
    pub worker: Worker,
    pub set: WorkingSet,
    setup_end: u64,
    next_beat: u64,
    next_listen: u64,
    ready: bool,
    full_reported: u64,
    pub leaving: Option<Exit>,
    pub input: LineBuffer,
    blk: Option<Blk>,
    net: Option<Net>,
    exits: Option<Exits>,
}

impl First {
    fn set_up(start: u64, info: &BootInfo, options: &Options) -> Self {
        SETTINGS.take(options);
        let clock = Clock::new(start);
        let mut memory = Memory::new(info);
        let ring = memory.take_slice(serial::RING);
        let Some(ring) = ring.and_then(|ring| ring.try_into().ok()) else {
            refuse("there is no RAM above the image")
        };
        let mut report = Report::new(clock, options, ring);
        report.start(info, options, memory.total(), clock.us(machine::tsc()));
        let blk = options
            .blk
            .then(|| Blk::open(options, &mut memory, &report));
        let blk = blk.map(|blk| accept(blk, &mut report));
        let net = options
            .net
            .then(|| Net::open(options, &mut memory, &report));
        let net = net.map(|net| accept(net, &mut report));
        let exits = options.exits.map(|kind| {
            if options.blk || options.net {
                give_up(&mut report, "exits: not together with blk or net");
            }
            let exits = Exits::open(kind, options, &mut memory, &report);
            accept(exits, &mut report)
        });
        let pages = options.ws_mib * ((1 << 20) / PAGE_BYTES);
        let Some(set) = memory.take_working_set(pages) else {
            give_up(&mut report, "ws_mib: more than there is free RAM")
        };
        let plan = Plan {
            set,
            pages: Pages {
                content: options.content,
                rewrite: options.rewrite,
            },
            clock,
            cpus: options.cpus,
            tick_us: options.tick_us,
            verify_mib_s: options.verify_mib_s,
        };
        match smp::start(&plan, &mut memory) {
            Some(online) if online == options.cpus => {}
            Some(online) => give_up(&mut report, format_args!("cpus: only {online} came up")),
            None => give_up(&mut report, "cpus: no RAM for their stacks"),
        }
        let now = machine::tsc();
        Self {
            options: *options,
            report,
            worker: Worker::new(&plan, 0),
            set,
            setup_end: now,
            next_beat: now,
            next_listen: now,
            ready: false,
            full_reported: 0,
            leaving: None,
            input: LineBuffer::new(),
            blk,
            net,
            exits,
        }
    }

    fn run(mut self) -> ! {
        loop {
            let mut busy = self.worker.step();
            busy |= self.serve();
            if !busy {
                self.worker.rest();
            }
        }
    }

    /// Everything but the work of all vCPUs; true if it has more to do at once.
    fn serve(&mut self) -> bool {
        let now = machine::tsc();
        let clock = self.report.clock;
        self.report.events();
        if now >= self.next_beat {
            // After a blackout one beat, not all that were missed.
            let period = clock.cycles(1000 * self.options.beat_ms);
            self.next_beat = (self.next_beat + period).max(now.saturating_sub(period));
            self.report.beat(SETTINGS.verify.load(Relaxed));
        }
        if now >= self.next_listen && self.listen() {
            self.next_listen = now + clock.cycles(1000 * LISTEN_MS);
        }
        if !self.ready {
            self.watch_filling();
        }
        self.watch_verification();
        let exercising = self.ready && self.exercise();
        if self.leaving.is_none() && self.options.exit_after_ms > 0 {
            let age_ms = clock.us(now) / 1000;
            if age_ms >= self.options.exit_after_ms {
                self.leave(self.options.exit_by);
            }
        }
        let printing = self.report.out.drain(BYTES_A_STEP) && self.report.out.pending();
        printing || exercising
    }

    /// One step of each exercise.
    fn exercise(&mut self) -> bool {
        let report = &mut self.report;
        let blk = self.blk.as_mut().is_some_and(|blk| blk.step(report));
        let net = self.net.as_mut().is_some_and(|net| net.step(report));
        let exits = self.exits.as_mut().is_some_and(|exits| exits.step(report));
        blk || net || exits
    }

    fn watch_filling(&mut self) {
        let cpus = self.options.cpus as usize;
        if self.set.pages() > 0 && !STATS[..cpus].iter().all(|stats| stats.filled.load(Relaxed)) {
            return;
        }
        self.ready = true;
        let clock = self.report.clock;
        let took = clock.span_us(machine::tsc() - self.setup_end);
        let pages = self.set.pages();
        self.report
            .line("ready")
            .num("pages", pages)
            .num("fill_us", took)
            .finish();
        if let Some(blk) = &mut self.blk {
            blk.start(&self.report);
        }
        if let Some(net) = &mut self.net {
            net.start(&self.report);
        }
        if let Some(exits) = &mut self.exits {
            exits.start(&self.report);
        }
    }

    /// Reports a full verification once all vCPUs have done their part, and leaves if it was the
    /// last thing to do.
    fn watch_verification(&mut self) {
        let wanted = SETTINGS.full_verify.load(Relaxed);
        let cpus = self.options.cpus as usize;
        if wanted != self.full_reported
            && STATS[..cpus]
                .iter()
                .all(|stats| stats.full_done.load(Relaxed) == wanted)
        {
            self.full_reported = wanted;
            self.report.verified(wanted, self.set.pages());
        }
        if let Some(how) = self.leaving
            && wanted == self.full_reported
        {
            self.report.beat(true);
            let bad = sum(|stats| &stats.bad);
            self.report.line("end").num("bad_total", bad).finish();
            self.report.out.flush();
            end::leave(how, &self.options);
        }
    }

    /// Leaves, after a full verification if the working set is verified at all.
    pub fn leave(&mut self, how: Exit) {
        self.leaving = Some(how);
        if SETTINGS.verify.load(Relaxed) {
            SETTINGS.full_verify.fetch_add(1, Relaxed);
        }
    }
}

fn accept<T>(device: Result<T, &'static str>, report: &mut Report) -> T {
    device.unwrap_or_else(|message| give_up(report, message))
}

fn give_up(report: &mut Report, message: impl core::fmt::Display) -> ! {
    report.line("error").text("message", message).finish();
    report.out.flush();
    end::leave(Exit::Reset, &Options::default())
}
