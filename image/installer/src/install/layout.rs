//! Where everything is on the disk.

use std::ops::Range;

/// What the layout counts in, in bytes: what every disk's sectors and stripes divide.
pub const MIB: u64 = 1 << 20;
const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
const EFI_SYSTEM: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
/// Not the types that systemd starts and mounts by itself.
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name in the GPT.
    pub name: &'static str,
    /// Its type in the GPT.
    pub kind: &'static str,
    /// The bytes of the disk that are its.
    pub range: Range<u64>,
}

impl Partition {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// All parts, in the order of the disk and of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// GRUB's core image, for BIOS.
    pub bios: Partition,
    /// Boot loader and kernels, for BIOS and UEFI.
    pub esp: Partition,
    /// The root of slot A.
    pub root_a: Partition,
    /// The root of slot B.
    pub root_b: Partition,
    /// All that is not the image's.
    pub state: Partition,
}

impl Layout {
    /// Of a disk of so many bytes, which are at least [`LEAST_BYTES`](crate::disks::LEAST_BYTES).
    pub fn of(disk_bytes: u64) -> Self {
        let part = |name, kind, begin: u64, mib: u64| Partition {
            name,
            kind,
            range: begin * MIB..(begin + mib) * MIB,
        };
        // The second copy of the GPT is at the end.
        let end = disk_bytes / MIB - 1;
        Self {
            bios: part("pindah-bios", BIOS_BOOT, 1, 1),
            esp: part("pindah-esp", EFI_SYSTEM, 2, 512),
            root_a: part("pindah-root-a", LINUX, 514, 1024),
            root_b: part("pindah-root-b", LINUX, 1538, 1024),
            state: part("pindah-state", LINUX, 2562, end - 2562),
        }
    }

    /// All of them.
    pub fn partitions(&self) -> [&Partition; 5] {
        [
            &self.bios,
            &self.esp,
            &self.root_a,
            &self.root_b,
            &self.state,
        ]
    }

    /// What `sfdisk` makes it by.
    pub fn script(&self) -> String {
        let lines = self.partitions().map(|partition| {
            let (start, size) = (partition.range.start / MIB, partition.size() / MIB);
            let Partition { name, kind, .. } = partition;
            format!("start={start}MiB, size={size}MiB, type={kind}, name={name}\n")
        });
        format!("label: gpt\n{}", lines.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::LEAST_BYTES;

    #[test]
    fn parts_follow_each_other_and_leave_room_for_both_tables() {
        for bytes in [LEAST_BYTES, 320_072_933_376, (2 << 40) + 12345] {
            let layout = Layout::of(bytes);
            let mut end = MIB;
            for partition in layout.partitions() {
                assert_eq!(partition.range.start, end);
                end = partition.range.end;
            }
            assert!(end <= bytes - MIB && end > bytes - 3 * MIB);
            assert!(layout.state.size() > 1100 * MIB);
        }
    }

    #[test]
    fn script_counts_in_mib_whatever_the_sectors_are() {
        let script = Layout::of(4 << 30).script();
        let expected = "start=2MiB, size=512MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, \
                        name=pindah-esp";
        assert_eq!(script.lines().nth(2), Some(expected));
        assert_eq!(script.lines().count(), 6);
    }
}
