//! The machine's disks: what they are, what is on them, and which one is meant.

mod choose;
mod probe;
mod smart;

pub(crate) use choose::check;
pub use choose::{ChooseError, choose};
pub use probe::list;
pub use smart::Smart;

use crate::size;

/// Least size of a disk in bytes: what is sold as 4 GB.
pub const LEAST_BYTES: u64 = 3700 << 20;

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its device file.
    pub path: String,
    /// In bytes.
    pub size_bytes: u64,
    /// Its logical sectors, in bytes.
    pub sector_bytes: u16,
    /// What its maker calls it.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// It hangs on USB or can be taken out.
    pub removable: bool,
    /// Nothing can be written.
    pub read_only: bool,
    /// It is a file that acts as a disk.
    pub is_loop: bool,
    /// What holds it: a mount, swap, LVM, RAID; in words.
    pub used_by: Option<String>,
    /// What is on it: one line a partition, or one for the whole disk; nothing if it is blank.
    pub content: Vec<String>,
    /// Its partitions' names in the GPT.
    pub partition_names: Vec<String>,
}

impl Disk {
    /// One line for people: path, size and model.
    pub fn title(&self) -> String {
        let model = match &*self.model {
            "" => "unknown model",
            model => model,
        };
        format!("{} ({}, {model})", self.path, size::text(self.size_bytes))
    }

    /// Why Pindah can not be put on it whatever anybody allows; a sentence without its subject.
    pub fn obstacle(&self) -> Option<String> {
        if let Some(user) = &self.used_by {
            return Some(format!("is in use: {user}"));
        }
        if self.read_only {
            return Some("cannot be written".to_owned());
        }
        (self.size_bytes < LEAST_BYTES)
            .then(|| format!("is too small: {} are needed", size::text(LEAST_BYTES)))
    }

    /// Whether a Pindah is on it.
    pub fn has_pindah(&self) -> bool {
        let mut names = self.partition_names.iter();
        names.any(|name| name.starts_with("pindah-"))
    }
}
