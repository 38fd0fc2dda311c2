//! What stands in for a machine.

use super::*;

/// A machine without a processor. Its calls are recorded.
pub(super) struct FakeMachine {
    pub events: Events,
    memory: Arc<GuestMemory>,
    pub running: AtomicBool,
    calls: Mutex<Vec<String>>,
    /// While set, `reset` and `save` do not return.
    stuck: Mutex<bool>,
    freed: Condvar,
}

impl FakeMachine {
    pub fn new() -> Arc<Self> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        memory.write_slice(b"guest", GuestAddress(0x2000)).unwrap();
        Arc::new(Self {
            events: Events::default(),
            memory: Arc::new(memory),
            running: AtomicBool::new(true),
            calls: Mutex::default(),
            stuck: Mutex::new(false),
            freed: Condvar::new(),
        })
    }

    fn record(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn set_stuck(&self, stuck: bool) {
        *self.stuck.lock().unwrap() = stuck;
        self.freed.notify_all();
    }

    fn wait_while_stuck(&self) {
        let stuck = self.stuck.lock().unwrap();
        drop(self.freed.wait_while(stuck, |stuck| *stuck).unwrap());
    }
}

impl Machine for FakeMachine {
    fn info(&self) -> VmInfo {
        let running = self.running.load(Ordering::SeqCst);
        VmInfo {
            name: "fake".into(),
            state: if running {
                RunState::Running
            } else {
                RunState::Paused
            },
            pause_reason: None,
            vmm_version: "0".into(),
            pid: 1,
            started_unix_ms: 0,
            cpus: 1,
            memory_mib: 4,
            devices: vec![DeviceInfo::Disk {
                id: "disk0".into(),
                size_bytes: 512,
                format: DiskFormat::Raw,
                read_only: false,
                limits: DiskLimits::default(),
            }],
        }
    }

    fn config(&self) -> VmConfig {
        serde_json::from_str(r#"{"memory": {"size_mib": 16}}"#).unwrap()
    }

    fn metrics(&self) -> Metrics {
        Metrics::default()
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.record("pause");
        self.running.store(false, Ordering::SeqCst);
        let reason = PauseReason::Requested;
        self.events.publish(EventKind::Paused { reason });
        Ok(())
    }

    fn resume(&self, force: bool) -> Result<(), MachineError> {
        self.record(if force { "resume by force" } else { "resume" });
        self.running.store(true, Ordering::SeqCst);
        self.events.publish(EventKind::Resumed);
        Ok(())
    }

    fn relock(&self) -> Result<(), MachineError> {
        self.record("relock");
        Ok(())
    }

    fn press_power_button(&self) -> Result<(), MachineError> {
        Err(MachineError::State {
            action: "the power button",
            state: RunState::Paused,
        })
    }

    fn power_off(&self) -> Result<(), MachineError> {
        self.record("power off");
        Ok(())
    }

    fn reset(&self) -> Result<(), MachineError> {
        self.record("reset");
        self.wait_while_stuck();
        Ok(())
    }

    fn set_balloon_target(&self, target_mib: u64) -> Result<(), MachineError> {
        if target_mib > 4 {
            return Err(MachineError::Value {
                field: "target_mib",
                value: target_mib.to_string(),
                allowed: "at most 4".into(),
            });
        }
        self.record(format!("balloon {target_mib}"));
        Ok(())
    }

    fn resize_disk(&self, id: &str, size_bytes: u64) -> Result<(), MachineError> {
        match id {
            "disk0" => {
                self.record(format!("resize {id} {size_bytes}"));
                Ok(())
            }
            "broken" => Err(MachineError::Host {
                action: "resize broken".into(),
                source: std::io::Error::from(std::io::ErrorKind::StorageFull).into(),
            }),
            id => Err(MachineError::NoDevice {
                kind: "disk",
                id: id.into(),
            }),
        }
    }

    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<(), MachineError> {
        self.record(format!("limit {id} {:?}", limits.iops));
        Ok(())
    }

    fn attach_console(
        &self,
        id: &str,
        stream: UnixStream,
        greeting: &[u8],
    ) -> Result<(), MachineError> {
        if id != "serial" {
            return Err(MachineError::NoDevice {
                kind: "console",
                id: id.into(),
            });
        }
        stream.set_nonblocking(false).unwrap();
        let greeting = greeting.to_vec();
        std::thread::spawn(move || {
            let mut stream = stream;
            stream.write_all(&greeting).unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|count| count == 1) {
                stream
                    .write_all(&byte.map(|byte| byte.to_ascii_uppercase()))
                    .unwrap();
            }
        });
        Ok(())
    }

    fn migratable(&self) -> &dyn Migratable {
        self
    }
}

impl Migratable for FakeMachine {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn start_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn take_dirty(&self) -> Result<Vec<DirtyRegion>, MigratableError> {
        Ok(vec![])
    }

    fn stop_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn pause(&self, reason: PauseReason) -> Result<bool, MigratableError> {
        assert_eq!(reason, PauseReason::Snapshot);
        Ok(self.running.swap(false, Ordering::SeqCst))
    }

    fn save(&self) -> Result<VmState, MigratableError> {
        self.record("save");
        self.wait_while_stuck();
        Ok(VmState::new(Machine::config(self), vec![]))
    }

    fn resume(&self) -> Result<(), MigratableError> {
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }
}
