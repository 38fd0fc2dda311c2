use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pindah_vmm_api::{AfterSnapshot, PauseReason, SnapshotReport};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{DirtyRegion, GuestMemory};
use crate::state::Section;
use crate::vm::migratable::Migratable;

const RANGES: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 3 << 20),
    (GuestAddress(1 << 32), (1 << 20) + 8192),
];

struct FakeGuest {
    memory: Arc<GuestMemory>,
    running: AtomicBool,
    pauses: AtomicU32,
    /// `save` fails.
    broken: bool,
}

impl FakeGuest {
    fn new() -> Self {
        Self {
            memory: Arc::new(GuestMemory::from_ranges(&RANGES).unwrap()),
            running: AtomicBool::new(true),
            pauses: AtomicU32::new(0),
            broken: false,
        }
    }

    /// Content in both regions: at the edges, across chunks, half a page.
    fn with_content() -> Self {
        let guest = Self::new();
        for (address, length) in [
            (0, 1),
            (0xf_f800, 0x1000),
            ((3 << 20) - 1, 1),
            (1 << 32, 64),
            ((1 << 32) + (1 << 20) + 8191, 1),
        ] {
            let bytes: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8 + 1).collect();
            guest
                .memory
                .write_slice(&bytes, GuestAddress(address))
                .unwrap();
        }
        guest
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }
}

impl Migratable for FakeGuest {
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

    fn pause(&self, _reason: PauseReason) -> Result<bool, MigratableError> {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Ok(self.running.swap(false, Ordering::SeqCst))
    }

    fn save(&self) -> Result<VmState, MigratableError> {
        if self.broken || self.is_running() {
            return Err(MigratableError::NotPaused);
        }
        let config = serde_json::from_str(r#"{"memory": {"size_mib": 16}}"#).unwrap();
        let section = Section::new("vcpu", "0", 1, &"registers").unwrap();
        Ok(VmState::new(config, vec![section]))
    }

    fn resume(&self) -> Result<(), MigratableError> {
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }
}

fn take_to(
    guest: &FakeGuest,
    place: &Path,
    then: AfterSnapshot,
) -> Result<SnapshotReport, SnapshotError> {
    let partial = PartialSnapshot::create(place).unwrap();
    let never = AtomicBool::new(false);
    let report = take(guest, &partial.state, &partial.memory, then, &never)?;
    partial.commit().unwrap();
    Ok(report)
}

fn fresh_memory() -> GuestMemory {
    GuestMemory::from_ranges(&RANGES).unwrap()
}

fn content(memory: &GuestMemory) -> Vec<Vec<u8>> {
    let read = |&(start, length): &(GuestAddress, usize)| {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, start).unwrap();
        bytes
    };
    RANGES.iter().map(read).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
fn snapshot_opened_and_loaded_is_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    let guest = FakeGuest::with_content();
    let report = take_to(&guest, &place, AfterSnapshot::Continue).unwrap();
    assert!(guest.is_running() && report.paused_ms.is_some());
    assert_eq!(report.ram_bytes, (4 << 20) + 8192);
    assert_eq!(report.written_bytes, 6 * 4096);
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["snap"]);

    let snapshot = Snapshot::open(&place).unwrap();
    assert_eq!(snapshot.manifest.vm.sections.len(), 1);
    let memory = fresh_memory();
    snapshot.load_memory(&memory).unwrap();
    assert_eq!(content(&memory), content(&guest.memory));

    // Saved again from what was loaded, the files are the same byte for byte.
    let again = directory.path().join("again");
    let copy = FakeGuest {
        memory: Arc::new(memory),
        ..FakeGuest::new()
    };
    take_to(&copy, &again, AfterSnapshot::Continue).unwrap();
    for name in [STATE_FILE, MEMORY_FILE] {
        let first = fs::read(place.join(name)).unwrap();
        assert!(first == fs::read(again.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn zero_pages_are_holes_and_a_copy_without_holes_loads_too() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    let guest = FakeGuest::with_content();
    take_to(&guest, &place, AfterSnapshot::Continue).unwrap();
    let path = place.join(MEMORY_FILE);
    let metadata = fs::metadata(&path).unwrap();
    assert!(
        metadata.blocks() * 512 < metadata.len() / 4,
        "it is not sparse"
    );
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes).unwrap();
    let memory = fresh_memory();
    Snapshot::open(&place)
        .unwrap()
        .load_memory(&memory)
        .unwrap();
    assert_eq!(content(&memory), content(&guest.memory));
}

#[test]
fn guest_is_afterwards_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    for (number, (ran, then, runs)) in [
        (true, AfterSnapshot::Continue, true),
        (true, AfterSnapshot::Pause, false),
        (true, AfterSnapshot::Exit, false),
        (false, AfterSnapshot::Continue, false),
    ]
    .into_iter()
    .enumerate()
    {
        let guest = FakeGuest::new();
        guest.running.store(ran, Ordering::SeqCst);
        let place = directory.path().join(number.to_string());
        let report = take_to(&guest, &place, then).unwrap();
        assert_eq!(guest.is_running(), runs, "{then:?}");
        assert_eq!(report.paused_ms.is_some(), ran && runs);
        assert_eq!(report.written_bytes, 0);
    }
}

#[test]
fn failed_snapshot_leaves_a_running_guest_and_no_directory() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    let mut guest = FakeGuest::with_content();
    let partial = PartialSnapshot::create(&place).unwrap();
    let cancelled = AtomicBool::new(true);
    let then = AfterSnapshot::Exit;
    let error = take(&guest, &partial.state, &partial.memory, then, &cancelled).unwrap_err();
    assert!(matches!(error, SnapshotError::Cancelled), "{error}");
    assert!(guest.is_running());
    drop(partial);
    guest.broken = true;
    let error = take_to(&guest, &place, AfterSnapshot::Pause).unwrap_err();
    assert_eq!(
        chain(&error),
        "the guest cannot be taken: the guest is not paused"
    );
    assert!(guest.is_running());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn full_disk_is_reported_and_the_guest_runs_on() {
    // The kernel's own full disk cannot stand in for a regular file, a file limit would hit the
    // whole test process: a file system of a few pages needs root and does it.
    let directory = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(directory.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a tmpfs cannot be mounted");
        return;
    }
    let guest = FakeGuest::with_content();
    let result = take_to(&guest, &directory.path().join("snap"), AfterSnapshot::Pause);
    let left = fs::read_dir(directory.path()).unwrap().count();
    let unmounted = std::process::Command::new("umount")
        .arg(directory.path())
        .status();
    assert!(unmounted.unwrap().success());
    let error = chain(&result.unwrap_err());
    assert!(
        error.starts_with("the memory file cannot be written: No space left on device"),
        "{error}"
    );
    assert!(guest.is_running());
    assert_eq!(left, 0);
}

#[test]
fn place_that_is_taken_is_left_alone_before_the_guest_is_paused() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    let guest = FakeGuest::new();
    take_to(&guest, &place, AfterSnapshot::Continue).unwrap();
    let before = fs::read(place.join(STATE_FILE)).unwrap();
    let exists = PartialSnapshot::create(&place).err().unwrap();
    assert!(matches!(exists, CreateError::Exists { .. }), "{exists}");
    assert_eq!(fs::read(place.join(STATE_FILE)).unwrap(), before);
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let exists = PartialSnapshot::create(&file).err().unwrap();
    assert!(matches!(exists, CreateError::Exists { .. }), "{exists}");
    let missing = directory.path().join("no/such/parent");
    let error = PartialSnapshot::create(&missing).err().unwrap();
    assert!(error.to_string().starts_with("create "), "{error}");
    assert!(PartialSnapshot::create(Path::new("/")).is_err());
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    take_to(&guest, &empty, AfterSnapshot::Continue).unwrap();
    Snapshot::open(&empty).unwrap();
}

#[test]
fn directory_that_a_crash_left_is_used_again_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    let left = directory.path().join("snap.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(MEMORY_FILE), "half").unwrap();
    assert!(Snapshot::open(&place).is_err());
    let guest = FakeGuest::with_content();
    let first = PartialSnapshot::create(&place).unwrap();
    assert_eq!(first.memory.metadata().unwrap().len(), 0);
    let busy = PartialSnapshot::create(&place).err().unwrap();
    assert!(matches!(busy, CreateError::Busy { .. }), "{busy}");
    drop(first);
    take_to(&guest, &place, AfterSnapshot::Continue).unwrap();
    Snapshot::open(&place).unwrap();
}

/// Takes a snapshot, lets `damage` at its directory and returns why it does not load.
fn damaged(damage: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    let guest = FakeGuest::with_content();
    take_to(&guest, &place, AfterSnapshot::Continue).unwrap();
    damage(&place);
    match Snapshot::open(&place) {
        Err(error) => chain(&error),
        Ok(snapshot) => chain(&snapshot.load_memory(&fresh_memory()).unwrap_err()),
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn damaged_memory_is_refused() {
    let longer = damaged(|place| open(&place.join(MEMORY_FILE)).set_len(5 << 20).unwrap());
    assert!(
        longer.contains("instead of 4202496: it is truncated or another's"),
        "{longer}"
    );
    let shorter = damaged(|place| open(&place.join(MEMORY_FILE)).set_len(4096).unwrap());
    assert!(
        shorter.starts_with("the memory file is 4096 bytes long"),
        "{shorter}"
    );
    for (offset, byte) in [(0, 9), (0, 0), (0x5000, 1), ((4 << 20) + 8191, 0)] {
        let changed = damaged(|place| {
            open(&place.join(MEMORY_FILE))
                .write_all_at(&[byte], offset)
                .unwrap();
        });
        assert!(
            changed.starts_with("the memory file is corrupt"),
            "{offset:#x}: {changed}"
        );
    }
    let missing = damaged(|place| fs::remove_file(place.join(MEMORY_FILE)).unwrap());
    assert!(missing.contains("memory.bin: No such file"), "{missing}");
}

#[test]
fn damaged_state_is_refused() {
    let missing = damaged(|place| fs::remove_file(place.join(STATE_FILE)).unwrap());
    assert!(missing.contains("state.cbor: No such file"), "{missing}");
    let empty = damaged(|place| fs::write(place.join(STATE_FILE), "").unwrap());
    assert!(
        empty.ends_with("this is not a snapshot's state file"),
        "{empty}"
    );
    let foreign = damaged(|place| fs::write(place.join(STATE_FILE), [b'#'; 99]).unwrap());
    assert!(
        foreign.ends_with("this is not a snapshot's state file"),
        "{foreign}"
    );
    let newer = damaged(|place| {
        open(&place.join(STATE_FILE)).write_all_at(&[9], 8).unwrap();
    });
    assert!(
        newer.ends_with("has format 9, this program knows 1"),
        "{newer}"
    );
    let changed = damaged(|place| {
        open(&place.join(STATE_FILE))
            .write_all_at(&[0xff], 40)
            .unwrap();
    });
    assert!(
        changed.ends_with("its checksum does not match"),
        "{changed}"
    );
    let truncated = damaged(|place| {
        let length = fs::metadata(place.join(STATE_FILE)).unwrap().len();
        open(&place.join(STATE_FILE)).set_len(length - 1).unwrap();
    });
    assert!(
        truncated.ends_with("is truncated or has bytes too many"),
        "{truncated}"
    );
}

#[test]
fn memory_of_another_layout_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("snap");
    take_to(&FakeGuest::new(), &place, AfterSnapshot::Continue).unwrap();
    let other = GuestMemory::from_ranges(&RANGES[..1]).unwrap();
    let error = Snapshot::open(&place)
        .unwrap()
        .load_memory(&other)
        .unwrap_err();
    assert!(matches!(error, LoadError::Layout), "{error}");
}

/// A manifest of version 1, as it was written when the format was fixed. If this test fails, old
/// snapshots do not load: raise the format's version and keep reading the old one.
#[test]
fn state_file_of_format_1_still_reads() {
    let golden: Vec<u8> = include_str!("golden-1.hex")
        .split_whitespace()
        .flat_map(|line| line.as_bytes().chunks(2))
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let manifest = file::decode(&golden).unwrap();
    assert_eq!(manifest.vm.config.memory.size_mib, 16);
    assert_eq!(manifest.vm.sections[0].kind, "vcpu");
    assert_eq!(manifest.memory.regions[0].bytes, 4096);
    assert_eq!(manifest.memory.checksum, 0x0123_4567_89ab_cdef);
}

fn manifest() -> Manifest {
    let guest = FakeGuest::new();
    guest.pause(PauseReason::Snapshot).unwrap();
    let region = Region {
        start: 0,
        bytes: 4096,
    };
    Manifest {
        vm: guest.save().unwrap(),
        memory: MemoryMap {
            regions: vec![region],
            written_bytes: 4096,
            checksum: 0x0123_4567_89ab_cdef,
        },
    }
}

#[test]
fn manifest_encoded_and_decoded_is_the_same() {
    let manifest = manifest();
    let bytes = file::encode(&manifest).unwrap();
    if let Some(path) = std::env::var_os("WRITE_GOLDEN") {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<_> = hex.chunks(32).map(<[String]>::concat).collect();
        fs::write(path, lines.join("\n") + "\n").unwrap();
    }
    assert_eq!(file::decode(&bytes).unwrap(), manifest);
}

proptest! {
    #[test]
    fn any_body_with_a_right_checksum_decodes_or_is_refused(
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = b"PINDAHSS\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        let checksum = xxhash_rust::xxh3::xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        let _ = file::decode(&bytes);
    }

    #[test]
    fn any_change_of_one_byte_is_refused(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = file::encode(&manifest()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(file::decode(&bytes).is_err());
    }
}

proptest! {
    // Four MiB a case.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_memory_is_loaded_as_it_was(
        writes in proptest::collection::vec((0_u64..(3 << 20) - 5000, 1_usize..5000, any::<u8>()), 0..20),
    ) {
        let guest = FakeGuest::new();
        for (address, length, byte) in writes {
            guest.memory.write_slice(&vec![byte; length], GuestAddress(address)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        let map = memory::write(&guest.memory, &file, &AtomicBool::new(false)).unwrap();
        let loaded = fresh_memory();
        memory::load(&file, &map, &loaded).unwrap();
        prop_assert!(content(&loaded) == content(&guest.memory));
    }
}
