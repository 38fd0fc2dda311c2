//! Which features the device offers, and what they mean to the tap.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::open::NetResources;

const ALWAYS: [u32; 18] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// What a guest may accept, and how the tap is told so (5.1.6.5.6, `TUNSETOFFLOAD`).
const GUEST_OFFLOADS: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];

/// The feature bits of a device over `resources`.
pub(super) fn offered(resources: &NetResources) -> u64 {
    let mut features = mask(&ALWAYS);
    if resources.segments_udp {
        features |= mask(&[
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
            VIRTIO_NET_F_HOST_USO,
        ]);
    }
    if resources.taps.len() > 1 {
        features |= mask(&[VIRTIO_NET_F_MQ]);
    }
    if resources.mtu.is_some() {
        features |= mask(&[VIRTIO_NET_F_MTU]);
    }
    features
}

/// Those of `features` that the driver may switch off and on while it runs.
pub(super) fn guest_offloads(features: u64) -> u64 {
    GUEST_OFFLOADS
        .iter()
        .fold(0, |all, &(bit, _)| all | (features & (1 << bit)))
}

/// The argument of `TUNSETOFFLOAD` for these guest offloads.
pub(super) fn tap_offloads(offloads: u64) -> u32 {
    GUEST_OFFLOADS
        .iter()
        .filter(|&&(bit, _)| offloads & (1 << bit) != 0)
        .fold(0, |all, &(_, flag)| all | flag)
}

fn mask(bits: &[u32]) -> u64 {
    bits.iter().fold(0, |all, bit| all | 1 << bit)
}
