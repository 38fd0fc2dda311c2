//! What a machine needs of the host, opened by path before the sandbox closes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use pindah_vmm_api::{DiskConfig, MemoryBacking, NetConfig, SerialConfig};
use thiserror::Error;

use crate::boot::{self, BootResources, OpenBootError};
use crate::config::Config;
use crate::devices::chardev::{self, ChardevResources, OpenChardevError};
use crate::devices::virtio::block::{self, DiskResources, ImageOptions, OpenDiskError};
use crate::devices::virtio::net::{self, NetResources, OpenNetError};
use crate::memory::PageMap;

/// Everything that a machine needs of the host, open.
pub struct Resources {
    pub(super) kvm: File,
    pub(super) boot: BootResources,
    pub(super) serial: ChardevResources,
    pub(super) console: Option<ChardevResources>,
    pub(super) disks: Vec<DiskResources>,
    pub(super) nets: Vec<NetResources>,
    pub(super) page_map: PageMap,
}

/// Why something cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No KVM.
    #[error("cannot open /dev/kvm: run `pindah-vmm check` to see what this host lacks")]
    Kvm(#[source] io::Error),
    /// Kernel, initial RAM disk or firmware.
    #[error(transparent)]
    Boot(#[from] OpenBootError),
    /// A disk's image.
    #[error("disk {id}")]
    Disk {
        /// The disk.
        id: String,
        /// Why.
        #[source]
        source: OpenDiskError,
    },
    /// A network device's tap.
    #[error(transparent)]
    Net(#[from] OpenNetError),
    /// The serial port's or console's host side.
    #[error("{device}")]
    Chardev {
        /// `serial` or `console`.
        device: &'static str,
        /// Why.
        #[source]
        source: OpenChardevError,
    },
}

impl Resources {
    /// Opens all that `config` names, by path: the last time that paths matter.
    ///
    /// # Errors
    /// [`OpenError`] naming the thing.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let kvm = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/kvm")
            .map_err(OpenError::Kvm)?;
        let open_chardev = |device, config: &SerialConfig| {
            chardev::open(config).map_err(|source| OpenError::Chardev { device, source })
        };
        let anonymous = config.memory.backing == MemoryBacking::Anonymous;
        Ok(Self {
            kvm,
            page_map: PageMap::open(anonymous),
            boot: boot::open(&config.boot)?,
            serial: open_chardev("serial", &config.serial)?,
            console: config
                .console
                .as_ref()
                .map(|config| open_chardev("console", config))
                .transpose()?,
            nets: config
                .nets
                .iter()
                .map(|net| open_net(net, &config.name))
                .collect::<Result<_, _>>()?,
            disks: config
                .disks
                .iter()
                .map(open_disk)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn open_disk(config: &DiskConfig) -> Result<DiskResources, OpenError> {
    let options = ImageOptions {
        path: config.path.clone(),
        format: config.format,
        read_only: config.read_only,
        cache: config.cache,
    };
    block::open(&options).map_err(|source| OpenError::Disk {
        id: config.id.clone().unwrap_or_default(),
        source,
    })
}

fn open_net(config: &NetConfig, guest: &str) -> Result<NetResources, OpenError> {
    let id = config.id.as_deref().unwrap_or_default();
    Ok(net::open(config, id, guest)?)
}
