//! Giving back what only the start of the process needed.

use std::ffi::c_void;

/// Drops the resident pages of all code and constants. They are clean, so what still runs comes
/// back from the page cache as it runs; the command line's, the configuration's and the loaders'
/// stay away. On an idle guest this is most of the VMM's own memory.
pub fn give_back_code() {
    // SAFETY: the callback has the type that is asked for and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(drop_read_only_segments), std::ptr::null_mut()) };
}

/// For one loaded object: its segments that nobody can write, whose pages can therefore not
/// differ from the file's. What the dynamic linker has relocated lies in a writable segment.
unsafe extern "C" fn drop_read_only_segments(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> libc::c_int {
    // SAFETY: the C library passes a valid description, which lives during this call.
    let object = unsafe { &*object };
    // SAFETY: it holds that many headers.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let page = crate::memory::PAGE_SIZE;
        let start = object.dlpi_addr + header.p_vaddr;
        // A page that is shared with the next segment stays.
        let (first, end) = (
            start.next_multiple_of(page),
            (start + header.p_memsz) / page * page,
        );
        if first < end {
            // SAFETY: the range is inside a private file mapping that nobody writes, so its pages
            // come back with the same content. The vDSO refuses, and that is fine.
            unsafe {
                libc::madvise(
                    first as *mut c_void,
                    (end - first) as usize,
                    libc::MADV_DONTNEED,
                )
            };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = statm.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn code_given_back_comes_back_as_it_runs() {
        let before = resident_kib();
        give_back_code();
        let after = resident_kib();
        assert!(after < before, "{before} KiB before, {after} KiB after");
        let text = format!("{:?}", std::collections::BTreeMap::from([(1, "one")]));
        assert_eq!(text, "{1: \"one\"}");
    }
}
