//! Kernels: bzImages and ELF files that are nearly right, opened and loaded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use pindah_vmm::boot::{BootResources, DirectBoot, ImageFile};
use pindah_vmm::memory::GuestMemory;
use pindah_vmm_api::BootProtocol;
use vm_memory::GuestAddress;

use crate::input::Input;
use crate::machine;

const RAM_BYTES: usize = 4 << 20;
const HIGH_RAM: u64 = 1 << 20;

struct Fixture {
    memory: Arc<GuestMemory>,
    kernel: File,
    initrd: File,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM_BYTES)]);
    Mutex::new(Fixture {
        memory: Arc::new(memory.expect("a host that maps 4 MiB")),
        kernel: machine::memfd(&[]),
        initrd: machine::memfd(&[0x42; 5000]),
    })
});

/// Runs one case.
pub fn run(data: &[u8]) {
    let fixture = FIXTURE.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    let content = match input.below(8) {
        0..=2 => bzimage(input),
        3..=6 => elf(input),
        _ => input.bytes(0x1000),
    };
    let kernel = &fixture.kernel;
    let stored = kernel
        .set_len(0)
        .and_then(|()| kernel.write_all_at(&content, 0));
    stored.expect("memory for a small file");
    let initrd = input.chance(2).then(|| image(&fixture.initrd));
    let protocol = input.pick(&[BootProtocol::Auto, BootProtocol::Linux, BootProtocol::Pvh]);
    let cmdline = String::from_utf8_lossy(&input.bytes(64)).into_owned();
    let Some(file) = image(kernel) else { return };
    let Ok(boot) = DirectBoot::new(file, initrd.flatten(), cmdline, protocol) else {
        return;
    };
    let boot = BootResources::Direct(Box::new(boot));
    // What does not fit is refused.
    let _ = boot.load(&fixture.memory, RAM_BYTES as u64, None);
}

fn image(file: &File) -> Option<ImageFile> {
    let file = file.try_clone().expect("a host with a descriptor to spare");
    ImageFile::new(Path::new("kernel"), file).ok()
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Overwrites a few bytes, and cuts the end off.
fn corrupt(input: &mut Input, content: &mut Vec<u8>, header_bytes: usize) {
    for _ in 0..input.below(4) {
        let at = input.below(header_bytes.min(content.len()));
        let value = input.edge().to_le_bytes();
        let end = (at + machine::width(input)).min(content.len());
        content[at..end].copy_from_slice(&value[..end - at]);
    }
    if input.chance(8) {
        let len = input.below(content.len() + 1);
        content.truncate(len);
    }
}

/// A setup header (Linux `Documentation/arch/x86/boot.rst`) and a payload.
fn bzimage(input: &mut Input) -> Vec<u8> {
    let mut content = vec![0; 0x1000 + input.below(0x800)];
    let sectors = input.below(5) as u8;
    let payload = 512
        * (1 + if sectors == 0 {
            4
        } else {
            usize::from(sectors)
        });
    let paragraphs = (content.len() - payload) as u32 / 16;
    put(&mut content, 0x1f1, &[sectors]);
    put(&mut content, 0x1f4, &paragraphs.to_le_bytes());
    put(&mut content, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut content, 0x202, b"HdrS");
    put(&mut content, 0x206, &0x020f_u16.to_le_bytes());
    put(&mut content, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut content, 0x230, &0x1000_u32.to_le_bytes());
    put(&mut content, 0x234, &[1, 12, 3, 0]);
    put(&mut content, 0x238, &2047_u32.to_le_bytes());
    put(&mut content, 0x258, &HIGH_RAM.to_le_bytes());
    put(&mut content, 0x260, &0x8000_u32.to_le_bytes());
    corrupt(input, &mut content, 0x280);
    content
}

/// An ELF header, a few segments and a note with PVH's entry point (ELF gABI, chapters 4 and 5).
fn elf(input: &mut Input) -> Vec<u8> {
    let segments = 1 + input.below(3);
    let headers = segments + 1;
    let mut content = b"\x7fELF\x02\x01\x01".to_vec();
    put(&mut content, 16, &[2, 0, 62, 0, 1]);
    put(&mut content, 24, &(HIGH_RAM + 8).to_le_bytes());
    put(&mut content, 32, &64_u64.to_le_bytes());
    put(&mut content, 52, &[64, 0, 56, 0, headers as u8, 0]);
    for index in 0..headers {
        let at = 64 + 56 * index;
        let is_note = index == segments;
        let kind: u32 = if is_note { 4 } else { 1 };
        let offset = 0x400 + 0x100 * index as u64;
        let address = HIGH_RAM + 0x1_0000 * index as u64;
        put(&mut content, at, &kind.to_le_bytes());
        let fields = [offset, 0, address, 0x80, 0x80 + input.word() as u64, 16];
        for (field, number) in fields.into_iter().zip(0..) {
            put(&mut content, at + 8 + 8 * number, &field.to_le_bytes());
        }
        if is_note && input.chance(2) {
            let note = [
                4_u32,
                4,
                18,
                u32::from_le_bytes(*b"Xen\0"),
                HIGH_RAM as u32 + 16,
            ];
            for (word, number) in note.into_iter().zip(0..) {
                put(
                    &mut content,
                    offset as usize + 4 * number,
                    &word.to_le_bytes(),
                );
            }
        }
    }
    content.resize(0x400 + 0x100 * headers, 0x90);
    corrupt(input, &mut content, 64 + 56 * headers);
    content
}
