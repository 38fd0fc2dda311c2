//! The machine as [`Machine`]: what the API may ask of it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use pindah_vmm_api::{
    DeviceInfo, DiskLimits, DiskMetrics, EventKind, Initiator, Metrics, PauseReason, RunState,
    VcpuMetrics, VmConfig, VmInfo,
};

use super::Vm;
use super::events::{Events, now_unix_ms};
use super::lifecycle::Request;
use super::machine::{Machine, MachineError};
use super::migratable::Migratable;
use crate::devices::chardev::Chardev;
use crate::devices::virtio::balloon::BalloonHandle;
use crate::devices::virtio::block::{BlockHandle, ResizeError};

impl Vm {
    /// The state, if `action` is possible in it.
    fn require(
        &self,
        action: &'static str,
        allowed: &[RunState],
    ) -> Result<RunState, MachineError> {
        let state = self.life.now().state;
        if allowed.contains(&state) {
            Ok(state)
        } else {
            Err(MachineError::State { action, state })
        }
    }

    /// While a migration switches over, and as long as it is in doubt where the guest runs.
    fn refuse_while_it_moves(&self, action: &'static str) -> Result<(), MachineError> {
        if self.life.now().is_moving() {
            return Err(MachineError::Moving { action });
        }
        Ok(())
    }

    /// Wins the right to run the guest back, or just takes it.
    fn take_the_guest_back(&self, force: bool) -> Result<(), MachineError> {
        if let Err(error) = self.ownership.win_back(WIN_BACK_PATIENCE) {
            if !force {
                return Err(MachineError::InDoubt(error));
            }
            tracing::warn!(
                "the guest is resumed by force ({error}): if it runs elsewhere too, its disks' \
                 content is lost"
            );
        }
        self.life.now().set_taken();
        Ok(())
    }

    /// Takes the disks' locks anew if the guest stands and they may be lost.
    fn renew_locks(&self) -> Result<(), MachineError> {
        let in_doubt = {
            let now = self.life.now();
            now.state == RunState::Paused && now.locks_in_doubt
        };
        if in_doubt {
            let renewed = self.ownership.renew(WIN_BACK_PATIENCE);
            renewed.map_err(MachineError::Locks)?;
            self.life.now().set_taken();
        }
        Ok(())
    }

    fn console(&self, id: &str) -> Result<&Arc<Chardev>, MachineError> {
        match id {
            "serial" => Some(&self.platform.serial_host),
            "console" => self.handles.console.as_ref(),
            _ => None,
        }
        .ok_or_else(|| MachineError::NoDevice {
            kind: "console",
            id: id.to_owned(),
        })
    }

    /// What it was built from, with the limits that its disks have now.
    pub(super) fn current_config(&self) -> VmConfig {
        let mut config = self.config.clone();
        for (disk, config) in self.handles.disks.iter().zip(&mut config.disks) {
            config.limits = disk.limits();
        }
        config
    }

    fn disk(&self, id: &str) -> Result<&BlockHandle, MachineError> {
        let disk = self.handles.disks.iter().find(|disk| disk.id() == id);
        disk.ok_or_else(|| MachineError::NoDevice {
            kind: "disk",
            id: id.to_owned(),
        })
    }

    fn devices(&self) -> Vec<DeviceInfo> {
        let mut devices = vec![DeviceInfo::Console {
            id: "serial".to_owned(),
        }];
        for (disk, config) in self.handles.disks.iter().zip(&self.config.disks) {
            devices.push(DeviceInfo::Disk {
                id: disk.id().to_owned(),
                size_bytes: disk.size(),
                format: config.format,
                read_only: config.read_only,
                limits: disk.limits(),
            });
        }
        for ((net, vhost), config) in self.handles.nets.iter().zip(&self.config.nets) {
            devices.push(DeviceInfo::Net {
                id: net.id().to_owned(),
                mac: net.mac().to_string(),
                tap: config.tap.clone(),
                vhost: *vhost,
            });
        }
        if let Some(balloon) = &self.handles.balloon {
            devices.push(DeviceInfo::Balloon {
                target_mib: balloon.target_mib(),
                actual_mib: balloon.actual_mib(),
            });
        }
        if self.config.rng {
            devices.push(DeviceInfo::Rng);
        }
        if self.handles.console.is_some() {
            devices.push(DeviceInfo::Console {
                id: "console".to_owned(),
            });
        }
        devices
    }
}

fn disk_metrics(disk: &BlockHandle) -> DiskMetrics {
    disk.metrics().to_api(disk.id())
}

/// How long a person waits for the answer to whether the guest runs elsewhere, or its disks are
/// somebody else's.
const WIN_BACK_PATIENCE: Duration = Duration::from_millis(500);

/// The guest has not ended.
const ALIVE: [RunState; 3] = [RunState::Created, RunState::Running, RunState::Paused];
/// It runs, or could: its RAM and devices hold what they should.
const BEGUN: [RunState; 2] = [RunState::Running, RunState::Paused];

impl Machine for Vm {
    fn info(&self) -> VmInfo {
        let (state, pause_reason, uptime) = {
            let now = self.life.now();
            let uptime = now.started.map(|at| at.elapsed());
            (now.state, now.pause_reason.clone(), uptime)
        };
        let uptime_ms = uptime.map_or(0, |uptime| uptime.as_millis() as u64);
        VmInfo {
            name: self.config.name.clone(),
            state,
            pause_reason,
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_unix_ms: now_unix_ms().saturating_sub(uptime_ms),
            cpus: self.config.cpus.count,
            memory_mib: self.config.memory.size_mib,
            devices: self.devices(),
        }
    }

    fn config(&self) -> VmConfig {
        self.current_config()
    }

    fn metrics(&self) -> Metrics {
        let (uptime, paused) = {
            let now = self.life.now();
            let uptime = now.started.map(|at| at.elapsed()).unwrap_or_default();
            (uptime, now.paused_for())
        };
        let vcpus = (0..)
            .zip(&self.vcpus)
            .map(|(index, vcpu)| VcpuMetrics {
                index,
                cpu_time_ns: vcpu.cpu_time().as_nanos() as u64,
                exits: vcpu.exits().counts(),
            })
            .collect();
        Metrics {
            uptime_ms: uptime.as_millis() as u64,
            paused_ms: paused.as_millis() as u64,
            vcpus,
            disks: self.handles.disks.iter().map(disk_metrics).collect(),
            nets: self
                .handles
                .nets
                .iter()
                .map(|(net, _)| net.metrics())
                .collect(),
            balloon: self.handles.balloon.as_ref().map(BalloonHandle::metrics),
        }
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn pause(&self) -> Result<(), MachineError> {
        let _transition = self.life.begin();
        self.require("pause", &[RunState::Running, RunState::Paused])?;
        self.stop(PauseReason::Requested);
        Ok(())
    }

    fn resume(&self, force: bool) -> Result<(), MachineError> {
        let _transition = self.life.begin();
        self.require("resume", &BEGUN)?;
        if self.life.now().is_lost() {
            return Err(MachineError::Lost);
        }
        let given_up = self.life.now().given_up;
        if given_up {
            self.take_the_guest_back(force)?;
        } else {
            self.refuse_while_it_moves("resume")?;
            self.renew_locks()?;
        }
        self.start();
        Ok(())
    }

    fn relock(&self) -> Result<(), MachineError> {
        let _transition = self.life.begin();
        self.require("relock", &[RunState::Paused])?;
        self.refuse_while_it_moves("relock")?;
        self.renew_locks()
    }

    fn press_power_button(&self) -> Result<(), MachineError> {
        self.require("power button", &[RunState::Running])?;
        self.platform.press_power_button();
        self.events.publish(EventKind::PowerButton);
        Ok(())
    }

    fn power_off(&self) -> Result<(), MachineError> {
        self.require("power off", &ALIVE)?;
        self.requester.send(Request::PowerOff(Initiator::Host));
        Ok(())
    }

    fn reset(&self) -> Result<(), MachineError> {
        let _transition = self.life.begin();
        self.require("reset", &BEGUN)?;
        self.refuse_while_it_moves("reset")?;
        self.restart(Initiator::Host)
            .map_err(|error| MachineError::Host {
                action: "the machine cannot start anew".to_owned(),
                source: Box::new(error),
            })
    }

    fn set_balloon_target(&self, target_mib: u64) -> Result<(), MachineError> {
        let balloon = self.handles.balloon.as_ref();
        let balloon = balloon.ok_or_else(|| MachineError::NoDevice {
            kind: "balloon",
            id: String::new(),
        })?;
        balloon
            .set_target_mib(target_mib)
            .map_err(|refused| MachineError::Value {
                field: "target_mib",
                value: target_mib.to_string(),
                allowed: format!("0 to {}", refused.most_mib),
            })?;
        self.events.publish(EventKind::BalloonTarget { target_mib });
        Ok(())
    }

    fn resize_disk(&self, id: &str, size_bytes: u64) -> Result<(), MachineError> {
        let disk = self.disk(id)?;
        self.require("resize", &BEGUN)?;
        self.refuse_while_it_moves("resize")?;
        disk.resize(size_bytes).map_err(|error| match error {
            ResizeError::Host { .. } => MachineError::Host {
                action: format!("resize {id}"),
                source: Box::new(error),
            },
            refused => MachineError::Value {
                field: "size_bytes",
                value: size_bytes.to_string(),
                allowed: refused.to_string(),
            },
        })?;
        self.events.publish(EventKind::DiskResized {
            id: id.to_owned(),
            size_bytes,
        });
        Ok(())
    }

    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<(), MachineError> {
        let disk = self.disk(id)?;
        self.require("limit", &ALIVE)?;
        if let Some((field, value, range)) = limits.out_of_range() {
            return Err(MachineError::Value {
                field,
                value: value.to_string(),
                allowed: format!("{} to {}", range.start(), range.end()),
            });
        }
        disk.set_limits(limits);
        self.events.publish(EventKind::DiskLimited {
            id: id.to_owned(),
            limits,
        });
        Ok(())
    }

    fn attach_console(
        &self,
        id: &str,
        stream: UnixStream,
        greeting: &[u8],
    ) -> Result<(), MachineError> {
        let console = self.console(id)?;
        let host = |error: std::io::Error| MachineError::Host {
            action: format!("attach to console {id}"),
            source: Box::new(error),
        };
        // A fresh socket's buffer takes a few hundred bytes at once.
        std::io::Write::write_all(&mut &stream, greeting).map_err(host)?;
        console.attach(stream);
        Ok(())
    }

    fn migratable(&self) -> &dyn Migratable {
        self
    }
}
