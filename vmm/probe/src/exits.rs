//! The exit benchmark: how fast the VMM answers what it must answer itself.

use pindah_probe::histogram::Histogram;
use pindah_probe::options::{ExitKind, Options};

use crate::machine::{self, Registers};
use crate::memory::Memory;
use crate::report::Report;
use crate::virtio::queue::Queue;
use crate::virtio::{self, Device};
use crate::window::Window;

/// Exits of one step: some hundred microseconds.
const EXITS_A_STEP: u64 = 16;

#[expect(clippy::large_enum_variant, reason = "there is one")]
enum Target {
    Port(u16),
    Register(Registers),
    Doorbell(Device, Queue),
}

/// The benchmark and all that it has counted.
pub struct Exits {
    kind: ExitKind,
    target: Target,
    window: Window,
    seconds: u64,
    count: u64,
    latency: Histogram,
    done: bool,
}

impl Exits {
    /// Finds something to knock at.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(
        kind: ExitKind,
        options: &Options,
        memory: &mut Memory,
        report: &Report,
    ) -> Result<Self, &'static str> {
        let device = || {
            virtio::find(options, 0, |_| true)
                .ok_or("exits: no virtio 1.x device on PCI or on the named MMIO slots")
        };
        let target = match kind {
            ExitKind::Pio => Target::Port(options.exits_port),
            ExitKind::Mmio if options.exits_addr != 0 => {
                let base = crate::paging::map_device(options.exits_addr, 4)
                    .ok_or("exits: cannot map exits_addr")?;
                // SAFETY: the command line says that it is a device's register; it is mapped.
                Target::Register(unsafe { Registers::new(base, 4) })
            }
            ExitKind::Mmio => Target::Register(device()?.idle_register()),
            ExitKind::Notify => {
                let device = device()?;
                device.begin(0)?;
                let queue = device.queue(0, 16, memory)?;
                device.ready();
                Target::Doorbell(device, queue)
            }
        };
        Ok(Self {
            kind,
            target,
            window: Window::new(report.clock, machine::tsc(), options.exits_s),
            seconds: options.exits_s,
            count: 0,
            latency: Histogram::new(),
            done: false,
        })
    }

    /// Starts the clock.
    pub fn start(&mut self, report: &Report) {
        self.window = Window::new(report.clock, machine::tsc(), self.seconds);
    }

    /// Some exits. True if there is more to do at once.
    pub fn step(&mut self, report: &mut Report) -> bool {
        if self.done {
            return false;
        }
        let mut last = machine::tsc();
        for _ in 0..EXITS_A_STEP {
            match &self.target {
                Target::Port(port) => machine::out8(*port, 0),
                Target::Register(register) => {
                    register.read32(0);
                }
                Target::Doorbell(device, queue) => device.notify(queue),
            }
            let now = machine::tsc();
            self.latency.record(now.saturating_sub(last));
            last = now;
        }
        self.count += EXITS_A_STEP;
        if self.window.over(last) {
            self.done = true;
            self.report(report, last);
        }
        !self.done
    }

    fn report(&self, report: &mut Report, now: u64) {
        let line = report
            .line("exits")
            .text("kind", self.kind.name())
            .num("count", self.count)
            .num("exits_s", self.window.per_second(now, self.count));
        self.window.latencies(line, &self.latency).finish();
    }
}
