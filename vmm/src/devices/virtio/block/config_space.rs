//! The device configuration space: struct virtio_blk_config (virtio 1.2, 5.2.4).
//!
//! All but the capacity and `writeback` follows from the guest's configuration alone, so that a
//! migrated guest finds the same device on any host. In particular the block size is 512 bytes
//! whatever the storage has (larger blocks of the host are read, changed and written where that
//! is needed), and the physical block size on show is 4096, so that drivers align to it.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::request::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SECTOR_SIZE};

/// Bytes up to the last field that our features give a meaning.
const LEN: usize = 60;
/// Where `writeback` lies.
pub(super) const WRITEBACK: u64 = 32;
/// 8 blocks of 512 bytes are a physical one: 2^3.
const PHYSICAL_BLOCK_EXP: u8 = 3;
/// In blocks: 4096 bytes.
const MIN_IO_SIZE: u16 = 8;
/// In sectors: discards are best cut at 64 KiB, the cluster of qcow2.
const DISCARD_ALIGNMENT: u32 = 128;

/// What the configuration space is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfigSpace {
    pub capacity_sectors: u64,
    pub queues: u16,
    pub queue_size: u16,
    pub writeback: bool,
}

impl ConfigSpace {
    /// Fills `data` from `offset`; zeroes beyond the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes();
        for (position, byte) in (offset..=u64::MAX).zip(data.iter_mut()) {
            let position = usize::try_from(position).unwrap_or(usize::MAX);
            *byte = bytes.get(position).copied().unwrap_or(0);
        }
    }

    fn bytes(&self) -> [u8; LEN] {
        // Two descriptors are the header's and the status's.
        let seg_max = u32::from(self.queue_size).saturating_sub(2).max(1);
        let mut bytes = [0; LEN];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(0, &self.capacity_sectors.to_le_bytes());
        put(12, &seg_max.to_le_bytes());
        put(20, &(SECTOR_SIZE as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP]);
        put(26, &MIN_IO_SIZE.to_le_bytes());
        put(32, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        bytes
    }
}

/// Features on offer.
pub(super) fn features(read_only: bool, queues: u16) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
    ];
    if read_only {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
        ]);
    }
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    bits.into_iter().fold(0, |all, bit| all | 1 << bit)
}
