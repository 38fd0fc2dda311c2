//! What a device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use pindah_vmm_api::NetMetrics;

/// One direction.
#[derive(Default)]
pub(super) struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// A packet of `bytes`, its virtio-net header not included, has passed.
    pub(super) fn passed(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A packet was lost.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Both directions, as the guest sees them.
#[derive(Default)]
pub(super) struct Counters {
    /// To the guest.
    pub rx: Direction,
    /// From the guest.
    pub tx: Direction,
}

impl Counters {
    /// A reading.
    pub(super) fn read(&self, id: &str) -> NetMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetMetrics {
            id: id.to_owned(),
            rx_packets: get(&self.rx.packets),
            rx_bytes: get(&self.rx.bytes),
            rx_dropped: get(&self.rx.dropped),
            tx_packets: get(&self.tx.packets),
            tx_bytes: get(&self.tx.bytes),
            tx_dropped: get(&self.tx.dropped),
        }
    }
}
