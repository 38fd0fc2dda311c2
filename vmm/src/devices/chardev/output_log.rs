//! The end of a device's output, addressed by how many bytes came before.

use std::collections::VecDeque;

/// Output that is kept for readers who come later.
pub const HISTORY_BYTES: usize = 64 << 10;
/// Output that may wait for standard output or a file before the oldest is dropped.
pub const BACKLOG_BYTES: usize = 1 << 20;

/// The last bytes of a stream. A reader holds a position: the number of bytes that it has behind
/// it since the stream began.
#[derive(Default)]
pub(super) struct OutputLog {
    bytes: VecDeque<u8>,
    end: u64,
    /// Position of the one reader that should not lose any of it.
    held_from: Option<u64>,
    /// The hub has read everything and sleeps.
    idle: bool,
}

impl OutputLog {
    /// Appends. Returns whether the hub must be woken.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.end += bytes.len() as u64;
        self.bytes.extend(bytes);
        let held = self.held_from.map_or(0, |from| self.end - from) as usize;
        let limit = held.clamp(HISTORY_BYTES, BACKLOG_BYTES);
        if self.bytes.len() > limit {
            self.bytes.drain(..self.bytes.len() - limit);
        }
        !bytes.is_empty() && std::mem::take(&mut self.idle)
    }

    /// Copies what follows `position` into `buffer`. Returns the position of the first copied
    /// byte, which is later than asked for if the reader was too slow, and the count.
    pub(super) fn read(&self, position: u64, buffer: &mut [u8]) -> (u64, usize) {
        let start = position.max(self.end - self.bytes.len() as u64);
        let skip = self.bytes.len() - (self.end.saturating_sub(start)) as usize;
        let (first, second) = self.bytes.as_slices();
        let mut count = 0;
        for part in [
            first.get(skip..).unwrap_or_default(),
            &second[skip.saturating_sub(first.len()).min(second.len())..],
        ] {
            let take = part.len().min(buffer.len() - count);
            buffer[count..count + take].copy_from_slice(&part[..take]);
            count += take;
        }
        (start, count)
    }

    /// The position after the last byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The position of a reader that wants the history.
    pub(super) fn history_start(&self) -> u64 {
        self.end - self.bytes.len().min(HISTORY_BYTES) as u64
    }

    /// The last [`HISTORY_BYTES`].
    pub(super) fn history(&self) -> Vec<u8> {
        let skip = self.bytes.len() - self.bytes.len().min(HISTORY_BYTES);
        self.bytes.iter().skip(skip).copied().collect()
    }

    /// Replaces everything by `history`, which is as if all readers had had it.
    pub(super) fn restore(&mut self, history: &[u8]) {
        let tail = &history[history.len() - history.len().min(HISTORY_BYTES)..];
        self.bytes.clear();
        self.bytes.extend(tail);
        self.end += tail.len() as u64;
        if let Some(held) = &mut self.held_from {
            *held = self.end;
        }
    }

    /// Keeps everything from `position` on, up to [`BACKLOG_BYTES`], instead of just the history.
    pub(super) fn hold(&mut self, position: Option<u64>) {
        self.held_from = position;
    }

    /// Where the reader stands that [`Self::hold`] is for.
    pub(super) fn held_from(&self) -> Option<u64> {
        self.held_from
    }

    /// The hub goes to sleep if nothing came after `position`. Returns whether it may.
    pub(super) fn sleep(&mut self, position: u64) -> bool {
        self.idle = position == self.end;
        self.idle
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn log_any_writes_reads_the_tail(
            writes in proptest::collection::vec((0_usize..40_000, any::<u8>()), 0..12),
            back in 0_u64..100_000,
            room in 0_usize..70_000,
            held in any::<bool>(),
        ) {
            let mut log = OutputLog::default();
            log.hold(held.then_some(0));
            let mut all = Vec::new();
            for (len, byte) in writes {
                let bytes = vec![byte; len];
                log.push(&bytes);
                all.extend(bytes);
            }
            let kept = if held { all.len() } else { all.len().min(HISTORY_BYTES) };
            let position = log.end().saturating_sub(back);
            let mut buffer = vec![0; room];
            let (start, count) = log.read(position, &mut buffer);
            prop_assert_eq!(log.end(), all.len() as u64);
            prop_assert_eq!(start, position.max((all.len() - kept) as u64));
            prop_assert_eq!(count, room.min(all.len() - start as usize));
            prop_assert_eq!(&buffer[..count], &all[start as usize..][..count]);
            let history = all.len() - all.len().min(HISTORY_BYTES);
            prop_assert_eq!(log.history(), &all[history..]);
        }
    }

    #[test]
    fn log_held_by_a_stuck_reader_stays_bounded() {
        let mut log = OutputLog::default();
        log.hold(Some(0));
        for _ in 0..64 {
            log.push(&vec![7; 100_000]);
        }
        assert_eq!(log.bytes.len(), BACKLOG_BYTES);
        let mut buffer = [0; 1];
        assert_eq!(log.read(0, &mut buffer), (6_400_000 - (1 << 20), 1));
    }

    #[test]
    fn log_wakes_a_sleeping_hub_once() {
        let mut log = OutputLog::default();
        assert!(log.sleep(0));
        assert!(!log.push(&[]));
        assert!(log.push(b"a"));
        assert!(!log.push(b"b"));
        assert!(!log.sleep(1));
        assert!(log.sleep(2));
    }

    #[test]
    fn log_restored_shows_history_to_new_readers_only() {
        let mut log = OutputLog::default();
        log.push(b"banner");
        log.restore(b"old");
        assert_eq!(log.history(), b"old");
        assert_eq!(log.history_start() + 3, log.end());
    }
}
