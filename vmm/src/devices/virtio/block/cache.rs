//! When a write is answered: once it is in the host's cache, or once it is on stable storage.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

use super::request::{Kind, Operation};
use super::shared::Shared;

/// Who decides whether a write is answered before it is on stable storage (virtio 1.2, 5.2.5.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheMode {
    Writeback,
    Writethrough,
    /// The `writeback` field of the configuration space.
    Field,
}

impl CacheMode {
    /// What the driver has agreed to.
    pub fn negotiated(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        if has(VIRTIO_BLK_F_CONFIG_WCE) {
            Self::Field
        } else if has(VIRTIO_BLK_F_FLUSH) {
            Self::Writeback
        } else {
            Self::Writethrough
        }
    }
}

impl Shared {
    /// Whether an operation that is done is answered only after a flush.
    pub fn needs_flush(&self, cache: CacheMode, operation: Operation) -> bool {
        let writes = matches!(operation.kind, Kind::Write | Kind::WriteZeroes { .. });
        writes
            && match cache {
                CacheMode::Writeback => false,
                CacheMode::Writethrough => true,
                CacheMode::Field => !self.writeback.load(Ordering::Acquire),
            }
    }
}
