//! Maps guest RAM.

use std::fs::File;
use std::io;

use pindah_vmm_api::{MemoryBacking, MemoryConfig};
use thiserror::Error;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestRegionCollectionError};
use vmm_sys_util::syscall::SyscallReturnCode;

use super::{GuestMemory, GuestRegion};
use crate::arch::x86_64::layout;

/// Why guest RAM cannot be mapped.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The guest would be larger than the host.
    #[error(
        "{size_mib} MiB of guest RAM is more than the {host_mib} MiB that this host has; choose less"
    )]
    TooLarge {
        /// What was asked for.
        size_mib: u64,
        /// What the host has in all.
        host_mib: u64,
    },
    /// The host has no such memory to give.
    #[error("cannot map {size_mib} MiB of guest RAM; choose less memory, or free some on the host")]
    Map {
        /// What was asked for.
        size_mib: u64,
        /// The host's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The file behind the memory cannot be made.
    #[error("cannot make a memory file of {size_mib} MiB{}", huge_hint(*.huge_page_kib))]
    File {
        /// What was asked for.
        size_mib: u64,
        /// Huge pages of this size were asked for.
        huge_page_kib: Option<u64>,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The regions do not form one memory.
    #[error("guest RAM has an impossible layout")]
    Layout(#[source] GuestRegionCollectionError),
    /// Touching the memory before the start failed.
    #[error("cannot fault in {size_mib} MiB of guest RAM")]
    Prefault {
        /// What was asked for.
        size_mib: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

fn huge_hint(huge_page_kib: Option<u64>) -> String {
    huge_page_kib.map_or_else(String::new, |kib| {
        format!(" of {kib} KiB huge pages; reserve enough in /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages")
    })
}

/// Where RAM of `size` bytes lies, and the firmware's `firmware` bytes below 4 GiB.
fn ranges(size: u64, firmware: u64) -> Vec<(u64, u64)> {
    let low = size.min(layout::RAM_BELOW_4G_END);
    let mut ranges = vec![(0, low)];
    if firmware > 0 {
        ranges.push((layout::FIRMWARE_END - firmware, firmware));
    }
    if size > low {
        ranges.push((layout::RAM_ABOVE_4G_START, size - low));
    }
    ranges
}

/// Maps guest RAM as `config` says, and `firmware_bytes` (a multiple of 4096) that end at 4 GiB.
///
/// # Errors
/// [`MemoryError`]; nothing stays mapped.
pub fn build(config: &MemoryConfig, firmware_bytes: u64) -> Result<GuestMemory, MemoryError> {
    let size_mib = config.size_mib;
    let host_mib = host_memory_mib();
    if size_mib > host_mib {
        return Err(MemoryError::TooLarge { size_mib, host_mib });
    }
    let regions = ranges(size_mib << 20, firmware_bytes)
        .into_iter()
        .map(|(base, len)| {
            let is_firmware = base + len == layout::FIRMWARE_END;
            let region = map_region(config, base, len, is_firmware)?;
            advise(config, &region, is_firmware);
            if config.prefault {
                prefault(&region).map_err(|source| MemoryError::Prefault { size_mib, source })?;
            }
            Ok(region)
        })
        .collect::<Result<Vec<_>, MemoryError>>()?;
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

fn host_memory_mib() -> u64 {
    // SAFETY: sysconf only reads.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: as above.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    (pages.max(0) as u64).saturating_mul(page_size.max(0) as u64) >> 20
}

fn map_region(
    config: &MemoryConfig,
    base: u64,
    len: u64,
    is_firmware: bool,
) -> Result<GuestRegion, MemoryError> {
    let map_error = |source| MemoryError::Map {
        size_mib: config.size_mib,
        source,
    };
    let bytes = len as usize;
    let bitmap = AtomicBitmap::with_len(bytes);
    let builder = MmapRegionBuilder::new_with_bitmap(bytes, bitmap)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match config.backing {
        MemoryBacking::Anonymous => {
            builder.with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        }
        MemoryBacking::Memfd | MemoryBacking::Hugetlb => {
            let huge_page_kib = match config.backing {
                MemoryBacking::Hugetlb if !is_firmware => {
                    Some(config.huge_page_kib.unwrap_or(2048))
                }
                _ => None,
            };
            let file = memory_file(len, huge_page_kib).map_err(|source| MemoryError::File {
                size_mib: config.size_mib,
                huge_page_kib,
                source,
            })?;
            builder
                .with_mmap_flags(libc::MAP_SHARED)
                .with_hugetlbfs(huge_page_kib.is_some())
                .with_file_offset(FileOffset::new(file, 0))
        }
    };
    let region = builder.build().map_err(map_error)?;
    GuestRegion::new(region, GuestAddress(base))
        .ok_or_else(|| map_error(MmapRegionError::InvalidOffsetLength))
}

fn memory_file(len: u64, huge_page_kib: Option<u64>) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    let mut flags = libc::MFD_CLOEXEC;
    if let Some(kib) = huge_page_kib {
        // linux/memfd.h: the page size's logarithm stands above bit 26.
        flags |= libc::MFD_HUGETLB | ((kib << 10).trailing_zeros() << 26);
    }
    // SAFETY: the name is a C string and memfd_create touches no other memory.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    let fd = SyscallReturnCode(fd).into_result()?;
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// Hints: all may be refused by a kernel without the feature, and nothing depends on them.
fn advise(config: &MemoryConfig, region: &GuestRegion, is_firmware: bool) {
    let mut hints = vec![libc::MADV_DONTDUMP];
    if config.backing == MemoryBacking::Anonymous && !is_firmware {
        hints.push(libc::MADV_HUGEPAGE);
        if config.mergeable {
            hints.push(libc::MADV_MERGEABLE);
        }
    }
    for hint in hints {
        if let Err(error) = madvise(region, hint) {
            tracing::debug!(hint, %error, "hint for guest RAM refused");
        }
    }
}

fn prefault(region: &GuestRegion) -> io::Result<()> {
    madvise(region, libc::MADV_POPULATE_WRITE)
}

fn madvise(region: &GuestRegion, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is exactly one mapping that lives as long as `region`, and none of the
    // hints used here changes its content.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    SyscallReturnCode(result).into_empty_result()
}

#[cfg(test)]
mod tests {
    use pindah_vmm_api::MemoryConfig;
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::super::device_log;
    use super::*;

    fn config(size_mib: u64, backing: MemoryBacking) -> MemoryConfig {
        MemoryConfig {
            size_mib,
            backing,
            huge_page_kib: None,
            prefault: false,
            mergeable: false,
        }
    }

    #[test]
    fn ranges_of_a_large_guest_leave_the_hole_free() {
        assert_eq!(ranges(64 << 20, 0), [(0, 64 << 20)]);
        assert_eq!(
            ranges(4 << 30, 256 << 10),
            [(0, 3 << 30), (0xFFFC_0000, 256 << 10), (1 << 32, 1 << 30)]
        );
    }

    #[test]
    fn build_with_each_backing_gives_zeroed_ram_with_a_clean_bitmap() {
        for backing in [MemoryBacking::Anonymous, MemoryBacking::Memfd] {
            let memory = build(&config(3100, backing), 0x4_0000).unwrap();
            assert_eq!(memory.num_regions(), 3);
            let value: u64 = memory.read_obj(GuestAddress(0x1_0000_0000)).unwrap();
            assert_eq!(value, 0);
            for region in memory.iter() {
                assert!(
                    device_log(region)
                        .get_and_reset()
                        .iter()
                        .all(|&word| word == 0)
                );
            }
        }
    }

    #[test]
    fn build_of_more_than_the_host_has_is_refused() {
        let refused = build(&config(1 << 40, MemoryBacking::Anonymous), 0);
        assert!(matches!(refused, Err(MemoryError::TooLarge { .. })));
    }

    #[test]
    fn build_with_more_huge_pages_than_the_host_has_is_an_error() {
        let mut config = config(host_memory_mib(), MemoryBacking::Hugetlb);
        config.huge_page_kib = Some(2048);
        assert!(matches!(
            build(&config, 0),
            Err(MemoryError::Map { .. } | MemoryError::File { .. })
        ));
    }
}
