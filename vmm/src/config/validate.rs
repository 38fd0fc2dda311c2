//! The rules for a guest as a whole: from the wire type to [`Config`].

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;

use pindah_vmm_api::{
    BootConfig, BootProtocol, CpusConfig, MemoryBacking, MemoryConfig, SerialConfig, VmConfig,
};

use super::devices::{disks, nets};
use super::{Config, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use crate::arch::x86_64::layout;

/// Linux's `COMMAND_LINE_SIZE` on x86 is 2048, the terminating NUL included.
const MAX_CMDLINE_BYTES: usize = 2047;
const MAX_NAME_BYTES: usize = 63;
const MAX_ID_BYTES: usize = 32;
/// Ids of the devices that have no choice.
const RESERVED_IDS: [&str; 4] = ["serial", "console", "rng", "balloon"];

/// A value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Which field: `disks[1].queues`.
    pub field: String,
    /// What it says; absent where the field itself is the matter.
    pub value: Option<String>,
    /// What is allowed.
    pub allowed: String,
}

impl Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(formatter, "{} = {value}: {}", self.field, self.allowed),
            None => write!(formatter, "{}: {}", self.field, self.allowed),
        }
    }
}

impl std::error::Error for Invalid {}

/// An error unless `fine`.
pub(super) fn require(
    fine: bool,
    field: impl Display,
    value: impl Display,
    allowed: impl Display,
) -> Result<(), Invalid> {
    if fine {
        return Ok(());
    }
    Err(refused(field, value, allowed))
}

pub(super) fn refused(field: impl Display, value: impl Display, allowed: impl Display) -> Invalid {
    Invalid {
        field: field.to_string(),
        value: Some(value.to_string()),
        allowed: allowed.to_string(),
    }
}

/// An error about a field that stands where it must not.
fn conflict(field: impl Display, allowed: impl Display) -> Invalid {
    Invalid {
        field: field.to_string(),
        value: None,
        allowed: allowed.to_string(),
    }
}

pub(super) fn quoted(value: &str) -> String {
    format!("{value:?}")
}

impl TryFrom<VmConfig> for Config {
    type Error = Invalid;

    fn try_from(mut wire: VmConfig) -> Result<Self, Invalid> {
        name("name", &wire.name, MAX_NAME_BYTES)?;
        cpus(&wire.cpus)?;
        memory(&wire.memory)?;
        boot(&wire.boot, !wire.disks.is_empty())?;
        device_count("disks", wire.disks.len(), layout::MAX_DISKS)?;
        device_count("nets", wire.nets.len(), layout::MAX_NETS)?;
        ids(&mut wire)?;
        disks(&wire.disks)?;
        nets(&wire.name, &mut wire.nets)?;
        serials(&wire)?;
        if let Some(balloon) = &wire.balloon {
            let most = wire.memory.size_mib - MIN_MEMORY_MIB;
            require(
                balloon.target_mib <= most,
                "balloon.target_mib",
                balloon.target_mib,
                format_args!("must leave the guest {MIN_MEMORY_MIB} MiB, so at most {most}"),
            )?;
        }
        Ok(Self(wire))
    }
}

/// Names end up in logs, thread names and file names.
fn name(field: &str, value: &str, longest: usize) -> Result<(), Invalid> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fine = (1..=longest).contains(&value.len())
        && value.chars().all(plain)
        && value.starts_with(|c: char| c.is_ascii_alphanumeric());
    require(
        fine,
        field,
        quoted(value),
        format_args!(
            "must be 1 to {longest} letters, digits, '-', '_' or '.', the first a letter or digit"
        ),
    )
}

fn cpus(wire: &CpusConfig) -> Result<(), Invalid> {
    let &CpusConfig {
        count,
        threads_per_core,
        cores_per_socket,
        ..
    } = wire;
    require(
        (1..=MAX_VCPUS).contains(&count),
        "cpus.count",
        count,
        format_args!("must be 1 to {MAX_VCPUS}"),
    )?;
    require(
        threads_per_core >= 1 && count.is_multiple_of(threads_per_core),
        "cpus.threads_per_core",
        threads_per_core,
        format_args!("must divide cpus.count = {count}"),
    )?;
    let cores = count / threads_per_core;
    let cores_per_socket = cores_per_socket.unwrap_or(cores);
    require(
        cores_per_socket >= 1 && cores.is_multiple_of(cores_per_socket),
        "cpus.cores_per_socket",
        cores_per_socket,
        format_args!(
            "must divide cpus.count / cpus.threads_per_core = {count} / {threads_per_core}"
        ),
    )
}

fn memory(wire: &MemoryConfig) -> Result<(), Invalid> {
    require(
        (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&wire.size_mib),
        "memory.size_mib",
        wire.size_mib,
        format_args!("must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} (MiB)"),
    )?;
    if wire.huge_page_kib.is_some() && wire.backing != MemoryBacking::Hugetlb {
        return Err(conflict(
            "memory.huge_page_kib",
            "needs memory.backing = \"hugetlb\"",
        ));
    }
    if wire.mergeable && wire.backing != MemoryBacking::Anonymous {
        return Err(conflict(
            "memory.mergeable",
            "needs memory.backing = \"anonymous\": KSM merges no other memory",
        ));
    }
    match wire.backing {
        MemoryBacking::Anonymous | MemoryBacking::Memfd => Ok(()),
        MemoryBacking::Hugetlb => hugetlb(wire),
    }
}

fn hugetlb(wire: &MemoryConfig) -> Result<(), Invalid> {
    let page_size_kib = wire.huge_page_kib.unwrap_or(2048);
    require(
        matches!(page_size_kib, 2048 | 1_048_576),
        "memory.huge_page_kib",
        page_size_kib,
        "must be 2048 (2 MiB) or 1048576 (1 GiB)",
    )?;
    let unit_mib = page_size_kib >> 10;
    require(
        wire.size_mib.is_multiple_of(unit_mib),
        "memory.size_mib",
        wire.size_mib,
        format_args!("must be a multiple of the huge page size, {unit_mib} MiB"),
    )
}

fn boot(wire: &BootConfig, has_disks: bool) -> Result<(), Invalid> {
    let Some(kernel) = &wire.kernel else {
        if wire.initrd.is_some() {
            return Err(conflict("boot.initrd", "needs boot.kernel"));
        }
        if !wire.cmdline.is_empty() {
            return Err(conflict("boot.cmdline", "needs boot.kernel"));
        }
        if wire.protocol != BootProtocol::Auto {
            return Err(conflict("boot.protocol", "needs boot.kernel"));
        }
        if wire.firmware.is_none() && !has_disks {
            return Err(conflict(
                "boot",
                "there is nothing to boot: give boot.kernel, or a disk with a boot loader",
            ));
        }
        return wire
            .firmware
            .as_ref()
            .map_or(Ok(()), |firmware| path("boot.firmware", firmware));
    };
    if wire.firmware.is_some() {
        return Err(conflict(
            "boot.firmware",
            "does not go with boot.kernel, which is entered without firmware",
        ));
    }
    path("boot.kernel", kernel)?;
    if let Some(initrd) = &wire.initrd {
        path("boot.initrd", initrd)?;
    }
    require(
        wire.cmdline.len() <= MAX_CMDLINE_BYTES && !wire.cmdline.contains('\0'),
        "boot.cmdline",
        format_args!("({} bytes)", wire.cmdline.len()),
        format_args!("must be at most {MAX_CMDLINE_BYTES} bytes without NUL"),
    )
}

pub(super) fn path(field: impl Display, value: &Path) -> Result<(), Invalid> {
    let text = value.to_string_lossy();
    require(
        !text.is_empty() && !text.contains('\0'),
        field,
        quoted(&text),
        "must be a path",
    )
}

fn device_count(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count <= most {
        return Ok(());
    }
    Err(conflict(
        field,
        format_args!("{count} are too many; the bus has slots for {most}"),
    ))
}

/// Fills in the ids that were not given, and sees that no two are the same.
fn ids(wire: &mut VmConfig) -> Result<(), Invalid> {
    let disks = wire.disks.iter_mut().map(|disk| &mut disk.id);
    let nets = wire.nets.iter_mut().map(|net| &mut net.id);
    let fields = disks
        .enumerate()
        .map(|(index, id)| ("disk", index, id))
        .chain(nets.enumerate().map(|(index, id)| ("net", index, id)));
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (kind, index, id) in fields {
        let id = id.get_or_insert_with(|| format!("{kind}{index}"));
        let field = format!("{kind}s[{index}].id");
        name(&field, id, MAX_ID_BYTES)?;
        require(
            !RESERVED_IDS.contains(&id.as_str()),
            &field,
            quoted(id),
            "is the id of a device that every guest may have; choose another",
        )?;
        if let Some(other) = taken.insert(id.clone(), field.clone()) {
            let allowed = format!("is {other} too; ids must differ");
            return Err(refused(field, quoted(id), allowed));
        }
    }
    Ok(())
}

fn serials(wire: &VmConfig) -> Result<(), Invalid> {
    for (field, serial) in [
        ("serial", Some(&wire.serial)),
        ("console", wire.console.as_ref()),
    ] {
        if let Some(SerialConfig::File(file) | SerialConfig::Socket(file)) = serial {
            path(field, file)?;
        }
    }
    match (&wire.serial, wire.console.as_ref()) {
        (SerialConfig::Off, _) => Ok(()),
        (serial, Some(console)) if serial == console => Err(conflict(
            "console",
            "leads where serial leads; only one of them can",
        )),
        _ => Ok(()),
    }
}
