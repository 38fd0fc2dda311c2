//! From a guest's record to the configuration of its VMM.

use std::path::{Path, PathBuf};

use pindah_vmm_api::{
    BalloonConfig, BootConfig, CpusConfig, DiskCache, DiskConfig, DiskFormat, ErrorPolicy,
    MemoryConfig, NetConfig, ResetPolicy, SerialConfig, VhostMode, VmConfig,
};

use crate::domain::{Boot, Disk, Guest, Interface};
use crate::storage::DirPool;

/// The configuration of a guest whose own files lie in `directory`.
pub(super) fn vm_config(guest: &Guest, pool: &DirPool, directory: &Path) -> VmConfig {
    VmConfig {
        name: guest.name.to_string(),
        cpus: CpusConfig {
            count: guest.cpus,
            baseline: guest.baseline,
            ..CpusConfig::default()
        },
        memory: MemoryConfig {
            size_mib: guest.memory_mib,
            backing: pindah_vmm_api::MemoryBacking::Anonymous,
            huge_page_kib: None,
            prefault: false,
            mergeable: false,
        },
        boot: boot(&guest.boot, pool),
        disks: disks(guest, pool, directory),
        nets: guest.interfaces.iter().map(net_config).collect(),
        serial: SerialConfig::File(console_log(directory)),
        console: None,
        rng: true,
        balloon: Some(BalloonConfig::default()),
        on_reset: ResetPolicy::Reset,
    }
}

fn boot(boot: &Boot, pool: &DirPool) -> BootConfig {
    match boot {
        Boot::Firmware => BootConfig::default(),
        Boot::Kernel {
            kernel,
            initrd,
            cmdline,
        } => BootConfig {
            kernel: Some(pool.image_path(kernel)),
            initrd: initrd.as_ref().map(|initrd| pool.image_path(initrd)),
            cmdline: cmdline.clone(),
            ..BootConfig::default()
        },
    }
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
fn disks(guest: &Guest, pool: &DirPool, directory: &Path) -> Vec<DiskConfig> {
    let own = guest.disks.iter();
    let mut disks: Vec<DiskConfig> = own.map(|disk| disk_config(guest, disk, pool)).collect();
    if guest.cloud_init.is_some() {
        disks.push(seed_config(directory));
    }
    disks
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
    }
}

fn disk_config(guest: &Guest, disk: &Disk, pool: &DirPool) -> DiskConfig {
    DiskConfig {
        id: Some(disk.id.clone()),
        path: pool.volume_path(guest.uuid, disk),
        format: disk.format,
        read_only: false,
        cache: DiskCache::Direct,
        serial: None,
        queues: 1,
        queue_size: 256,
        // A full pool stops the guest until there is space, not its file system.
        on_error: ErrorPolicy::Pause,
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
