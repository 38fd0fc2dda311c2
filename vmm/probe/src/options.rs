//! What the command line can choose, and what holds where it says nothing.

use crate::content::Content;

/// Rate that stands for "as fast as this vCPU can".
pub const RATE_MAX: u64 = u64::MAX;

/// Most virtio-mmio devices that a command line may name.
pub const MMIO_DEVICES_MAX: usize = 32;

/// How the guest ends when it is told to, or when `exit_after_ms` is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Reset by the keyboard controller (port 0x64), then by triple fault where there is none.
    Reset,
    /// ACPI S5 through the PM1a control register.
    Poweroff,
    /// Triple fault.
    Crash,
}

/// What the virtio-blk exercise does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOp {
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Reads from the start on.
    SeqRead,
    /// Writes from the start on.
    SeqWrite,
    /// Writes at random places what names place and generation, reads and compares.
    Verify,
}

impl BlkOp {
    /// The word that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::SeqRead => "seqread",
            Self::SeqWrite => "seqwrite",
            Self::Verify => "verify",
        }
    }
}

/// What the virtio-net exercise does, besides answering ARP and ICMP echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetOp {
    /// Nothing else.
    Answer,
    /// Sends UDP frames as fast as the device takes them.
    Tx,
    /// Counts what arrives.
    Rx,
    /// Sends back every UDP frame.
    Echo,
    /// Pings the peer, one at a time, and measures the round trip.
    Ping,
}

impl NetOp {
    /// The word that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Tx => "tx",
            Self::Rx => "rx",
            Self::Echo => "echo",
            Self::Ping => "ping",
        }
    }
}

/// Which kind of VM exit the exit benchmark makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// A byte to an I/O port.
    Pio,
    /// A 32-bit read of a device register.
    Mmio,
    /// A virtio queue notification.
    Notify,
}

impl ExitKind {
    /// The word that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pio => "pio",
            Self::Mmio => "mmio",
            Self::Notify => "notify",
        }
    }
}

/// Everything that the command line can choose. The crate's page says what each word means.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, clippy::struct_excessive_bools)]
pub struct Options {
    pub ws_mib: u64,
    pub rate_mib_s: u64,
    pub content: Content,
    pub rewrite: bool,
    pub verify: bool,
    pub verify_mib_s: u64,
    pub beat_ms: u64,
    pub tick_us: u64,
    pub gap_us: u64,
    pub spin: bool,
    pub cpus: u64,
    pub exit_after_ms: u64,
    pub exit_by: Exit,
    pub pm1a: u16,
    pub sleep_control: u16,
    pub s5_typ: u16,
    pub runner_port: u16,
    pub echo: bool,
    pub blk: bool,
    pub blk_dev: u64,
    pub blk_op: BlkOp,
    pub blk_bs: u64,
    pub blk_qd: u64,
    pub blk_s: u64,
    pub blk_span_mib: u64,
    pub blk_iops: u64,
    pub net: bool,
    pub net_op: NetOp,
    pub net_size: u64,
    pub net_qd: u64,
    pub net_s: u64,
    pub ip: [u8; 4],
    pub peer: [u8; 4],
    pub exits: Option<ExitKind>,
    pub exits_s: u64,
    pub exits_port: u16,
    pub exits_addr: u64,
    /// Registers of virtio-mmio devices, in the order of the command line.
    pub mmio_devices: [u64; MMIO_DEVICES_MAX],
    /// How many of them there are.
    pub mmio_count: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ws_mib: 16,
            rate_mib_s: 0,
            content: Content::Counter,
            rewrite: false,
            verify: false,
            verify_mib_s: 64,
            beat_ms: 100,
            tick_us: 500,
            gap_us: 2000,
            spin: false,
            cpus: 1,
            exit_after_ms: 0,
            exit_by: Exit::Reset,
            pm1a: 0x604,
            sleep_control: 0,
            s5_typ: 0,
            runner_port: 0x500,
            echo: false,
            blk: false,
            blk_dev: 0,
            blk_op: BlkOp::RandRead,
            blk_bs: 4096,
            blk_qd: 1,
            blk_s: 5,
            blk_span_mib: 0,
            blk_iops: 0,
            net: false,
            net_op: NetOp::Answer,
            net_size: 1514,
            net_qd: 32,
            net_s: 5,
            ip: [10, 0, 0, 2],
            peer: [10, 0, 0, 1],
            exits: None,
            exits_s: 2,
            exits_port: 0x80,
            exits_addr: 0,
            mmio_devices: [0; MMIO_DEVICES_MAX],
            mmio_count: 0,
        }
    }
}
