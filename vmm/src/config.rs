//! One guest's configuration: a TOML or JSON file, or flags, through the wire type
//! [`VmConfig`] into [`Config`], validated once. Nothing checks again.
//!
//! ```text
//! file ─ source ─► VmConfig ─ validate ─► Config ─► builder
//! flags ─────────►
//! ```

mod devices;
mod source;
mod validate;

use std::fmt;
use std::path::{Path, PathBuf};

pub use pindah_vmm_api::{
    BalloonConfig, Baseline, BootProtocol, DiskCache, DiskFormat, ErrorPolicy, ResetPolicy,
    SerialConfig, VhostMode, VmConfig,
};
use thiserror::Error;

pub use source::{Format, Location};
pub use validate::Invalid;

/// Largest configuration file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most vCPUs.
pub const MAX_VCPUS: u8 = 64;
/// Least guest RAM in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Most guest RAM in MiB: 4 TiB, below the 46 address bits of the smallest server processors.
pub const MAX_MEMORY_MIB: u64 = 4 << 20;
/// Most virtio devices: slots 2 to 31 of the one bus.
pub const MAX_DEVICES: usize = 30;
/// Where Debian's `seabios` package puts the firmware that boots disks.
pub const DEFAULT_FIRMWARE: &str = "/usr/share/seabios/bios-256k.bin";

/// Everything that the builder must know, and nothing that could be wrong by itself. Whether the
/// host has it all (files, taps, memory) shows when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The guest's name in logs and events.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: Cpus,
    /// Guest RAM.
    pub memory: Memory,
    /// What runs first.
    pub boot: Boot,
    /// virtio-blk devices, in slot order.
    pub disks: Vec<Disk>,
    /// virtio-net devices, in slot order.
    pub nets: Vec<Net>,
    /// The 16550 serial port.
    pub serial: SerialConfig,
    /// virtio-console; absent: no such device.
    pub console: Option<SerialConfig>,
    /// Whether there is a virtio-rng.
    pub rng: bool,
    /// virtio-balloon; absent: no such device.
    pub balloon: Option<BalloonConfig>,
    /// What a reset that the guest asks for does.
    pub on_reset: ResetPolicy,
    wire: VmConfig,
}

/// Virtual CPUs: `count` = `sockets * cores_per_socket * threads_per_core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// How many in all, 1 to 64.
    pub count: u8,
    /// Sockets.
    pub sockets: u8,
    /// Cores a socket.
    pub cores_per_socket: u8,
    /// Threads a core.
    pub threads_per_core: u8,
    /// Features that the guest may see.
    pub baseline: Baseline,
}

/// Guest RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Size in bytes, a multiple of 1 MiB and of the page size of its backing.
    pub size_bytes: u64,
    /// What stands behind it.
    pub backing: Backing,
    /// Touch all of it before the guest starts.
    pub prefault: bool,
}

/// What stands behind guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous {
        /// KSM may merge equal pages.
        mergeable: bool,
    },
    /// A shared memfd.
    Memfd,
    /// A shared memfd of reserved huge pages.
    Hugetlb {
        /// Their size in bytes: 2 MiB or 1 GiB.
        page_bytes: u64,
    },
}

/// What runs first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel.
    Kernel {
        /// bzImage or ELF.
        image: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// Command line without NUL, at most 2047 bytes.
        cmdline: String,
        /// How it is entered.
        protocol: BootProtocol,
    },
    /// Firmware, which boots a disk.
    Firmware {
        /// Its image.
        image: PathBuf,
    },
}

/// One virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Unique among all devices.
    pub id: String,
    /// Image file or block device.
    pub path: PathBuf,
    /// Image format.
    pub format: DiskFormat,
    /// The guest may not write.
    pub read_only: bool,
    /// How the host caches.
    pub cache: DiskCache,
    /// Serial number: at most 20 bytes of printable ASCII. Empty: none given.
    pub serial: String,
    /// Request queues, 1 to 16.
    pub queues: u8,
    /// Size of each: a power of two, 2 to 1024.
    pub queue_size: u16,
    /// What happens when the host fails a request.
    pub on_error: ErrorPolicy,
}

/// One virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Unique among all devices.
    pub id: String,
    /// Name of the tap on the host.
    pub tap: String,
    /// Address of the guest's side; unicast.
    pub mac: MacAddress,
    /// Queue pairs, 1 to 16.
    pub queue_pairs: u8,
    /// Size of each queue: a power of two, 2 to 1024.
    pub queue_size: u16,
    /// Whether vhost-net moves the packets.
    pub vhost: VhostMode,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(formatter, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too long to be a configuration.
    #[error("configuration {path} is longer than {MAX_FILE_BYTES} bytes")]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// The text is not TOML or JSON, or not of the configuration's shape: an unknown field, a
    /// missing one, a value of another type.
    #[error("{at}: {message}")]
    Syntax {
        /// Where.
        at: Location,
        /// What is wrong.
        message: String,
    },
    /// A value cannot be.
    #[error("{at}: {invalid}")]
    Invalid {
        /// Where; only the file when the value stands nowhere in it.
        at: Location,
        /// Which value, and what is allowed.
        invalid: Invalid,
    },
}

impl Config {
    /// Reads and validates a file: JSON if its name ends in `.json`, TOML if in `.toml`, else
    /// whichever its first character says.
    ///
    /// # Errors
    /// [`ConfigError`], with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = source::read(path)?;
        Self::parse(&text, Format::of(path, &text), &path.display().to_string())
    }

    /// Validates the text of a configuration that messages call `origin`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Invalid`].
    pub fn parse(text: &str, format: Format, origin: &str) -> Result<Self, ConfigError> {
        let wire = source::parse(text, format, origin)?;
        Self::try_from(wire).map_err(|invalid| ConfigError::Invalid {
            at: source::locate(text, format, origin, &invalid.field),
            invalid,
        })
    }

    /// The wire form with everything that follows from it filled in: ids, MAC addresses. Loading
    /// it gives the same configuration again.
    pub fn wire(&self) -> &VmConfig {
        &self.wire
    }
}

#[cfg(test)]
mod tests;
