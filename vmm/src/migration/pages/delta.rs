//! The difference between two versions of a page: the 64-bit words that changed.
//!
//! Shape: number of runs (u8); for each run the words to skip since the last one and the words
//! that follow, as varints, and these words as they are now. A varint is seven bits a byte, the
//! lowest first, bit 7 set in all bytes but the last.
//!
//! New words rather than their XOR with the old ones: they are as long, and a receiver need not
//! read, nor trust, what it overwrites.

use super::{PAGE, Page};

/// Longest difference that is worth more than compressing the page.
pub(super) const MAX_BYTES: usize = PAGE / 4;

const WORD: usize = 8;

/// Appends what turns `old` into `new`. Returns `false`, and appends nothing, if that is longer
/// than [`MAX_BYTES`].
pub(super) fn encode(old: &Page, new: &Page, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let words = old.as_chunks::<WORD>().0.iter().zip(new.as_chunks().0);
    let mut words = words.map(|(old, new): (_, &[u8; WORD])| (old != new, new));
    out.push(0);
    let mut position = 0;
    let mut end = 0;
    while let Some(skipped) = words.position(|(differs, _)| differs) {
        let first = position + skipped;
        let following = words.by_ref().take_while(|(differs, _)| *differs).count();
        let stop = first + 1 + following;
        put_varint(first - end, out);
        put_varint(stop - first, out);
        out.extend_from_slice(&new[first * WORD..stop * WORD]);
        if out.len() - start > MAX_BYTES {
            out.truncate(start);
            return false;
        }
        out[start] += 1;
        end = stop;
        // The word that ended the run is consumed as well.
        position = stop + 1;
    }
    true
}

/// Applies the difference at the start of `bytes` to `page` and returns what follows it; `None` if
/// there is none, when the page may be changed in part.
pub(super) fn apply<'a>(page: &mut Page, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (&runs, mut bytes) = bytes.split_first()?;
    let mut end = 0;
    for _ in 0..runs {
        let first = end + take_varint(&mut bytes)?;
        end = first + take_varint(&mut bytes)?;
        let words = page.get_mut(first * WORD..end * WORD)?;
        let (now, rest) = bytes.split_at_checked(words.len())?;
        words.copy_from_slice(now);
        bytes = rest;
    }
    Some(bytes)
}

/// `number` is at most the words of a page.
fn put_varint(number: usize, out: &mut Vec<u8>) {
    if number < 0x80 {
        out.push(number as u8);
    } else {
        out.extend_from_slice(&[number as u8 | 0x80, (number >> 7) as u8]);
    }
}

/// At most two bytes, so less than 2^14.
fn take_varint(bytes: &mut &[u8]) -> Option<usize> {
    let (number, rest) = match **bytes {
        [low @ 0..=0x7f, ref rest @ ..] => (usize::from(low), rest),
        [low, high @ 0..=0x7f, ref rest @ ..] => {
            (usize::from(low & 0x7f) | usize::from(high) << 7, rest)
        }
        _ => return None,
    };
    *bytes = rest;
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn changed(old: &Page, changes: &[(usize, u8)]) -> Page {
        let mut new = *old;
        for &(at, byte) in changes {
            new[at % PAGE] = byte;
        }
        new
    }

    #[test]
    fn one_word_costs_eleven_bytes() {
        let new = changed(&[0; PAGE], &[(800, 7)]);
        let mut bytes = Vec::new();
        assert!(encode(&[0; PAGE], &new, &mut bytes));
        assert_eq!(bytes, [1, 100, 1, 7, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn every_word_changed_is_no_difference() {
        let mut bytes = vec![1, 2, 3];
        assert!(!encode(&[0; PAGE], &[1; PAGE], &mut bytes));
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn run_beyond_the_page_is_refused() {
        let mut page = [0; PAGE];
        let words = [0xff; PAGE * 2];
        for head in [
            &[1, 0x80, 4, 1][..],
            &[1, 0xff, 3, 2],
            &[1, 0xff, 0x7f, 0xff, 0x7f],
            &[1, 0, 0x81, 4],
            &[2, 0xff, 3, 1],
            &[1, 0x80, 0x80, 0],
        ] {
            let mut bytes = head.to_vec();
            bytes.extend_from_slice(&words);
            assert_eq!(apply(&mut page, &bytes), None, "{head:?}");
        }
        assert_eq!(apply(&mut page, &[]), None);
        assert_eq!(apply(&mut page, &[1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn difference_applied_gives_the_new_version(
            seed: u8,
            changes in vec((0..PAGE, any::<u8>()), 0..120),
            tail in vec(any::<u8>(), 0..8),
        ) {
            let old = [seed; PAGE];
            let new = changed(&old, &changes);
            let mut bytes = Vec::new();
            if encode(&old, &new, &mut bytes) {
                prop_assert!(bytes.len() <= MAX_BYTES);
                bytes.extend_from_slice(&tail);
                let mut page = old;
                prop_assert_eq!(apply(&mut page, &bytes), Some(&tail[..]));
                prop_assert!(page == new);
            }
        }

        #[test]
        fn any_bytes_are_applied_or_refused(bytes in vec(any::<u8>(), 0..200)) {
            let _ = apply(&mut [0; PAGE], &bytes);
        }
    }
}
