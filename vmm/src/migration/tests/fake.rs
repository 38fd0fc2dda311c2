//! A guest without KVM: RAM, a thread that writes it, and a right to run that can be lost.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pindah_vmm_api::{PauseReason, RunState, VmConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{DirtyRegion, GuestMemory, PAGE_SIZE, device_log_words};
use crate::state::Section;
use crate::vm::migratable::{Migratable, MigratableError, MigrationDestination, MigrationSource};
use crate::vm::state::VmState;

pub const RANGES: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 8 << 20),
    (GuestAddress(1 << 32), (2 << 20) + 8192),
];

/// Who may run the guest: one record for both sides.
#[derive(Debug, Default)]
pub struct Record(Mutex<Option<&'static str>>);

impl Record {
    pub fn held_by(name: &'static str) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(name))))
    }

    pub fn holder(&self) -> Option<&'static str> {
        *self.0.lock().unwrap()
    }

    fn take(&self, name: &'static str) -> Result<(), MigratableError> {
        let mut holder = self.0.lock().unwrap();
        match *holder {
            None => *holder = Some(name),
            Some(other) if other == name => {}
            Some(other) => {
                return Err(MigratableError::Ownership(format!("{other} has it").into()));
            }
        }
        Ok(())
    }

    fn give_up(&self, name: &'static str) {
        let mut holder = self.0.lock().unwrap();
        if *holder == Some(name) {
            *holder = None;
        }
    }
}

pub struct Fake {
    pub name: &'static str,
    pub memory: Arc<GuestMemory>,
    pub record: Arc<Record>,
    pub running: AtomicBool,
    /// Why it stands, unless that is its migration.
    pub stands: Mutex<Option<PauseReason>>,
    pub doubtful: AtomicBool,
    pub lost: AtomicBool,
    pub ended: AtomicBool,
    pub announced: AtomicU32,
    pub holds: AtomicU32,
    pub restored: Mutex<Vec<VmState>>,
    /// The destination does not take the state from this call of `restore` on.
    pub refuse_restore_from: Option<usize>,
    /// Restoring reads this address, from the second time on.
    pub read_in_restore: Option<u64>,
    config: VmConfig,
}

impl Fake {
    pub fn new(name: &'static str, record: &Arc<Record>) -> Self {
        let config = r#"{"memory": {"size_mib": 16}, "boot": {"kernel": "/k"}}"#;
        Self {
            name,
            memory: Arc::new(GuestMemory::from_ranges(&RANGES).unwrap()),
            record: Arc::clone(record),
            running: AtomicBool::new(name == "source"),
            stands: Mutex::default(),
            doubtful: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            announced: AtomicU32::new(0),
            holds: AtomicU32::new(0),
            restored: Mutex::default(),
            refuse_restore_from: None,
            read_in_restore: None,
            config: serde_json::from_str(config).unwrap(),
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Everything that is in RAM.
    pub fn content(&self) -> Vec<u8> {
        let read = |&(start, length): &(GuestAddress, usize)| {
            let mut bytes = vec![0; length];
            self.memory.read_slice(&mut bytes, start).unwrap();
            bytes
        };
        RANGES.iter().flat_map(read).collect()
    }

    /// One write of a guest that runs; its vCPU stands where it is paused.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        if self.is_running() {
            let address = GuestAddress(address);
            self.memory.write_slice(bytes, address).unwrap();
        }
    }

    /// One read, as a guest or a device does it.
    pub fn read(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn lost() -> MigratableError {
        MigratableError::Gone {
            state: RunState::Stopped,
        }
    }
}

impl Migratable for Fake {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn start_dirty_log(&self) -> Result<(), MigratableError> {
        self.take_dirty().map(|_| ())
    }

    fn take_dirty(&self) -> Result<Vec<DirtyRegion>, MigratableError> {
        let region = |region: &crate::memory::GuestRegion| DirtyRegion {
            start: region.start_addr().0,
            pages: region.len() / PAGE_SIZE,
            words: device_log_words(region),
        };
        Ok(self.memory.iter().map(region).collect())
    }

    fn stop_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn pause(&self, reason: PauseReason) -> Result<bool, MigratableError> {
        assert_eq!(reason, PauseReason::Migration);
        let ran = self.running.swap(false, Ordering::SeqCst);
        // A write that has begun is done by then.
        std::thread::sleep(Duration::from_millis(1));
        Ok(ran)
    }

    fn save(&self) -> Result<VmState, MigratableError> {
        assert!(!self.is_running());
        let section = Section::new("vcpu", "0", 1, &"registers").unwrap();
        Ok(VmState::new(self.config.clone(), vec![section]))
    }

    fn resume(&self) -> Result<(), MigratableError> {
        if self.record.holder() != Some(self.name) {
            return Err(Self::lost());
        }
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl MigrationSource for Fake {
    fn config(&self) -> &VmConfig {
        &self.config
    }

    fn clear_dirty(&self, _: u32, _: u64, _: u32, _: &[u64]) -> Result<(), MigratableError> {
        Ok(())
    }

    fn touched(&self, _: u32, _: u64, pages: u32) -> Vec<u64> {
        let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
        if let (Some(last), rest @ 1..) = (words.last_mut(), pages % 64) {
            *last = (1 << rest) - 1;
        }
        words
    }

    fn quiesce(&self, _: Instant) -> Result<(), MigratableError> {
        Ok(())
    }

    fn unquiesce(&self) {}

    fn pause_reason(&self) -> Option<PauseReason> {
        self.stands.lock().unwrap().clone()
    }

    fn hold(&self, _: Duration) -> bool {
        self.holds.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn give_up(&self) {
        assert!(!self.is_running());
        self.record.give_up(self.name);
    }

    fn take_back(&self, _: Duration) -> Result<(), MigratableError> {
        self.record.take(self.name)
    }

    fn win_back(&self, _: Duration) -> Result<(), MigratableError> {
        self.record.take(self.name)
    }

    fn leave(&self) {}

    fn doubt(&self) {
        self.doubtful.store(true, Ordering::SeqCst);
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }
}

impl MigrationDestination for Fake {
    fn config(&self) -> &VmConfig {
        &self.config
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn restore(&self, state: &VmState, _: i64) -> Result<(), MigratableError> {
        let mut restored = self.restored.lock().unwrap();
        if self
            .refuse_restore_from
            .is_some_and(|from| restored.len() >= from)
        {
            return Err(MigratableError::Restore("MSR 0x10a is unknown here".into()));
        }
        if let (Some(address), false) = (self.read_in_restore, restored.is_empty()) {
            self.read(address);
        }
        restored.push(state.clone());
        Ok(())
    }

    fn take(&self) -> Result<(), MigratableError> {
        self.record.take(self.name)
    }

    fn give_back(&self) {
        self.record.give_up(self.name);
    }

    fn start(&self, paused: Option<PauseReason>) -> Result<(), MigratableError> {
        assert_eq!(self.record.holder(), Some(self.name));
        self.running.store(paused.is_none(), Ordering::SeqCst);
        *self.stands.lock().unwrap() = paused;
        Ok(())
    }

    fn announce(&self) {
        self.announced.fetch_add(1, Ordering::SeqCst);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn dismiss(&self) {}

    fn lose(&self) {
        self.running.store(false, Ordering::SeqCst);
        self.lost.store(true, Ordering::SeqCst);
    }
}
