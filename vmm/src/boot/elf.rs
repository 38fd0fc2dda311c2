//! The facts of an ELF kernel that loading it needs (ELF gABI, chapters 4 and 5; PVH's entry
//! point from Xen `docs/misc/pvh.pandoc` and `xen/include/public/elfnote.h`).

use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::file::ImageFile;
use super::{OpenBootError, sniff};
use crate::arch::x86_64::layout;

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Its owner.
const NOTE_OWNER: &[u8] = b"Xen\0";
/// Names and descriptors of notes are padded to this.
const NOTE_ALIGN: usize = 4;
/// A kernel's notes are some hundreds of bytes; longer segments are not searched to their end.
const NOTES_MAX: usize = 64 << 10;
/// Programs have a handful of segments; this many would be an attack.
const SEGMENTS_MAX: u16 = 128;
/// Little-endian, 64-bit.
const CLASS64_LSB: [u8; 2] = [2, 1];
/// `EM_X86_64`.
const MACHINE_X86_64: u16 = 62;
/// `ET_EXEC`.
const TYPE_EXEC: u16 = 2;
/// `ET_DYN`: what a position-independent kernel is; it runs where its headers say.
const TYPE_DYN: u16 = 3;

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its length in the file, in bytes.
    pub file_len: u64,
    /// Guest physical address that it is loaded to.
    pub address: u64,
    /// Its length in memory, in bytes: what the file does not have is zero.
    pub len: u64,
}

impl Segment {
    /// First address behind it.
    pub fn end(&self) -> u64 {
        self.address + self.len
    }
}

/// An x86-64 ELF kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElfImage {
    /// What is loaded: inside [1 MiB, end of RAM below 4 GiB), never empty.
    pub segments: Vec<Segment>,
    /// 64-bit entry point, if it lies in a segment.
    pub entry: Option<u64>,
    /// 32-bit entry point of PVH, if the image has the note.
    pub pvh_entry: Option<u32>,
}

impl ElfImage {
    /// Whether `head`, the first bytes of a file, has an ELF header.
    pub fn is_one(head: &[u8]) -> bool {
        head.starts_with(b"\x7fELF")
    }

    /// Reads the headers of `file`.
    ///
    /// # Errors
    /// [`OpenBootError`]: truncated, for another CPU, or with segments that cannot be.
    pub fn parse(file: &ImageFile) -> Result<Self, OpenBootError> {
        let headers = program_headers(file)?;
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for header in &headers {
            match header.p_type {
                PT_LOAD if header.p_memsz > 0 => segments.push(load_segment(file, header)?),
                PT_NOTE if pvh_entry.is_none() => {
                    let len = header.p_filesz.min(NOTES_MAX as u64) as usize;
                    pvh_entry = find_pvh_entry(&file.read_at(header.p_offset, len)?);
                }
                _ => {}
            }
        }
        segments.sort_by_key(|segment| segment.address);
        if segments.is_empty() {
            return Err(malformed(file, "nothing to load"));
        }
        if segments
            .windows(2)
            .any(|pair| pair[0].end() > pair[1].address)
        {
            return Err(malformed(file, "overlapping segments"));
        }
        let holds = |address: u64| {
            segments
                .iter()
                .any(|segment| (segment.address..segment.end()).contains(&address))
        };
        if pvh_entry.is_some_and(|entry| !holds(u64::from(entry))) {
            return Err(malformed(file, "PVH entry point outside all segments"));
        }
        let entry = file_header(file)?.e_entry;
        Ok(Self {
            entry: holds(entry).then_some(entry),
            segments,
            pvh_entry,
        })
    }

    /// First address behind all segments.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }
}

fn malformed(file: &ImageFile, reason: &'static str) -> OpenBootError {
    OpenBootError::Malformed {
        path: file.path().to_owned(),
        reason,
    }
}

fn truncated(file: &ImageFile, needed: u64) -> OpenBootError {
    OpenBootError::Truncated {
        path: file.path().to_owned(),
        len: file.len(),
        needed,
    }
}

/// The ELF header, of a kind that this machine runs.
fn file_header(file: &ImageFile) -> Result<Elf64_Ehdr, OpenBootError> {
    let head = file.read_at(0, 512)?;
    let Some(bytes) = head.get(..size_of::<Elf64_Ehdr>()) else {
        return Err(truncated(file, size_of::<Elf64_Ehdr>() as u64));
    };
    let mut header = Elf64_Ehdr::default();
    header.as_mut_slice().copy_from_slice(bytes);
    let runs_here = header.e_ident[4..6] == CLASS64_LSB
        && header.e_machine == MACHINE_X86_64
        && [TYPE_EXEC, TYPE_DYN].contains(&header.e_type);
    if runs_here {
        Ok(header)
    } else {
        Err(OpenBootError::NotAKernel {
            path: file.path().to_owned(),
            looks_like: sniff::describe(&head),
        })
    }
}

fn program_headers(file: &ImageFile) -> Result<Vec<Elf64_Phdr>, OpenBootError> {
    let header = file_header(file)?;
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(malformed(file, "size of a program header"));
    }
    if header.e_phnum > SEGMENTS_MAX {
        return Err(malformed(file, "too many program headers"));
    }
    let len = usize::from(header.e_phnum) * size_of::<Elf64_Phdr>();
    let table = file.read_at(header.e_phoff, len)?;
    if table.len() < len {
        return Err(truncated(file, header.e_phoff.saturating_add(len as u64)));
    }
    let headers = table.chunks_exact(size_of::<Elf64_Phdr>()).map(|bytes| {
        let mut header = Elf64_Phdr::default();
        header.as_mut_slice().copy_from_slice(bytes);
        header
    });
    Ok(headers.collect())
}

fn load_segment(file: &ImageFile, header: &Elf64_Phdr) -> Result<Segment, OpenBootError> {
    if header.p_filesz > header.p_memsz {
        return Err(malformed(file, "segment longer in the file than in memory"));
    }
    let file_end = header.p_offset.saturating_add(header.p_filesz);
    if file_end > file.len() {
        return Err(truncated(file, file_end));
    }
    let end = header.p_paddr.checked_add(header.p_memsz);
    if header.p_paddr < layout::HIGH_RAM_START
        || end.is_none_or(|end| end > layout::RAM_BELOW_4G_END)
    {
        return Err(malformed(file, "segment outside 1 MiB to 3 GiB"));
    }
    Ok(Segment {
        offset: header.p_offset,
        file_len: header.p_filesz,
        address: header.p_paddr,
        len: header.p_memsz,
    })
}

/// Walks the notes of one segment for the PVH entry point.
fn find_pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (head, rest) = notes.split_at_checked(size_of::<Elf64_Nhdr>())?;
        let mut note = Elf64_Nhdr::default();
        note.as_mut_slice().copy_from_slice(head);
        let name_len = (note.n_namesz as usize).next_multiple_of(NOTE_ALIGN);
        let (name, rest) = rest.split_at_checked(name_len)?;
        if note.n_type == NOTE_PHYS32_ENTRY && name == NOTE_OWNER && note.n_descsz >= 4 {
            return rest.first_chunk().map(|&entry| u32::from_le_bytes(entry));
        }
        let desc_len = (note.n_descsz as usize).next_multiple_of(NOTE_ALIGN);
        notes = rest.get(desc_len..)?;
    }
}
