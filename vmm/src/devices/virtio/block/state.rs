//! Saved state of a block device, beside its queues: section `virtio-blk`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Version of the section's body.
pub(super) const VERSION: u16 = 1;
/// Kind of the section.
pub(super) const KIND: &str = "virtio-blk";

/// The section's body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlockState {
    /// Size of the disk, in sectors of 512 bytes. The image must have the same.
    pub capacity_sectors: u64,
    /// The configuration space's `writeback`.
    #[serde(default)]
    pub writeback: bool,
    /// Requests that the host failed and that are to be tried again, by queue.
    #[serde(default)]
    pub kept: Vec<KeptRequests>,
}

/// Requests of one queue: taken off its available ring and not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptRequests {
    /// The queue's index.
    pub queue: u16,
    /// The chains' heads in its descriptor table.
    pub heads: Vec<u16>,
}

impl BlockState {
    /// What in this state cannot be, for a device of this shape.
    pub fn fault(&self, capacity_sectors: u64, queues: u16, queue_size: u16) -> Option<String> {
        if self.capacity_sectors != capacity_sectors {
            return Some(format!(
                "the guest's disk has {} sectors, the image has {capacity_sectors}",
                self.capacity_sectors
            ));
        }
        let mut seen = BTreeSet::new();
        for kept in &self.kept {
            let queue = kept.queue;
            if queue >= queues || !seen.insert(queue) {
                return Some(format!("kept requests of queue {queue} of {queues}"));
            }
            let heads: BTreeSet<_> = kept.heads.iter().collect();
            if heads.len() != kept.heads.len() || heads.iter().any(|&&head| head >= queue_size) {
                return Some(format!("kept requests {:?} of queue {queue}", kept.heads));
            }
        }
        None
    }
}
