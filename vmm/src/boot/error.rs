//! Why a machine cannot boot what it was told to.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestMemoryError;

/// Why what the configuration names cannot be booted; found before the machine is built.
#[derive(Debug, Error)]
pub enum OpenBootError {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The default firmware is not installed.
    #[error(
        "no kernel is configured and there is no firmware at {}: install Debian's package \
         seabios, or set boot.firmware",
        path.display()
    )]
    NoFirmware {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a device or the like.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file ends before what its header promises.
    #[error("{} is truncated: it has {len} bytes and needs {needed}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The length that it must have.
        needed: u64,
    },
    /// The file is something else.
    #[error(
        "{} is not a kernel for x86-64 (bzImage or ELF): it looks like {looks_like}",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        looks_like: &'static str,
    },
    /// The kernel's header says something that cannot be.
    #[error("kernel {} has an invalid header: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A 32-bit kernel, or one from before Linux 3.8.
    #[error("kernel {} has no 64-bit entry point", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// `protocol = "pvh"` was asked for.
    #[error(
        "kernel {} cannot be entered by PVH: it has no such note; use protocol \"auto\"",
        path.display()
    )]
    NoPvhNote {
        /// The file.
        path: PathBuf,
    },
    /// The command line does not fit.
    #[error("the kernel command line has {len} bytes, {} takes at most {max}", path.display())]
    CmdlineTooLong {
        /// The kernel.
        path: PathBuf,
        /// Length in bytes.
        len: usize,
        /// The kernel's limit.
        max: u64,
    },
    /// The command line has a zero byte, where the kernel would cut it.
    #[error("the kernel command line has a zero byte")]
    CmdlineZero,
    /// An initial RAM disk or a command line, but no kernel.
    #[error("boot.{field} is set, but boot.kernel is not")]
    WithoutKernel {
        /// The field.
        field: &'static str,
    },
    /// The firmware's size cannot be mapped below 4 GiB.
    #[error(
        "firmware {} has {len} bytes; it must be a multiple of 4096, at most {max}",
        path.display()
    )]
    FirmwareSize {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The largest that there is room for.
        max: u64,
    },
    /// The file does not end as firmware does.
    #[error(
        "{} is not firmware: it has no reset vector and looks like {looks_like}",
        path.display()
    )]
    NotFirmware {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        looks_like: &'static str,
    },
}

/// Why what was opened cannot be put into guest memory.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Guest RAM is too small for the kernel and its initial RAM disk.
    #[error(
        "guest RAM of {ram_mib} MiB is too small for kernel {}: it needs at least {needed_mib} MiB",
        path.display()
    )]
    RamTooSmall {
        /// The kernel.
        path: PathBuf,
        /// Guest RAM in MiB.
        ram_mib: u64,
        /// The least that would do, in MiB.
        needed_mib: u64,
    },
    /// The kernel cannot reach an initial RAM disk of this size, however much RAM there is.
    #[error("initial RAM disk {} has {len} bytes, this kernel takes at most {max}", path.display())]
    InitrdTooLarge {
        /// The initial RAM disk.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The kernel's limit in bytes.
        max: u64,
    },
    /// A file cannot be copied.
    #[error("cannot load {} to {address:#x}", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// Guest physical address.
        address: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// Boot data cannot be written.
    #[error("cannot write boot data to guest RAM")]
    Memory(#[from] GuestMemoryError),
}
