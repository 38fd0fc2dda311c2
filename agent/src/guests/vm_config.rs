//! From a guest's record to the configuration of its VMM.

use std::path::{Path, PathBuf};

use pindah_vmm_api::{
    BalloonConfig, BootConfig, CpusConfig, DiskCache, DiskConfig, DiskFormat, DiskLimits,
    ErrorPolicy, MemoryConfig, NetConfig, ResetPolicy, SerialConfig, VhostMode, VmConfig,
};

use crate::domain::{Boot, Disk, Guest, Interface};
use crate::storage::{GuestPools, StorageError};

/// The configuration of a guest whose own files lie in `directory`.
///
/// # Errors
/// [`StorageError::NoPool`]: one that it needs is not among `pools`.
pub(super) fn vm_config(
    guest: &Guest,
    pools: &GuestPools,
    directory: &Path,
) -> Result<VmConfig, StorageError> {
    Ok(VmConfig {
        name: guest.name.to_string(),
        cpus: CpusConfig {
            count: guest.cpus,
            baseline: guest.baseline,
            features: guest.cpu_features.clone(),
            ..CpusConfig::default()
        },
        memory: MemoryConfig {
            size_mib: guest.memory_mib,
            backing: pindah_vmm_api::MemoryBacking::Anonymous,
            huge_page_kib: None,
            prefault: false,
            mergeable: false,
        },
        boot: boot(&guest.boot, pools)?,
        disks: disks(guest, pools, directory)?,
        nets: guest.interfaces.iter().map(net_config).collect(),
        serial: SerialConfig::File(console_log(directory)),
        console: None,
        rng: true,
        balloon: Some(BalloonConfig {
            target_mib: guest.balloon_mib(guest.memory_mib),
            ..BalloonConfig::default()
        }),
        on_reset: ResetPolicy::Reset,
    })
}

fn boot(boot: &Boot, pools: &GuestPools) -> Result<BootConfig, StorageError> {
    Ok(match boot {
        Boot::Firmware => BootConfig::default(),
        Boot::Kernel {
            kernel,
            initrd,
            cmdline,
        } => BootConfig {
            kernel: Some(pools.image_path(kernel)?),
            initrd: match initrd {
                Some(initrd) => Some(pools.image_path(initrd)?),
                None => None,
            },
            cmdline: cmdline.clone(),
            ..BootConfig::default()
        },
    })
}

/// Where the serial port's output goes.
pub(super) fn console_log(directory: &Path) -> PathBuf {
    directory.join("console.log")
}

/// Where cloud-init's seed is.
pub(super) fn seed(directory: &Path) -> PathBuf {
    directory.join("seed.img")
}

/// The guest's own, then cloud-init's seed: it may come and go without renaming them.
fn disks(
    guest: &Guest,
    pools: &GuestPools,
    directory: &Path,
) -> Result<Vec<DiskConfig>, StorageError> {
    let mut disks = Vec::new();
    for disk in &guest.disks {
        let path = pools.get(&disk.volume.pool)?.volume_path(guest.uuid, disk);
        disks.push(disk_config(disk, path));
    }
    if guest.cloud_init.is_some() {
        disks.push(seed_config(directory));
    }
    Ok(disks)
}

fn seed_config(directory: &Path) -> DiskConfig {
    DiskConfig {
        id: Some("seed".to_owned()),
        path: seed(directory),
        format: DiskFormat::Raw,
        read_only: true,
        cache: DiskCache::Buffered,
        serial: None,
        queues: 1,
        queue_size: 256,
        on_error: ErrorPolicy::Report,
        limits: DiskLimits::default(),
    }
}

fn disk_config(disk: &Disk, path: PathBuf) -> DiskConfig {
    DiskConfig {
        id: Some(disk.id.clone()),
        path,
        format: disk.format,
        read_only: false,
        // What a node has in its page cache, another one that takes the guest over does not see.
        cache: DiskCache::Direct,
        serial: None,
        queues: 1,
        queue_size: 256,
        // A full pool stops the guest until there is space, not its file system.
        on_error: ErrorPolicy::Pause,
        limits: disk.limits.into(),
    }
}

fn net_config(interface: &Interface) -> NetConfig {
    NetConfig {
        id: Some(interface.id.clone()),
        tap: interface.tap.clone(),
        mac: Some(interface.mac.clone()),
        queue_pairs: 1,
        queue_size: 256,
        vhost: VhostMode::Auto,
    }
}
