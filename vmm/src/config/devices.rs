//! The rules for disks and networks.

use pindah_vmm_api::{DiskConfig, NetConfig};

use super::validate::{Invalid, path, quoted, refused, require};
use super::{Disk, MacAddress, Net};

/// virtio 1.2, 5.2.6.1: `VIRTIO_BLK_ID_BYTES`.
const MAX_DISK_SERIAL_BYTES: usize = 20;
/// Linux's `IFNAMSIZ` is 16, the terminating NUL included.
const MAX_TAP_NAME_BYTES: usize = 15;
const MAX_QUEUES: u8 = 16;
const MAX_QUEUE_SIZE: u16 = 1024;

pub(super) fn disks(wire: &[DiskConfig]) -> Result<Vec<Disk>, Invalid> {
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
    let numbered = wire.iter().enumerate();
    numbered
        .map(|(index, disk)| one_disk(index, disk))
        .collect()
}

fn one_disk(index: usize, wire: &DiskConfig) -> Result<Disk, Invalid> {
    let at = |field: &str| format!("disks[{index}].{field}");
    path(at("path"), &wire.path)?;
    let serial = wire.serial.clone().unwrap_or_default();
    require(
        serial.len() <= MAX_DISK_SERIAL_BYTES && serial.chars().all(|c| matches!(c, ' '..='~')),
        at("serial"),
        quoted(&serial),
        format_args!("must be at most {MAX_DISK_SERIAL_BYTES} printable ASCII characters"),
    )?;
    queues(at("queues"), wire.queues)?;
    queue_size(at("queue_size"), wire.queue_size)?;
    Ok(Disk {
        id: wire.id.clone().expect("ids() has filled it in"),
        path: wire.path.clone(),
        format: wire.format,
        read_only: wire.read_only,
        cache: wire.cache,
        serial,
        queues: wire.queues,
        queue_size: wire.queue_size,
        on_error: wire.on_error,
    })
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

pub(super) fn nets(guest: &str, wire: &mut [NetConfig]) -> Result<Vec<Net>, Invalid> {
    let mut nets: Vec<Net> = Vec::new();
    for (index, net) in wire.iter_mut().enumerate() {
        let net = one_net(guest, index, net)?;
        for (other, earlier) in nets.iter().enumerate() {
            require(
                earlier.mac != net.mac,
                format_args!("nets[{index}].mac"),
                quoted(&net.mac.to_string()),
                format_args!("is nets[{other}].mac too; addresses must differ"),
            )?;
            require(
                earlier.tap != net.tap,
                format_args!("nets[{index}].tap"),
                quoted(&net.tap),
                format_args!("is nets[{other}].tap too; each device needs a tap of its own"),
            )?;
        }
        nets.push(net);
    }
    Ok(nets)
}

fn one_net(guest: &str, index: usize, wire: &mut NetConfig) -> Result<Net, Invalid> {
    let at = |field: &str| format!("nets[{index}].{field}");
    let id = wire.id.clone().expect("ids() has filled it in");
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
        Some(text) => parse_mac(&at("mac"), text)?,
        None => derived_mac(guest, &id),
    };
    wire.mac = Some(mac.to_string());
    queues(at("queue_pairs"), wire.queue_pairs)?;
    queue_size(at("queue_size"), wire.queue_size)?;
    Ok(Net {
        id,
        tap: wire.tap.clone(),
        mac,
        queue_pairs: wire.queue_pairs,
        queue_size: wire.queue_size,
        vhost: wire.vhost,
    })
}

fn parse_mac(field: &str, text: &str) -> Result<MacAddress, Invalid> {
    let mut octets = [0_u8; 6];
    let mut parts = text.split([':', '-']);
    let well_formed = octets.iter_mut().all(|octet| {
        let part = parts.next().unwrap_or_default();
        let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u8::from_str_radix(part, 16).ok().filter(|_| digits);
        *octet = value.unwrap_or_default();
        value.is_some()
    }) && parts.next().is_none();
    require(
        well_formed,
        field,
        quoted(text),
        "must be six octets in hexadecimal: 52:54:00:12:34:56",
    )?;
    require(
        octets[0] & 1 == 0 && octets != [0; 6],
        field,
        quoted(text),
        "must be a unicast address: the first octet even, not all zeroes",
    )?;
    Ok(MacAddress(octets))
}

/// A locally administered address that stays the same for the same guest and device: 52:54 and
/// 32 bits of FNV-1a. With 200 guests two agree once in 200,000 sites.
fn derived_mac(guest: &str, id: &str) -> MacAddress {
    let bytes = guest.bytes().chain([0]).chain(id.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d] = ((hash >> 32) as u32 ^ hash as u32).to_be_bytes();
    MacAddress([0x52, 0x54, a, b, c, d])
}
