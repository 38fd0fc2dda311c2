//! `struct virtio_net_config` (virtio 1.2, 5.1.4).

use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};

use super::shared::Shared;

/// Address, status, number of queue pairs, MTU.
const CONFIG_BYTES: usize = 12;

impl Shared {
    /// Reads device configuration; zeroes beyond its end.
    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        let commands = self.commands();
        config[0..6].copy_from_slice(&commands.mac.bytes());
        let mut status = 0;
        if self.is_link_up() {
            status |= VIRTIO_NET_S_LINK_UP as u16;
        }
        if commands.announce {
            status |= VIRTIO_NET_S_ANNOUNCE as u16;
        }
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&(self.taps.len() as u16).to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(CONFIG_BYTES);
        let available = config.get(start..).unwrap_or_default();
        let count = data.len().min(available.len());
        data[..count].copy_from_slice(&available[..count]);
        data[count..].fill(0);
    }
}
