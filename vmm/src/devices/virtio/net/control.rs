//! The control queue (virtio 1.2, 5.1.6.5).

use std::io::Read;
use std::io::Write;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use virtio_queue::{Queue, QueueT};

use super::features;
use super::mac::MacAddress;
use super::ring::{self, BrokenRing};
use super::shared::Shared;
use crate::memory::GuestMemory;

/// Class and command, then at most eight bytes in all that we know.
const COMMAND_BYTES_MAX: usize = 2 + 8;

/// Does all commands that wait. Returns whether the driver wants to know.
pub(super) fn process(
    shared: &Shared,
    queue: &mut Queue,
    memory: &GuestMemory,
) -> Result<bool, BrokenRing> {
    let old = queue.next_used();
    loop {
        let silenced = queue.disable_notification(memory);
        silenced.map_err(|_| BrokenRing::Ring)?;
        while let Some(chain) = ring::next_chain(queue, memory)? {
            let head = chain.head_index();
            let reader = chain.clone().reader(memory);
            let writer = chain.writer(memory);
            let (Ok(mut reader), Ok(mut writer)) = (reader, writer) else {
                return Err(BrokenRing::Address);
            };
            let mut command = [0; COMMAND_BYTES_MAX];
            // What is longer is no command that we know, and fails for being unknown.
            let length = reader.read(&mut command).map_err(|_| BrokenRing::Address)?;
            let ack = match execute(shared, &command[..length]) {
                Some(()) => VIRTIO_NET_OK,
                None => VIRTIO_NET_ERR,
            };
            writer
                .write_all(&[ack as u8])
                .map_err(|_| BrokenRing::Length)?;
            ring::publish(queue, memory, &[(head, 1)])?;
        }
        let more = queue.enable_notification(memory);
        if !more.map_err(|_| BrokenRing::Ring)? {
            return ring::wants_notification(queue, memory, old);
        }
    }
}

/// Does one command; `None` if it is unknown, malformed, not negotiated or impossible.
fn execute(shared: &Shared, command: &[u8]) -> Option<()> {
    let (&[class, command], data) = command.split_first_chunk()?;
    let features = shared.features();
    let negotiated = |bit: u32| (features & (1 << bit) != 0).then_some(());
    match (u32::from(class), u32::from(command)) {
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            negotiated(VIRTIO_NET_F_MQ)?;
            let pairs = u16::from_le_bytes(*data.first_chunk()?);
            if pairs == 0 || usize::from(pairs) > shared.taps.len() {
                return None;
            }
            shared.apply_pairs(pairs).ok()?;
            shared.commands().pairs = pairs;
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            negotiated(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
            let mac = MacAddress::new(*data.first_chunk()?).ok()?;
            shared.commands().mac = mac;
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            negotiated(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
            let offloads = u64::from_le_bytes(*data.first_chunk()?);
            if offloads & !features::guest_offloads(features) != 0 {
                return None;
            }
            shared.apply_offloads(offloads).ok()?;
            shared.commands().offloads = Some(offloads);
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
            negotiated(VIRTIO_NET_F_GUEST_ANNOUNCE)?;
            shared.commands().announce = false;
        }
        _ => return None,
    }
    Some(())
}
