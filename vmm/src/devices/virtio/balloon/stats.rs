//! What the guest says of its memory (virtio 1.2, section 5.5.6.4).

use pindah_vmm_api::GuestMemoryStats;

/// Bytes of one entry: a 16-bit tag and a 64-bit value, packed.
pub const ENTRY_BYTES: usize = 10;

// `VIRTIO_BALLOON_S_*`.
const SWAP_IN: u16 = 0;
const SWAP_OUT: u16 = 1;
const MAJOR_FAULTS: u16 = 2;
const MINOR_FAULTS: u16 = 3;
const FREE: u16 = 4;
const TOTAL: u16 = 5;
const AVAILABLE: u16 = 6;
const CACHES: u16 = 7;
const HUGETLB_ALLOCATIONS: u16 = 8;
const HUGETLB_FAILURES: u16 = 9;

/// Reads entries. Tags that are not known are passed over, as is an entry that is cut short.
pub fn parse(entries: &[u8], time_unix_ms: u64) -> GuestMemoryStats {
    let mut stats = GuestMemoryStats {
        time_unix_ms,
        ..GuestMemoryStats::default()
    };
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let (tag, value) = entry.split_at(2);
        let tag = u16::from_le_bytes([tag[0], tag[1]]);
        let value = value
            .try_into()
            .map(u64::from_le_bytes)
            .expect("an entry has ten bytes");
        let field = match tag {
            SWAP_IN => &mut stats.swap_in_bytes,
            SWAP_OUT => &mut stats.swap_out_bytes,
            MAJOR_FAULTS => &mut stats.major_faults,
            MINOR_FAULTS => &mut stats.minor_faults,
            FREE => &mut stats.free_bytes,
            TOTAL => &mut stats.total_bytes,
            AVAILABLE => &mut stats.available_bytes,
            CACHES => &mut stats.disk_caches_bytes,
            HUGETLB_ALLOCATIONS => &mut stats.hugetlb_allocations,
            HUGETLB_FAILURES => &mut stats.hugetlb_failures,
            _ => continue,
        };
        *field = Some(value);
    }
    stats
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_tags_and_cut_entries_are_passed_over() {
        let mut entries = Vec::new();
        for (tag, value) in [(4_u16, 1_u64 << 40), (99, 7), (9, 3)] {
            entries.extend(tag.to_le_bytes());
            entries.extend(value.to_le_bytes());
        }
        entries.extend([5, 0, 1]);
        let expected = GuestMemoryStats {
            time_unix_ms: 5,
            free_bytes: Some(1 << 40),
            hugetlb_failures: Some(3),
            ..GuestMemoryStats::default()
        };
        assert_eq!(parse(&entries, 5), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes, 0);
        }
    }
}
