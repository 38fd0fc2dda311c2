//! Why an installation ended.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::disks::ChooseError;
use crate::program::ProgramError;

/// Why an installation was not begun, or ended before it was done.
#[derive(Debug, Error)]
pub enum InstallError {
    /// No disk, or not this one.
    #[error(transparent)]
    Disk(#[from] ChooseError),
    /// No network interface.
    #[error("{0}")]
    Link(String),
    /// Somebody has the node's address.
    #[error("{address} is in use on this network, by the card {mac}: give the node another one")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Whose.
        mac: String,
    },
    /// The image does not have the time zone.
    #[error("the image has no time zone {0:?}: write one that `timedatectl list-timezones` prints")]
    Zone(String),
    /// The image or a part of it is not where it should be.
    #[error("cannot read {path}: is the medium still there, and whole?")]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is none.
    #[error("{0} is no squashfs: write the medium again")]
    NoSquashfs(PathBuf),
    /// It is not what was published.
    #[error("{0} is damaged, its SHA-256 is not the published one: write the medium again")]
    Damaged(PathBuf),
    /// It does not fit.
    #[error("{path} has {size}, and a slot {room}: use an image made for this installer")]
    TooLarge {
        /// What.
        path: PathBuf,
        /// Its size.
        size: String,
        /// The slot's.
        room: String,
    },
    /// It is none.
    #[error("{0} is no part of GRUB: write the medium again")]
    NoGrub(PathBuf),
    /// The disk does not open.
    #[error("cannot open {disk}: something else on this machine uses it, or it is gone")]
    Open {
        /// Which.
        disk: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk does not take what is written.
    #[error("cannot write to {disk}, at {mib} MiB: replace the disk, or its cable")]
    WriteDisk {
        /// Which.
        disk: PathBuf,
        /// Where.
        mib: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk does not give what was written.
    #[error("cannot read back from {disk}, at {mib} MiB: replace the disk, or its cable")]
    ReadDisk {
        /// Which.
        disk: PathBuf,
        /// Where.
        mib: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It gives something else.
    #[error("{0} gives back other bytes than it got: replace the disk, its cable or the memory")]
    Forgetful(PathBuf),
    /// Memory is full, or the like.
    #[error("cannot prepare the node's files in memory")]
    Prepare(#[source] io::Error),
    /// A program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}
