//! A process's memory, of a VMM's that beyond its guest's RAM, from `/proc/PID/smaps` (proc(5)).

use std::fs;

use anyhow::{Context, Result, bail};

const KIB: u64 = 1024;
/// The kernel merges neighbours with the same rights: the RAM's mapping may be a little larger
/// than the RAM, and hide at most so much.
const MERGED_MAX: u64 = 4 * KIB * KIB;

/// One mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mapping {
    len: u64,
    rss: u64,
    pss: u64,
}

/// Bytes of memory of one or several processes; of VMMs without the guest's RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Resident pages; those shared with other processes count whole.
    pub rss: u64,
    /// Resident pages; one that n processes share counts 1/n.
    pub pss: u64,
}

/// Measures `processes`, in which `ram` bytes of guest RAM are mapped in one piece.
///
/// # Errors
/// If a process is gone, or none of them has such a mapping.
pub fn beyond_ram(processes: &[u32], ram: u64) -> Result<Resident> {
    let mut total = Resident::default();
    let mut found = false;
    for process in processes {
        let mappings = mappings(*process)?;
        let guest = find_ram(&mappings, ram);
        found |= guest.is_some();
        for (index, mapping) in mappings.iter().enumerate() {
            if Some(index) != guest {
                total.rss += mapping.rss;
                total.pss += mapping.pss;
            }
        }
    }
    if !found {
        bail!("no mapping of {} MiB: where is the guest's RAM?", ram >> 20);
    }
    Ok(total)
}

/// Measures a process that is no VMM.
///
/// # Errors
/// If it is gone.
pub fn whole(process: u32) -> Result<Resident> {
    let mut total = Resident::default();
    for mapping in mappings(process)? {
        total.rss += mapping.rss;
        total.pss += mapping.pss;
    }
    Ok(total)
}

fn mappings(process: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{process}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse(&text).with_context(|| format!("parsing {path}"))
}

/// Index of the mapping that is the guest's RAM: of this size or, failing that, hardly larger.
fn find_ram(mappings: &[Mapping], ram: u64) -> Option<usize> {
    let fits = |mapping: &Mapping| (ram..=ram + MERGED_MAX).contains(&mapping.len);
    let candidates = mappings.iter().enumerate().filter(|(_, m)| fits(m));
    // Of equal sizes the one in use: the other is address space that somebody reserved.
    candidates
        .min_by_key(|(_, mapping)| (mapping.len, std::cmp::Reverse(mapping.rss)))
        .map(|(index, _)| index)
}

fn parse(text: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some(name) = first.strip_suffix(':') {
            let Some(mapping) = mappings.last_mut() else {
                bail!("a field before the first mapping: {line}");
            };
            match name {
                "Rss" => mapping.rss = kib(line)?,
                "Pss" => mapping.pss = kib(line)?,
                _ => {}
            }
        } else {
            let len = range_len(first).with_context(|| format!("not a mapping: {line}"))?;
            mappings.push(Mapping {
                len,
                ..Mapping::default()
            });
        }
    }
    Ok(mappings)
}

/// Bytes of `START-END`.
fn range_len(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    address(end)?.checked_sub(address(start)?)
}

/// Bytes of `Name:   12 kB`.
fn kib(line: &str) -> Result<u64> {
    let value = line
        .split_whitespace()
        .nth(1)
        .and_then(|value| value.parse::<u64>().ok());
    let value = value.with_context(|| format!("not a size: {line}"))?;
    Ok(value * KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c0a10000 r-xp 00000000 fe:00 1234  /usr/bin/a name: with spaces
Size:                 64 kB
Rss:                  48 kB
Pss:                  12 kB
Pss_Dirty:             4 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Rss:               20480 kB
Pss:               20480 kB
7f0040000000-7f0060000000 ---p 00000000 00:00 0
Rss:                   0 kB
Pss:                   0 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
Rss:                   4 kB
Pss:                   0 kB
";

    #[test]
    fn parse_smaps_reads_each_mapping() {
        let mappings = parse(SMAPS).unwrap();
        let text = Mapping {
            len: 64 * KIB,
            rss: 48 * KIB,
            pss: 12 * KIB,
        };
        assert_eq!(mappings.len(), 4);
        assert_eq!(mappings[0], text);
        assert_eq!(mappings[1].rss, 20480 * KIB);
    }

    #[test]
    fn parse_garbage_fails() {
        assert!(parse("Rss: 4 kB\n").is_err());
        assert!(parse("nonsense\n").is_err());
        assert!(parse("10-20 rw-p\nRss: many kB\n").is_err());
        assert!(parse("20-10 rw-p\n").is_err());
    }

    #[test]
    fn find_ram_prefers_the_mapping_in_use() {
        let mappings = parse(SMAPS).unwrap();
        assert_eq!(find_ram(&mappings, 512 << 20), Some(1));
    }

    #[test]
    fn find_ram_takes_a_little_larger_one_but_no_other_size() {
        let mappings = parse(SMAPS).unwrap();
        assert_eq!(find_ram(&mappings, (512 << 20) - 64 * KIB), Some(1));
        assert_eq!(find_ram(&mappings, 500 << 20), None);
        assert_eq!(find_ram(&mappings, 513 << 20), None);
    }

    #[test]
    fn beyond_ram_of_this_process_counts_all_but_the_mapping() {
        let ram = 37 << 20;
        let memory = vec![1_u8; ram];
        let own = [std::process::id()];
        let beyond = beyond_ram(&own, ram as u64).unwrap();
        assert!(memory.iter().all(|byte| *byte == 1));
        assert!(beyond.rss > 0 && beyond.rss < ram as u64);
        assert!(beyond.pss <= beyond.rss);
        assert!(beyond_ram(&own, 1 << 45).is_err());
    }
}
