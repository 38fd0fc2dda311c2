//! Which pages were written: KVM's log of the guest's writes joined with our devices'.
//!
//! ```text
//! start ──► take (repeated) ──► stop
//!             └─ clear(chunk), just before the chunk is sent
//! ```
//! With `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` and its initially-all-set mode, starting costs no
//! write protection of all memory: every page counts as dirty first, and clearing a chunk is what
//! protects it.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, GuestRegion, PAGE_SIZE, device_log};
use crate::kvm;

/// Why the dirty log fails.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// The memslot is gone, or KVM has no memory for its log.
    #[error("KVM refused to {action} the dirty log of memslot {slot}")]
    Slot {
        /// What was tried.
        action: &'static str,
        /// The memslot.
        slot: u32,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Which pages of one region of guest RAM were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyRegion {
    /// GPA of the region's first byte.
    pub start: u64,
    /// Number of 4096-byte pages.
    pub pages: u64,
    /// One bit a page, least significant first; `pages.div_ceil(64)` words, no bit beyond the
    /// last page.
    pub words: Vec<u64>,
}

impl DirtyRegion {
    /// Number of dirty pages.
    pub fn count(&self) -> u64 {
        let ones = |word: &u64| u64::from(word.count_ones());
        self.words.iter().map(ones).sum()
    }
}

/// The dirty log of one VM.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
    manual_protect: bool,
}

impl DirtyLog {
    /// A log that is off. `manual_protect`: KVM's capability was enabled on this VM.
    pub fn new(vm: Arc<VmFd>, memory: Arc<GuestMemory>, manual_protect: bool) -> Self {
        Self {
            vm,
            memory,
            manual_protect,
        }
    }

    /// Starts logging. Whatever devices wrote before does not count.
    ///
    /// # Errors
    /// [`DirtyLogError::Slot`].
    pub fn start(&self) -> Result<(), DirtyLogError> {
        for region in self.memory.iter() {
            device_log(region).reset();
        }
        self.set_flags(KVM_MEM_LOG_DIRTY_PAGES, "start")
    }

    /// Stops logging.
    ///
    /// # Errors
    /// [`DirtyLogError::Slot`].
    pub fn stop(&self) -> Result<(), DirtyLogError> {
        self.set_flags(0, "stop")
    }

    fn set_flags(&self, flags: u32, action: &'static str) -> Result<(), DirtyLogError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            set_memslot(&self.vm, slot, region, flags).map_err(|source| DirtyLogError::Slot {
                action,
                slot,
                source,
            })?;
        }
        Ok(())
    }

    /// Pages written since the last call, by the guest and by our devices (KVM API,
    /// `KVM_GET_DIRTY_LOG`). Under manual protection a page stays reported until
    /// [`Self::clear`]; otherwise this call clears.
    ///
    /// Shape: one [`DirtyRegion`] a region, in the order of memslots.
    ///
    /// # Errors
    /// [`DirtyLogError::Slot`] if the memslot is gone.
    pub fn take(&self) -> Result<Vec<DirtyRegion>, DirtyLogError> {
        (0..)
            .zip(self.memory.iter())
            .map(|(slot, region)| self.take_region(slot, region))
            .collect()
    }

    fn take_region(&self, slot: u32, region: &GuestRegion) -> Result<DirtyRegion, DirtyLogError> {
        let bytes = region.size();
        let pages = (bytes as u64).div_ceil(PAGE_SIZE);
        let mut words =
            self.vm
                .get_dirty_log(slot, bytes)
                .map_err(|source| DirtyLogError::Slot {
                    action: "read",
                    slot,
                    source,
                })?;
        for (word, device) in words.iter_mut().zip(device_log(region).get_and_reset()) {
            *word |= device;
        }
        words.truncate(pages.div_ceil(64) as usize);
        Ok(DirtyRegion {
            start: region.start_addr().0,
            pages,
            words,
        })
    }

    /// Forgets the pages whose bits are set, and protects them anew (KVM API,
    /// `KVM_CLEAR_DIRTY_LOG`). `first_page` counts from the start of region `slot` and is a
    /// multiple of 64. Does nothing where KVM clears as it reports.
    ///
    /// # Errors
    /// [`DirtyLogError::Slot`].
    pub fn clear(
        &self,
        slot: u32,
        first_page: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), DirtyLogError> {
        if !self.manual_protect {
            return Ok(());
        }
        kvm::ioctl::clear_dirty_log(&self.vm, slot, first_page, pages, bitmap).map_err(|source| {
            DirtyLogError::Slot {
                action: "clear",
                slot,
                source,
            }
        })
    }
}

/// Tells KVM about a region, or changes its flags.
///
/// # Errors
/// KVM's own.
pub fn set_memslot(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegion,
    flags: u32,
) -> Result<(), kvm_ioctls::Error> {
    let memslot = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the range is one of our mappings, which outlives the VM: both hang on the same
    // machine, and regions do not overlap.
    unsafe { vm.set_user_memory_region(memslot) }
}
