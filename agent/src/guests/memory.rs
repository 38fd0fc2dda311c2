//! Memory is given out by arithmetic, before a process takes it.

use super::{GuestError, Guests};
use crate::domain::Guest;

/// What a VMM needs beside the guest's RAM, in MiB.
const VMM_MIB: u64 = 8;

/// What a guest that has a process is promised, in MiB.
pub fn promised_mib(guest: &Guest) -> u64 {
    guest.memory_mib + VMM_MIB
}

/// Memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it, in MiB.
    pub total_mib: u64,
    /// What could be had without swapping, in MiB.
    pub available_mib: u64,
}

impl HostMemory {
    /// As the kernel tells it (proc(5), `/proc/meminfo`); zeroes where it does not.
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
            kib.map_or(0, |kib: u64| kib >> 10)
        };
        Self {
            total_mib: field("MemTotal:"),
            available_mib: field("MemAvailable:"),
        }
    }
}

impl Guests {
    /// Memory of this node that guests may not take, in MiB.
    pub fn reserved_memory_mib(&self) -> u64 {
        self.resources().reserved_memory_mib
    }

    /// RAM of the guests that have a process, in MiB.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn used_memory_mib(&self) -> Result<u64, GuestError> {
        let guests = self.records().all().await?;
        let running = guests.iter().filter(|stored| {
            let status = self.status(stored.value.uuid);
            status.state.has_process()
        });
        Ok(running.map(|stored| promised_mib(&stored.value)).sum())
    }

    /// Refuses a guest for which there is no memory.
    pub(super) async fn require_memory(&self, guest: &Guest) -> Result<(), GuestError> {
        let total_mib = HostMemory::read().total_mib;
        let used_mib = self.used_memory_mib().await?;
        let reserved_mib = self.resources().reserved_memory_mib;
        let needed_mib = promised_mib(guest);
        if used_mib + reserved_mib + needed_mib <= total_mib {
            return Ok(());
        }
        Err(GuestError::NoMemory {
            name: guest.name.to_string(),
            needed_mib,
            total_mib,
            used_mib,
            reserved_mib,
        })
    }
}
