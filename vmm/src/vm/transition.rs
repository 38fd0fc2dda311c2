//! Run, pause, reset: vCPUs and devices in their order.
//!
//! Devices start before vCPUs and stop after them, so that no driver ever finds its device
//! parked. Whoever calls holds [`Life::begin`](super::lifecycle::Life::begin)'s guard.

use std::error::Error;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use pindah_vmm_api::{EventKind, Initiator, PauseReason, ResetPolicy, RunState};
use thiserror::Error;
use vm_memory::GuestMemoryError;

use super::lifecycle::Request;
use super::machine::ExitReason;
use super::ownership::OwnershipError;
use super::{Vm, saving};
use crate::boot::{self, BootResources, LoadError};
use crate::vcpu::{Crash, Vcpu, VcpuError};

/// How long the lock of an image may take to become free.
const OWNERSHIP_PATIENCE: Duration = Duration::from_secs(2);

/// Why a machine does not start anew.
#[derive(Debug, Error)]
pub enum StartError {
    /// The kernel or the firmware cannot be loaded.
    #[error("cannot load what the guest boots")]
    Load(#[from] LoadError),
    /// There is no RAM where the tables belong.
    #[error("cannot write ACPI tables")]
    Tables(#[from] GuestMemoryError),
    /// Somebody else runs the guest.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// A vCPU does not take its first state.
    #[error("cannot set the first state of a vCPU")]
    Vcpu(#[from] VcpuError),
    /// KVM does not take the first state of its devices.
    #[error("cannot set the first state of KVM's interrupt controllers and timer")]
    Kvm(#[from] kvm_ioctls::Error),
}

impl Vm {
    /// Takes the right to run the guest: the locks of all disk images. Waits a little for one that
    /// is taken: the kernel closes the files of a process that was killed only when its io_uring
    /// has wound up, after the process is gone.
    ///
    /// # Errors
    /// [`StartError::Ownership`] naming the image.
    pub fn own(&self) -> Result<(), StartError> {
        Ok(self.ownership.take(OWNERSHIP_PATIENCE)?)
    }

    /// Puts the machine into its state after power-on, with what it boots in RAM.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn boot(&self) -> Result<(), StartError> {
        let rsdp = match self.boot {
            BootResources::Direct(_) => Some(self.platform.install_tables(&self.memory)?),
            BootResources::Firmware(_) => None,
        };
        let ram_bytes = self.config.memory.size_mib << 20;
        let entry = self.boot.load(&self.memory, ram_bytes, rsdp)?;
        saving::restore_kvm_devices(&self.kvm.vm, &self.power_on.irqchips, &self.power_on.pit)?;
        let mut states = self.power_on.vcpus.clone();
        if let Some(first) = states.first_mut() {
            boot::apply(&entry, &mut first.sregs, &mut first.regs);
        }
        self.restore_vcpus(states)?;
        Ok(())
    }

    /// Runs the guest until it ends. Call once, after [`Self::boot`] or a restore.
    pub fn run(&self) -> ExitReason {
        {
            let _transition = self.life.begin();
            self.start();
        }
        self.serve_requests()
    }

    /// Waits for the guest's end, whether it runs yet or not. Call once, on a machine that a
    /// migration is to start.
    pub fn serve_requests(&self) -> ExitReason {
        let requests = self
            .requests
            .lock()
            .expect("only one thread runs a machine");
        loop {
            let Ok((power_cycle, request)) = requests.recv() else {
                return ExitReason::HostError;
            };
            if let Some(reason) = self.serve(power_cycle, request) {
                return reason;
            }
        }
    }

    fn serve(&self, power_cycle: u64, request: Request) -> Option<ExitReason> {
        let _transition = self.life.begin();
        if request.is_of_guest() && power_cycle != self.requester.power_cycle() {
            return None;
        }
        if request.is_of_guest() {
            let mut now = self.life.now();
            if now.is_moving() || now.state == RunState::Created {
                now.deferred.push(request);
                return None;
            }
        }
        self.requester.close(&request);
        match request {
            Request::PowerOff(by) => {
                self.end(RunState::Stopped);
                self.events.publish(EventKind::ShutDown { by });
                Some(ExitReason::ShutDown(by))
            }
            Request::Reset if self.config.on_reset == ResetPolicy::Exit => {
                self.end(RunState::Stopped);
                let by = Initiator::Guest;
                self.events.publish(EventKind::Reset { by });
                Some(ExitReason::ResetRequested)
            }
            Request::Reset => match self.restart(Initiator::Guest) {
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn Error,
                        "the machine cannot start anew"
                    );
                    self.end(RunState::Crashed);
                    Some(ExitReason::HostError)
                }
            },
            Request::Pause {
                device,
                reason,
                no_space,
            } => {
                let (id, message) = (device.clone(), reason.clone());
                self.events.publish(EventKind::DiskError { id, message });
                self.life.now().locks_in_doubt |= !no_space;
                self.stop(PauseReason::Device {
                    id: device,
                    message: reason,
                    no_space,
                });
                None
            }
            Request::Leave => {
                self.end(RunState::Stopped);
                Some(ExitReason::Migrated)
            }
            Request::Dismiss => {
                self.end(RunState::Stopped);
                Some(ExitReason::HostError)
            }
            Request::Crash(crash) => {
                self.crashed(crash);
                Some(ExitReason::GuestCrashed)
            }
        }
    }

    fn crashed(&self, crash: Crash) {
        let Crash {
            index,
            reason,
            registers,
        } = crash;
        tracing::error!(vcpu = index, %reason, "the guest crashed");
        if let Some(registers) = &registers {
            tracing::error!("registers: {registers:x?}");
        }
        self.end(RunState::Crashed);
        self.events.publish(EventKind::Crashed {
            reason: reason.to_string(),
            vcpu: index,
            registers: registers.map(Box::new),
        });
    }

    /// Devices, then vCPUs. Does nothing to a machine that runs or has ended.
    pub(super) fn start(&self) {
        if !matches!(self.life.now().state, RunState::Created | RunState::Paused) {
            return;
        }
        for device in &self.virtio {
            device.resume();
        }
        let (first, deferred) = {
            let mut now = self.life.now();
            (now.set_running(), std::mem::take(&mut now.deferred))
        };
        for request in deferred {
            self.requester.send(request);
        }
        for vcpu in &self.vcpus {
            vcpu.resume();
        }
        self.events.publish(if first {
            EventKind::Started
        } else {
            EventKind::Resumed
        });
    }

    /// vCPUs, then devices; nothing is in flight afterwards and RAM is at rest. Does nothing to
    /// a machine that does not run.
    pub(super) fn stop(&self, reason: PauseReason) {
        if self.life.now().state != RunState::Running {
            return;
        }
        self.park();
        self.life.now().set_paused(reason.clone());
        self.events.publish(EventKind::Paused { reason });
    }

    fn end(&self, state: RunState) {
        if self.life.now().state == RunState::Running {
            self.park();
        }
        let is_lost = self.life.now().is_lost();
        self.life.now().set_ended(state);
        // Whoever starts the guest next need not wait until this process is gone. Where a device
        // may wait for a page that never comes, the kernel gives the locks up with the process.
        if !is_lost {
            self.ownership.give_up();
        }
        // What the guest wrote last reaches its readers before the process ends.
        self.platform.serial_host.close();
        if let Some(console) = &self.handles.console {
            console.close();
        }
    }

    fn park(&self) {
        let parked: Vec<_> = self.vcpus.iter().map(Vcpu::begin_pause).collect();
        for answer in parked {
            answer.recv().expect("a vCPU's thread answers");
        }
        for device in &self.virtio {
            device.pause();
        }
        // What devices wrote on other threads is there for whoever reads RAM now.
        fence(Ordering::SeqCst);
    }

    /// Resets the machine; it runs afterwards if it ran before.
    pub(super) fn restart(&self, by: Initiator) -> Result<(), StartError> {
        let ran = self.life.now().state == RunState::Running;
        if ran {
            self.park();
        }
        self.requester.begin_power_cycle();
        for device in &self.virtio {
            device.reset();
        }
        self.platform.reset();
        self.boot()?;
        self.events.publish(EventKind::Reset { by });
        if ran {
            for device in &self.virtio {
                device.resume();
            }
            for vcpu in &self.vcpus {
                vcpu.resume();
            }
        }
        Ok(())
    }
}
