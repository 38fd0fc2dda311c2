//! The body of a vCPU's thread: enter the guest, hand exits to the bus, return.

use std::cell::Cell;
use std::os::raw::{c_int, c_void};
use std::sync::Arc;

use kvm_bindings::{KVM_EXIT_IO_OUT, KVM_SYSTEM_EVENT_CRASH, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::exit::{CrashReason, ExitCounters};
use crate::bus::Bus;

thread_local! {
    /// This thread's `kvm_run` page, for the signal handler.
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal that takes a vCPU out of the guest.
pub(super) fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler of [`kick_signal`] for the whole process.
pub(super) fn register_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(kick_signal(), handle_kick)
}

/// A kick that lands between two entries must not be lost: it makes the next `KVM_RUN` return at
/// once (KVM API, `immediate_exit`).
extern "C" fn handle_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    KVM_RUN.with(|page| {
        let page = page.get();
        if !page.is_null() {
            // SAFETY: the pointer was set by this very thread from a live mapping, and is taken
            // back before the mapping goes.
            let flag = unsafe { &raw mut (*page).immediate_exit };
            // SAFETY: as above; a byte that the kernel only reads.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// Address spaces that a vCPU reaches.
pub struct Buses {
    /// I/O ports.
    pub port: Arc<Bus>,
    /// Physical addresses that are not RAM.
    pub mmio: Arc<Bus>,
}

/// Why [`Runner::run`] returned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody kicked this vCPU.
    Kicked,
    /// It cannot go on.
    Crashed(CrashReason),
}

/// A vCPU on the thread that runs it.
pub(super) struct Runner<'a> {
    fd: &'a mut VcpuFd,
    buses: &'a Buses,
    exits: &'a ExitCounters,
}

impl<'a> Runner<'a> {
    /// For one entry or several.
    pub fn new(fd: &'a mut VcpuFd, buses: &'a Buses, exits: &'a ExitCounters) -> Self {
        Self { fd, buses, exits }
    }

    /// Runs the guest until somebody kicks it or it cannot go on. After a kick no port or MMIO
    /// access is half done: KVM finishes it before it looks at `immediate_exit`.
    pub fn run(&mut self) -> Stop {
        loop {
            let stop = match self.fd.run() {
                Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                    self.port_access();
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    ExitCounters::count(&self.exits.mmio_read);
                    self.buses.mmio.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    ExitCounters::count(&self.exits.mmio_write);
                    self.buses.mmio.write(address, data);
                    continue;
                }
                Ok(VcpuExit::Intr) => Some(Stop::Kicked),
                Ok(VcpuExit::Hlt) => {
                    ExitCounters::count(&self.exits.halt);
                    continue;
                }
                Ok(VcpuExit::Shutdown) => Some(Stop::Crashed(CrashReason::TripleFault)),
                Ok(VcpuExit::FailEntry(hardware_reason, _)) => {
                    Some(Stop::Crashed(CrashReason::FailEntry { hardware_reason }))
                }
                Ok(VcpuExit::InternalError) => Some(Stop::Crashed(self.internal_error())),
                Ok(VcpuExit::SystemEvent(kind, _)) => {
                    let exit = match kind {
                        KVM_SYSTEM_EVENT_CRASH => "system event: crash".to_owned(),
                        other => format!("system event {other}"),
                    };
                    Some(Stop::Crashed(CrashReason::Unexpected { exit }))
                }
                Ok(exit) => Some(Stop::Crashed(CrashReason::Unexpected {
                    exit: format!("{exit:?}"),
                })),
                Err(error) if error.errno() == libc::EINTR => {
                    self.fd.set_kvm_immediate_exit(0);
                    Some(Stop::Kicked)
                }
                // A vCPU that waits for its start-up message has just got its INIT.
                Err(error) if error.errno() == libc::EAGAIN => None,
                Err(error) => Some(Stop::Crashed(CrashReason::Run {
                    errno: error.errno(),
                })),
            };
            match stop {
                Some(Stop::Kicked) => {
                    ExitCounters::count(&self.exits.interrupted);
                    return Stop::Kicked;
                }
                Some(crashed) => return crashed,
                None => ExitCounters::count(&self.exits.other),
            }
        }
    }

    /// Finishes the port or MMIO access that the last exit left half done, so that the registers
    /// can be read or replaced: `KVM_RUN` that returns at once (KVM API, `KVM_EXIT_IO`).
    pub fn complete_access(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn internal_error(&mut self) -> CrashReason {
        // SAFETY: the exit reason says that this member of the union is the one in use.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        CrashReason::InternalError {
            suberror: internal.suberror,
        }
    }

    /// A port exit carries `count` items of `size` bytes: string instructions have several, and
    /// each is an access of its own to the same port.
    fn port_access(&mut self) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason says that this member of the union is the one in use.
        let io = unsafe { run.__bindgen_anon_1.io };
        let (size, count) = (usize::from(io.size), io.count as usize);
        if size == 0 {
            return;
        }
        let base = (&raw mut *run).cast::<u8>();
        // SAFETY: KVM puts the data inside the mapping of the `kvm_run` page.
        let start = unsafe { base.add(io.data_offset as usize) };
        // SAFETY: it is `size * count` bytes long, and nobody else refers to it until the next
        // entry.
        let data = unsafe { std::slice::from_raw_parts_mut(start, size * count) };
        let port = u64::from(io.port);
        let items = data.chunks_exact_mut(size);
        if u32::from(io.direction) == KVM_EXIT_IO_OUT {
            ExitCounters::count(&self.exits.io_out);
            items.for_each(|item| {
                self.buses.port.write(port, item);
            });
        } else {
            ExitCounters::count(&self.exits.io_in);
            items.for_each(|item| {
                self.buses.port.read(port, item);
            });
        }
    }
}

/// While this lives, a kick of this thread reaches its vCPU, wherever the thread is: in the
/// guest, in a device, or between two entries.
pub(super) struct Kicks;

impl Kicks {
    /// `fd` must stay open until this is dropped.
    pub fn reach(fd: &mut VcpuFd) -> Self {
        KVM_RUN.set(&raw mut *fd.get_kvm_run());
        Self
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        KVM_RUN.set(std::ptr::null_mut());
    }
}
