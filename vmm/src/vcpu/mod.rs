//! vCPUs: one thread each, parked or running.
//!
//! ```text
//!          resume                 crash
//! parked ─────────► running ──────────────► parked, and the machine is told
//!    ▲                 │ pause: kick, answer
//!    └─────────────────┘
//! ```
//! A parked thread waits on its channel and does what it is told: save, restore, resume. The
//! thread owns the descriptor, so nothing can touch the registers of a vCPU that runs.

mod exit;
mod run;
mod state;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use pindah_vmm_api::Registers;
use vmm_sys_util::signal::Killable;

pub use exit::{CrashReason, ExitCounters};
pub use run::Buses;
pub use state::{MsrSet, StateShape, VcpuError, VcpuState};

use crate::sandbox::{self, ThreadKind};
use run::{Kicks, Runner, Stop};

/// What a vCPU tells the machine when it cannot go on.
#[derive(Clone, Debug)]
pub struct Crash {
    /// Which vCPU.
    pub index: u8,
    /// Why.
    pub reason: CrashReason,
    /// Its registers, if KVM gave them.
    pub registers: Option<Registers>,
}

enum Command {
    Resume,
    Hold(Duration),
    Pause(Sender<()>),
    Save(Sender<Result<VcpuState, VcpuError>>),
    Restore(Box<VcpuState>, Sender<Result<(), VcpuError>>),
}

/// The handle to a vCPU's thread. The thread ends when this is dropped.
pub struct Vcpu {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    exits: Arc<ExitCounters>,
    /// It was told to stay out of the guest, and has not been in it since.
    held: Arc<AtomicBool>,
}

/// What a vCPU's thread starts with.
pub struct VcpuSetup {
    /// Number of the vCPU, which is its APIC id's index too.
    pub index: u8,
    /// Its descriptor.
    pub fd: VcpuFd,
    /// What CPUID answers, as it was set.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// What its state consists of on this host.
    pub shape: StateShape,
    /// Where its accesses go.
    pub buses: Buses,
    /// Called on the vCPU's thread when it cannot go on; must not wait for that thread.
    pub on_crash: Box<dyn Fn(Crash) + Send>,
}

impl Vcpu {
    /// Starts the thread, parked.
    ///
    /// # Errors
    /// The host refuses a thread or the signal's handler.
    pub fn spawn(setup: VcpuSetup) -> io::Result<Self> {
        run::register_kick_handler().map_err(io::Error::from)?;
        let (commands, receiver) = channel();
        let exits = Arc::new(ExitCounters::default());
        let counters = Arc::clone(&exits);
        let held = Arc::new(AtomicBool::new(false));
        let is_held = Arc::clone(&held);
        let name = format!("vcpu{}", setup.index);
        let thread = sandbox::spawn(&name, ThreadKind::Vcpu, move || {
            Thread::new(setup, counters, is_held).serve(&receiver);
        })?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
            exits,
            held,
        })
    }

    fn send(&self, command: Command) {
        let commands = self.commands.as_ref().expect("only drop takes it");
        commands
            .send(command)
            .expect("the thread ends only on drop");
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.send(Command::Resume);
    }

    /// Asks the vCPU to park; the receiver hears when it has. Ask all first, then wait.
    pub fn begin_pause(&self) -> Receiver<()> {
        let (reply, answer) = channel();
        self.send(Command::Pause(reply));
        self.kick();
        answer
    }

    /// Keeps a running vCPU out of the guest for so long, or until the next command. Returns
    /// false, and does nothing, if it has not been in the guest since it was last held: on a busy
    /// host it wakes late, and must not be held for good.
    pub fn hold(&self, time: Duration) -> bool {
        if self.held.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.send(Command::Hold(time));
        self.kick();
        true
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // It may have just ended, and then there is nothing to kick.
            let _ = thread.kill(run::kick_signal());
        }
    }

    /// State of a parked vCPU; begun for all, then awaited.
    pub fn begin_save(&self) -> Receiver<Result<VcpuState, VcpuError>> {
        let (reply, answer) = channel();
        self.send(Command::Save(reply));
        answer
    }

    /// Replaces the state of a parked vCPU; begun for all, then awaited.
    pub fn begin_restore(&self, state: VcpuState) -> Receiver<Result<(), VcpuError>> {
        let (reply, answer) = channel();
        self.send(Command::Restore(Box::new(state), reply));
        answer
    }

    /// Exits so far.
    pub fn exits(&self) -> &ExitCounters {
        &self.exits
    }

    /// Processor time that the thread has used, in the guest and in the kernel on its behalf.
    pub fn cpu_time(&self) -> Duration {
        self.thread
            .as_ref()
            .and_then(|thread| thread_cpu_time(thread.as_pthread_t()))
            .unwrap_or_default()
    }
}

fn thread_cpu_time(thread: libc::pthread_t) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the thread is joined only after its handle is dropped.
    if unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) } != 0 {
        return None;
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is ours to write.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Thread {
    setup: VcpuSetup,
    exits: Arc<ExitCounters>,
    held: Arc<AtomicBool>,
}

impl Thread {
    fn new(setup: VcpuSetup, exits: Arc<ExitCounters>, held: Arc<AtomicBool>) -> Self {
        Self { setup, exits, held }
    }

    /// Until the handle goes.
    fn serve(mut self, commands: &Receiver<Command>) {
        let _kicks = Kicks::reach(&mut self.setup.fd);
        let mut running = false;
        let (mut held, mut was_held) = (Duration::ZERO, false);
        loop {
            // A command that comes after this look kicks, and the kick makes the next entry
            // return at once: none waits while the guest runs.
            let command = if running {
                match commands.recv_timeout(std::mem::take(&mut held)) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => {
                        if std::mem::take(&mut was_held) {
                            self.held.store(false, Ordering::Release);
                        }
                        running = self.run();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match commands.recv() {
                    Ok(command) => command,
                    Err(_) => return,
                }
            };
            match command {
                Command::Resume => {
                    // The guest's watchdogs must not take the time that it stood for a lockup. A
                    // guest without kvmclock has no such flag, and that is fine.
                    let _ = self.setup.fd.kvmclock_ctrl();
                    running = true;
                }
                Command::Hold(time) => {
                    was_held = true;
                    if running {
                        held = time;
                    }
                }
                Command::Pause(reply) => {
                    running = false;
                    let _ = reply.send(());
                }
                Command::Save(reply) => {
                    let VcpuSetup {
                        fd, shape, cpuid, ..
                    } = &self.setup;
                    let _ = reply.send(state::save(fd, shape, cpuid));
                }
                Command::Restore(state, reply) => {
                    self.complete_access();
                    let VcpuSetup {
                        fd, shape, cpuid, ..
                    } = &self.setup;
                    let restored = state::restore(fd, shape, cpuid, &state);
                    self.setup.cpuid = state.cpuid;
                    let _ = reply.send(restored);
                }
            }
        }
    }

    /// Returns whether the vCPU still wants to run.
    fn run(&mut self) -> bool {
        let stop = Runner::new(&mut self.setup.fd, &self.setup.buses, &self.exits).run();
        match stop {
            Stop::Kicked => true,
            Stop::Crashed(reason) => {
                let registers = state::registers(&self.setup.fd);
                (self.setup.on_crash)(Crash {
                    index: self.setup.index,
                    reason,
                    registers,
                });
                false
            }
        }
    }

    fn complete_access(&mut self) {
        Runner::new(&mut self.setup.fd, &self.setup.buses, &self.exits).complete_access();
    }
}
