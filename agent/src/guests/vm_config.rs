//! From a guest's record to the configuration of its VMM.

use std::path::Path;

use pindah_vmm_api::{
    BalloonConfig, BootConfig, CpusConfig, DiskCache, DiskConfig, ErrorPolicy, MemoryConfig,
    NetConfig, ResetPolicy, SerialConfig, VhostMode, VmConfig,
};

use crate::domain::{Boot, Disk, Guest, Interface};
use crate::storage::DirPool;

/// The configuration, with the console's log at `console_log`.
pub(super) fn vm_config(guest: &Guest, pool: &DirPool, console_log: &Path) -> VmConfig {
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
        disks: guest
            .disks
            .iter()
            .map(|disk| disk_config(guest, disk, pool))
            .collect(),
        nets: guest.interfaces.iter().map(net_config).collect(),
        serial: SerialConfig::File(console_log.to_owned()),
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
