//! Which guest physical addresses are RAM: what a kernel that is loaded directly is told, and
//! what the firmware makes its own map from.

use super::layout;

/// Kind of a range, by its E820 number (ACPI 6.5, section 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// What it is.
    pub kind: RangeKind,
}

impl MemoryRange {
    fn new(range: std::ops::Range<u64>, kind: RangeKind) -> Self {
        Self {
            start: range.start,
            len: range.end - range.start,
            kind,
        }
    }
}

/// Where `ram_bytes` of RAM lie: from 0 up to 3 GiB, the rest from 4 GiB.
pub fn ram_ranges(ram_bytes: u64) -> Vec<MemoryRange> {
    let below = ram_bytes.min(layout::RAM_BELOW_4G_END);
    let above = ram_bytes - below;
    let mut ranges = vec![MemoryRange::new(0..below, RangeKind::Ram)];
    if above > 0 {
        let start = layout::RAM_ABOVE_4G_START;
        ranges.push(MemoryRange::new(
            start..start.saturating_add(above),
            RangeKind::Ram,
        ));
    }
    ranges
}

/// The memory map of a machine with `ram_bytes` of RAM (1 MiB or more), sorted, without
/// overlaps: RAM, the EBDA, and what a PC keeps for its BIOS.
pub fn memory_map(ram_bytes: u64) -> Vec<MemoryRange> {
    let mut map = vec![
        MemoryRange::new(0..layout::EBDA, RangeKind::Ram),
        MemoryRange::new(layout::EBDA..layout::LOW_RAM_END, RangeKind::Reserved),
        MemoryRange::new(layout::RSDP..layout::HIGH_RAM_START, RangeKind::Reserved),
    ];
    for mut range in ram_ranges(ram_bytes) {
        if range.start == 0 {
            range.start = layout::HIGH_RAM_START;
            range.len = range.len.saturating_sub(layout::HIGH_RAM_START);
        }
        if range.len > 0 {
            map.push(range);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usable(map: &[MemoryRange]) -> u64 {
        map.iter()
            .filter(|range| range.kind == RangeKind::Ram)
            .map(|range| range.len)
            .sum()
    }

    #[test]
    fn memory_map_of_5_gib_has_2_gib_above_4_gib() {
        let map = memory_map(5 << 30);
        let last = map.last().unwrap();
        assert_eq!((last.start, last.len), (4 << 30, 2 << 30));
        assert_eq!(map[3].start, 1 << 20);
        assert_eq!(map[3].start + map[3].len, 3 << 30);
    }

    proptest! {
        #[test]
        fn memory_map_is_sorted_disjoint_and_complete(mib in 2_u64..1 << 24) {
            let map = memory_map(mib << 20);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            let hole = layout::HIGH_RAM_START - layout::EBDA;
            prop_assert_eq!(usable(&map), (mib << 20) - hole);
        }
    }
}
