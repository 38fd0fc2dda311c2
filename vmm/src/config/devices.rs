//! The rules for disks and networks.

use pindah_vmm_api::{DiskConfig, NetConfig};

use super::validate::{Invalid, path, quoted, refused, require};
use crate::devices::virtio::net::{MacAddress, ParseMacError};

/// virtio 1.2, 5.2.6.1: `VIRTIO_BLK_ID_BYTES`.
const MAX_DISK_SERIAL_BYTES: usize = 20;
/// Linux's `IFNAMSIZ` is 16, the terminating NUL included.
const MAX_TAP_NAME_BYTES: usize = 15;
const MAX_QUEUES: u8 = 16;
const MAX_QUEUE_SIZE: u16 = 1024;

pub(super) fn disks(wire: &[DiskConfig]) -> Result<(), Invalid> {
    for (index, disk) in wire.iter().enumerate() {
        let same = |other: &&DiskConfig| other.path == disk.path;
        let shared = wire[..index].iter().find(same);
        if shared.is_some_and(|other| !(other.read_only && disk.read_only)) {
            return Err(refused(
                format_args!("disks[{index}].path"),
                quoted(&disk.path.to_string_lossy()),
                "is an earlier disk's too; only disks that are all read_only may share an image",
            ));
        }
    }
    let mut numbered = wire.iter().enumerate();
    numbered.try_for_each(|(index, disk)| one_disk(index, disk))
}

fn one_disk(index: usize, wire: &DiskConfig) -> Result<(), Invalid> {
    let at = |field: &str| format!("disks[{index}].{field}");
    path(at("path"), &wire.path)?;
    let serial = wire.serial.as_deref().unwrap_or_default();
    require(
        serial.len() <= MAX_DISK_SERIAL_BYTES && serial.chars().all(|c| matches!(c, ' '..='~')),
        at("serial"),
        quoted(serial),
        format_args!("must be at most {MAX_DISK_SERIAL_BYTES} printable ASCII characters"),
    )?;
    queues(at("queues"), wire.queues)?;
    queue_size(at("queue_size"), wire.queue_size)?;
    match wire.limits.out_of_range() {
        None => Ok(()),
        Some((field, value, range)) => Err(refused(
            at(&format!("limits.{field}")),
            value,
            format_args!("must be {} to {}", range.start(), range.end()),
        )),
    }
}

fn queues(field: String, value: u8) -> Result<(), Invalid> {
    require(
        (1..=MAX_QUEUES).contains(&value),
        field,
        value,
        format_args!("must be 1 to {MAX_QUEUES}"),
    )
}

fn queue_size(field: String, value: u16) -> Result<(), Invalid> {
    require(
        (2..=MAX_QUEUE_SIZE).contains(&value) && value.is_power_of_two(),
        field,
        value,
        format_args!("must be a power of two from 2 to {MAX_QUEUE_SIZE}"),
    )
}

pub(super) fn nets(guest: &str, wire: &mut [NetConfig]) -> Result<(), Invalid> {
    for index in 0..wire.len() {
        one_net(guest, index, &mut wire[index])?;
        let (earlier, net) = (&wire[..index], &wire[index]);
        for (other, earlier) in earlier.iter().enumerate() {
            require(
                earlier.mac != net.mac,
                format_args!("nets[{index}].mac"),
                quoted(net.mac.as_deref().unwrap_or_default()),
                format_args!("is nets[{other}].mac too; addresses must differ"),
            )?;
            require(
                earlier.tap != net.tap,
                format_args!("nets[{index}].tap"),
                quoted(&net.tap),
                format_args!("is nets[{other}].tap too; each device needs a tap of its own"),
            )?;
        }
    }
    Ok(())
}

fn one_net(guest: &str, index: usize, wire: &mut NetConfig) -> Result<(), Invalid> {
    let at = |field: &str| format!("nets[{index}].{field}");
    let id = wire.id.as_deref().expect("ids() has filled it in");
    // What Linux takes as an interface's name (dev_valid_name), less what needs quoting.
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    require(
        (1..=MAX_TAP_NAME_BYTES).contains(&wire.tap.len())
            && wire.tap.chars().all(plain)
            && !matches!(wire.tap.as_str(), "." | ".."),
        at("tap"),
        quoted(&wire.tap),
        format_args!(
            "must be an interface's name: 1 to {MAX_TAP_NAME_BYTES} visible ASCII characters \
             without '/', ':' and '%'"
        ),
    )?;
    let mac = match &wire.mac {
        Some(text) => text.parse::<MacAddress>().map_err(|error| {
            let allowed = match error {
                ParseMacError::Form(_) => "must be six octets in hexadecimal: 52:54:00:12:34:56",
                ParseMacError::Multicast(_) | ParseMacError::Zero => {
                    "must be a unicast address: the first octet even, not all zeroes"
                }
            };
            refused(at("mac"), quoted(text), allowed)
        })?,
        None => MacAddress::derive(guest, id),
    };
    wire.mac = Some(mac.to_string());
    queues(at("queue_pairs"), wire.queue_pairs)?;
    queue_size(at("queue_size"), wire.queue_size)
}
