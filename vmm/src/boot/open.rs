//! From the paths of a configuration to open, checked files.

use std::io;
use std::path::Path;

use pindah_vmm_api::{BootConfig, BootProtocol};

use super::file::ImageFile;
use super::firmware::{DEFAULT_FIRMWARE, Firmware};
use super::{BootResources, BzImage, DirectBoot, ElfImage, Kernel, OpenBootError, linux};

/// Opens and checks what `config` names.
///
/// # Errors
/// [`OpenBootError`] names the file and what is wrong with it.
pub fn open(config: &BootConfig) -> Result<BootResources, OpenBootError> {
    let Some(kernel) = &config.kernel else {
        return open_firmware(config).map(BootResources::Firmware);
    };
    let file = ImageFile::open(kernel)?;
    let initrd = config.initrd.as_deref().map(ImageFile::open).transpose()?;
    let boot = DirectBoot::new(file, initrd, config.cmdline.clone(), config.protocol)?;
    Ok(BootResources::Direct(Box::new(boot)))
}

fn open_firmware(config: &BootConfig) -> Result<Firmware, OpenBootError> {
    if config.initrd.is_some() {
        return Err(OpenBootError::WithoutKernel { field: "initrd" });
    }
    if !config.cmdline.is_empty() {
        return Err(OpenBootError::WithoutKernel { field: "cmdline" });
    }
    if config.protocol != BootProtocol::Auto {
        return Err(OpenBootError::WithoutKernel { field: "protocol" });
    }
    if let Some(path) = &config.firmware {
        return Firmware::new(ImageFile::open(path)?);
    }
    let path = Path::new(DEFAULT_FIRMWARE);
    match ImageFile::open(path) {
        Err(OpenBootError::Open { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            Err(OpenBootError::NoFirmware { path })
        }
        file => Firmware::new(file?),
    }
}

impl DirectBoot {
    /// Checks a kernel and what belongs to it.
    ///
    /// # Errors
    /// [`OpenBootError`] names the file and what is wrong with it.
    pub fn new(
        file: ImageFile,
        initrd: Option<ImageFile>,
        cmdline: String,
        protocol: BootProtocol,
    ) -> Result<Self, OpenBootError> {
        let kernel = parse_kernel(&file, protocol)?;
        let max = match &kernel {
            Kernel::BzImage(image) => image.cmdline_max().min(linux::CMDLINE_MAX),
            Kernel::ElfLinux(..) | Kernel::ElfPvh(..) => linux::CMDLINE_MAX_ELF,
        };
        if cmdline.len() as u64 > max {
            return Err(OpenBootError::CmdlineTooLong {
                path: file.path().to_owned(),
                len: cmdline.len(),
                max,
            });
        }
        if cmdline.contains('\0') {
            return Err(OpenBootError::CmdlineZero);
        }
        Ok(Self {
            file,
            kernel,
            initrd,
            cmdline,
        })
    }
}

fn parse_kernel(file: &ImageFile, protocol: BootProtocol) -> Result<Kernel, OpenBootError> {
    let path = || file.path().to_owned();
    if !ElfImage::is_one(&file.read_at(0, 4)?) {
        let image = BzImage::parse(file)?;
        return match protocol {
            BootProtocol::Pvh => Err(OpenBootError::NoPvhNote { path: path() }),
            BootProtocol::Auto | BootProtocol::Linux => Ok(Kernel::BzImage(image)),
        };
    }
    let image = ElfImage::parse(file)?;
    match (protocol, image.pvh_entry, image.entry) {
        (BootProtocol::Auto | BootProtocol::Pvh, Some(entry), _) => {
            Ok(Kernel::ElfPvh(image, entry))
        }
        (BootProtocol::Pvh, None, _) => Err(OpenBootError::NoPvhNote { path: path() }),
        (BootProtocol::Auto | BootProtocol::Linux, _, Some(entry)) => {
            Ok(Kernel::ElfLinux(image, entry))
        }
        (_, _, None) => Err(OpenBootError::Malformed {
            path: path(),
            reason: "entry point outside all segments",
        }),
    }
}
