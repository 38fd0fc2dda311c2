//! Kernels made here are loaded and what they would find is read back.

use std::fs;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use pindah_vmm_api::{BootConfig, BootProtocol};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const MIB: u64 = 1 << 20;
const KERNEL: u64 = 2 * MIB;
const ENTRY: u64 = KERNEL + 0x10;

/// An ELF kernel of one segment, twice as long in memory as in the file.
fn elf(pvh_entry: Option<u32>) -> Vec<u8> {
    let code = [0x90_u8; 0x100];
    let note: Vec<u8> = pvh_entry.map_or(vec![], |entry| {
        let words = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
        [&words[..], b"Xen\0", &entry.to_le_bytes()].concat()
    });
    let (note_offset, code_offset) = (64 + 2 * 56_u64, 64 + 2 * 56 + 20_u64);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let len = code.len() as u64;
    for (type_, offset, address, file_len, memory_len) in [
        (1_u32, code_offset, KERNEL, len, 2 * len),
        (4, note_offset, 0, note.len() as u64, note.len() as u64),
    ] {
        file.extend(type_.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for word in [offset, address, address, file_len, memory_len, 4] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(note);
    file.resize(code_offset as usize, 0);
    file.extend(code);
    file
}

/// A relocatable bzImage that prefers 2 MiB and unpacks to 4 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2 * 512];
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&(0x400_u32 / 16).to_le_bytes());
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    file[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    file[0x234] = 1;
    file[0x236..0x238].copy_from_slice(&1_u16.to_le_bytes());
    file[0x238..0x23c].copy_from_slice(&100_u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&KERNEL.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x40_0000_u32.to_le_bytes());
    file.extend([0xcc; 0x400]);
    file
}

struct Files {
    dir: TempDir,
    config: BootConfig,
}

impl Files {
    fn new(kernel: &[u8]) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, kernel).unwrap();
        let config = BootConfig {
            kernel: Some(path),
            cmdline: "console=ttyS0".to_owned(),
            ..BootConfig::default()
        };
        Self { dir, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn with_initrd(mut self, len: usize) -> Self {
        fs::write(self.path("initrd"), vec![0x11; len]).unwrap();
        self.config.initrd = Some(self.path("initrd"));
        self
    }

    fn with_protocol(mut self, protocol: BootProtocol) -> Self {
        self.config.protocol = protocol;
        self
    }

    fn open_error(&self) -> OpenBootError {
        open(&self.config).unwrap_err()
    }
}

fn memory(bytes: u64) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

fn load(files: &Files, ram: u64) -> (GuestMemory, Result<EntryPoint, LoadError>) {
    let memory = memory(ram);
    // What a guest left behind before it was reset.
    memory
        .write_slice(&vec![0x5a; ram as usize], GuestAddress(0))
        .unwrap();
    let entry = open(&files.config)
        .unwrap()
        .load(&memory, ram, Some(layout::RSDP));
    (memory, entry)
}

fn bytes(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}

#[test]
fn elf_with_note_is_entered_by_pvh_with_start_info() {
    let files = Files::new(&elf(Some(ENTRY as u32))).with_initrd(5000);
    let (memory, entry) = load(&files, 16 * MIB);
    assert_eq!(entry.unwrap(), EntryPoint::Pvh { rip: ENTRY as u32 });
    assert_eq!(bytes(&memory, KERNEL, 0x100), [0x90; 0x100]);
    assert_eq!(bytes(&memory, KERNEL + 0x100, 0x100), [0; 0x100]);
    assert_eq!(bytes(&memory, KERNEL + 0x200, 1), [0x5a]);

    let info: hvm_start_info = memory
        .read_obj(GuestAddress(layout::PVH_START_INFO))
        .unwrap();
    assert_eq!((info.magic, info.version), (0x336e_c578, 1));
    assert_eq!(info.rsdp_paddr, layout::RSDP);
    assert_eq!(bytes(&memory, info.cmdline_paddr, 14), b"console=ttyS0\0");
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (16 * MIB - 8192, 5000));
    assert_eq!(bytes(&memory, module.paddr, 5000), [0x11; 5000]);
    let mut ram = 0;
    for index in 0..u64::from(info.memmap_entries) {
        let address = GuestAddress(info.memmap_paddr + 24 * index);
        let range: hvm_memmap_table_entry = memory.read_obj(address).unwrap();
        ram += if range.type_ == 1 { range.size } else { 0 };
    }
    assert_eq!(ram, 15 * MIB + 0x9_fc00);
}

#[test]
fn elf_without_note_is_entered_in_long_mode() {
    let files = Files::new(&elf(None));
    let (memory, entry) = load(&files, 16 * MIB);
    assert_eq!(entry.unwrap(), EntryPoint::Linux64 { rip: ENTRY });
    let params: boot_params = memory.read_obj(GuestAddress(layout::BOOT_PARAMS)).unwrap();
    assert_eq!({ params.hdr.header }, 0x5372_6448);
    assert_eq!({ params.hdr.boot_flag }, 0xaa55);
    assert_eq!({ params.hdr.ramdisk_size }, 0);
    // The map of the last of the 4 GiB, and the way to it.
    let tables = layout::BOOT_PAGE_TABLES;
    let entry = |address| -> u64 { memory.read_obj(GuestAddress(address)).unwrap() };
    assert_eq!(entry(tables), (tables + 0x1000) | 3);
    assert_eq!(entry(tables + 0x1000 + 8 * 3), (tables + 0x5000) | 3);
    assert_eq!(entry(tables + 0x5000 + 8 * 511), 0xffe0_0083);
    assert_eq!(entry(tables + 0x1000 + 8 * 4), 0);
}

#[test]
fn bzimage_gets_its_own_header_back_in_the_zero_page() {
    let files = Files::new(&bzimage()).with_initrd(4096);
    let (memory, entry) = load(&files, 16 * MIB);
    let rip = KERNEL + 0x200;
    assert_eq!(entry.unwrap(), EntryPoint::Linux64 { rip });
    assert_eq!(bytes(&memory, KERNEL, 0x400), [0xcc; 0x400]);
    let params: boot_params = memory.read_obj(GuestAddress(layout::BOOT_PARAMS)).unwrap();
    assert_eq!({ params.hdr.version }, 0x020f);
    assert_eq!({ params.hdr.init_size }, 0x40_0000);
    assert_eq!(params.hdr.type_of_loader, 0xff);
    assert_eq!(u64::from(params.hdr.cmd_line_ptr), layout::BOOT_CMDLINE);
    assert_eq!(u64::from(params.hdr.ramdisk_image), 16 * MIB - 4096);
    assert_eq!({ params.hdr.ramdisk_size }, 4096);
    assert_eq!({ params.acpi_rsdp_addr }, layout::RSDP);
    assert_eq!(params.e820_entries, 4);
    // Nothing of the old page shines through.
    assert_eq!(params.sentinel, 0);
}

#[test]
fn protocol_that_the_kernel_lacks_is_refused() {
    for kernel in [elf(None), bzimage()] {
        let files = Files::new(&kernel).with_protocol(BootProtocol::Pvh);
        assert!(matches!(
            files.open_error(),
            OpenBootError::NoPvhNote { .. }
        ));
    }
    let files = Files::new(&elf(Some(ENTRY as u32))).with_protocol(BootProtocol::Linux);
    let (_, entry) = load(&files, 16 * MIB);
    assert_eq!(entry.unwrap(), EntryPoint::Linux64 { rip: ENTRY });
}

#[test]
fn ram_that_is_too_small_is_refused_with_what_it_needs() {
    let files = Files::new(&bzimage()).with_initrd(3 * MIB as usize);
    let (_, result) = load(&files, 8 * MIB);
    let message = result.unwrap_err().to_string();
    assert!(message.contains("8 MiB"), "{message}");
    assert!(message.contains("at least 10 MiB"), "{message}");
    let (_, result) = load(&files, 10 * MIB);
    result.unwrap();
}

#[test]
fn initrd_beyond_the_kernels_reach_is_refused() {
    let mut kernel = bzimage();
    kernel[0x22c..0x230].copy_from_slice(&(8 * MIB as u32 - 1).to_le_bytes());
    let files = Files::new(&kernel).with_initrd(2 * MIB as usize);
    let (memory, result) = load(&files, 32 * MIB);
    result.unwrap();
    assert_eq!(bytes(&memory, 6 * MIB, 1), [0x11]);
    let files = files.with_initrd(3 * MIB as usize);
    let (_, result) = load(&files, 32 * MIB);
    assert!(matches!(result, Err(LoadError::InitrdTooLarge { max, .. }) if max == 2 * MIB));
}

#[test]
fn cmdline_over_the_kernels_limit_is_refused() {
    let mut files = Files::new(&bzimage());
    files.config.cmdline = "x".repeat(100);
    open(&files.config).unwrap();
    files.config.cmdline = "x".repeat(101);
    let message = files.open_error().to_string();
    assert!(
        message.contains("101 bytes") && message.contains("at most 100"),
        "{message}"
    );
    files.config.cmdline = "a\0b".to_owned();
    assert!(matches!(files.open_error(), OpenBootError::CmdlineZero));
}

#[test]
fn file_that_is_no_kernel_is_named_for_what_it_is() {
    let mut elf32 = elf(None);
    elf32[4] = 1;
    let mut arm = elf(None);
    arm[18] = 183;
    for (content, expected) in [
        (b"\x1f\x8b\x08rest".to_vec(), "gzip"),
        (b"hello\n".to_vec(), "text"),
        (elf32, "32-bit ELF"),
        (arm, "64-bit Arm"),
    ] {
        let message = Files::new(&content).open_error().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn file_that_cannot_be_read_is_refused_by_name() {
    let files = Files::new(b"");
    assert!(matches!(files.open_error(), OpenBootError::Empty { .. }));
    let mut files = Files::new(&elf(None));
    files.config.initrd = Some(files.path("missing"));
    let message = files.open_error().to_string();
    assert!(message.contains("missing"), "{message}");
    files.config.initrd = Some(files.dir.path().to_owned());
    assert!(matches!(files.open_error(), OpenBootError::NotAFile { .. }));
}

#[test]
fn kernel_of_32_bits_is_refused() {
    let mut kernel = bzimage();
    kernel[0x236] = 0;
    let error = Files::new(&kernel).open_error();
    assert!(matches!(error, OpenBootError::No64BitEntry { .. }));
}

#[test]
fn truncated_kernel_is_refused() {
    for kernel in [elf(None), bzimage()] {
        let error = Files::new(&kernel[..kernel.len() - 1]).open_error();
        assert!(matches!(error, OpenBootError::Truncated { .. }), "{error}");
    }
}

#[test]
fn kernel_that_shrinks_after_opening_fails_to_load() {
    let files = Files::new(&elf(None));
    let boot = open(&files.config).unwrap();
    fs::write(files.path("kernel"), b"short").unwrap();
    let result = boot.load(&memory(16 * MIB), 16 * MIB, None);
    assert!(matches!(result, Err(LoadError::Copy { .. })));
}

#[test]
fn segment_over_boot_data_is_refused() {
    let mut kernel = elf(None);
    kernel[64 + 24..64 + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
    let error = Files::new(&kernel).open_error();
    assert!(matches!(error, OpenBootError::Malformed { .. }), "{error}");
}

fn firmware(dir: &Path, len: usize) -> BootConfig {
    let mut image = vec![0xf4; len];
    image[0] = 1;
    image[len - MIB as usize / 8] = 2;
    image[len - 1] = 3;
    let path = dir.join("bios");
    fs::write(&path, image).unwrap();
    BootConfig {
        firmware: Some(path),
        ..BootConfig::default()
    }
}

#[test]
fn firmware_is_mapped_below_4_gib_and_mirrored_below_1_mib() {
    let dir = TempDir::new().unwrap();
    let boot = open(&firmware(dir.path(), 256 << 10)).unwrap();
    let len = boot.firmware_len().unwrap();
    assert_eq!(len, 256 << 10);
    let start = layout::FIRMWARE_END - len;
    let memory = GuestMemory::from_ranges(&[
        (GuestAddress(0), 16 * MIB as usize),
        (GuestAddress(start), len as usize),
    ])
    .unwrap();
    assert_eq!(
        boot.load(&memory, 16 * MIB, None).unwrap(),
        EntryPoint::Firmware
    );
    assert_eq!(bytes(&memory, start, 1), [1]);
    assert_eq!(bytes(&memory, layout::FIRMWARE_END - 1, 1), [3]);
    assert_eq!(bytes(&memory, 0xe_0000, 1), [2]);
    assert_eq!(bytes(&memory, 0xf_ffff, 1), [3]);
    assert_eq!(bytes(&memory, 0xd_ffff, 1), [0]);
}

#[test]
fn firmware_of_odd_size_or_without_reset_vector_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut config = firmware(dir.path(), (128 << 10) + 1);
    let error = open(&config).unwrap_err();
    assert!(matches!(error, OpenBootError::FirmwareSize { .. }));
    fs::write(dir.path().join("bios"), vec![0; 128 << 10]).unwrap();
    let error = open(&config).unwrap_err();
    assert!(matches!(error, OpenBootError::NotFirmware { .. }));
    config.cmdline = "quiet".to_owned();
    let error = open(&config).unwrap_err();
    assert!(matches!(
        error,
        OpenBootError::WithoutKernel { field: "cmdline" }
    ));
}

#[test]
fn apply_pvh_gives_flat_protected_mode_from_any_state() {
    let mut sregs = kvm_bindings::kvm_sregs {
        cr3: 7,
        efer: 0x500,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    let mut regs = kvm_bindings::kvm_regs {
        rax: 1,
        rflags: 0x202,
        ..Default::default()
    };
    apply(&EntryPoint::Pvh { rip: 0x1234 }, &mut sregs, &mut regs);
    assert_eq!(
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
        (0x11, 0, 0, 0)
    );
    assert_eq!(
        (sregs.cs.db, sregs.cs.l, sregs.cs.limit),
        (1, 0, 0xffff_ffff)
    );
    assert_eq!(sregs.apic_base, 0xfee0_0900);
    assert_eq!((regs.rip, regs.rbx), (0x1234, layout::PVH_START_INFO));
    assert_eq!((regs.rax, regs.rflags), (0, 2));
}

#[test]
fn apply_linux64_gives_long_mode_and_firmware_the_reset_vector() {
    let (mut sregs, mut regs) = Default::default();
    apply(
        &EntryPoint::Linux64 { rip: 0x20_0200 },
        &mut sregs,
        &mut regs,
    );
    assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
    assert_eq!((sregs.cs.db, sregs.cs.l), (0, 1));
    assert_eq!((sregs.efer, sregs.cr4), (0x500, 0x20));
    assert_eq!((regs.rip, regs.rsi), (0x20_0200, layout::BOOT_PARAMS));
    apply(&EntryPoint::Firmware, &mut sregs, &mut regs);
    assert_eq!(sregs.cs.base + regs.rip, 0xffff_fff0);
    assert_eq!((sregs.cr0, sregs.efer, regs.rsi), (0x6000_0010, 0, 0));
}

/// Opens and loads whatever it is: an error or not, never a panic.
fn survive(kernel: &[u8]) {
    let files = Files::new(kernel).with_initrd(100);
    if let Ok(boot) = open(&files.config) {
        let _ = boot.load(&memory(8 * MIB), 8 * MIB, None);
    }
}

proptest! {
    #[test]
    fn corrupted_kernel_never_panics(
        is_elf: bool,
        changes in prop::collection::vec((0_usize..0x300, any::<u8>()), 1..12),
        keep in 0_usize..0x1000,
    ) {
        let mut kernel = if is_elf { elf(Some(ENTRY as u32)) } else { bzimage() };
        for (at, value) in changes {
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        kernel.truncate(keep);
        survive(&kernel);
    }

    #[test]
    fn kernel_with_extreme_header_words_never_panics(
        is_elf: bool,
        changes in prop::collection::vec(
            (0_usize..0x27, prop::sample::select(vec![0, 1, 0xfff, u64::MAX, u64::MAX - 0xfff, 1 << 63, 1 << 32, 0x1000, 3 << 30])),
            1..6,
        ),
    ) {
        let mut kernel = if is_elf { elf(Some(ENTRY as u32)) } else { bzimage() };
        let base = if is_elf { 24 } else { 0x1f1 + 7 };
        for (word, value) in changes {
            let at = base + word * 8;
            if let Some(bytes) = kernel.get_mut(at..at + 8) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        survive(&kernel);
    }
}
