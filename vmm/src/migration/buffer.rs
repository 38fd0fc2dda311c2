//! Bytes on their way: appended at the end, taken from the front, in memory that is made once.

/// A queue of bytes that is one slice.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

impl Buffer {
    /// What is in it.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// What is in it, to be changed in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.head..self.tail]
    }

    /// At least `least` bytes to be written to; [`Self::commit`] says how many were. It moves what
    /// is in the buffer only when there is no room behind it, and grows only when that is not
    /// enough.
    pub fn room(&mut self, least: usize) -> &mut [u8] {
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        }
        if self.bytes.len() - self.tail < least && self.head > 0 {
            self.bytes.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
        }
        if self.bytes.len() - self.tail < least {
            self.bytes.resize(self.tail + least, 0);
        }
        &mut self.bytes[self.tail..]
    }

    /// The first `count` bytes of the room are filled now.
    pub fn commit(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.tail, "more than the room");
        self.tail += count;
    }

    /// Puts `bytes` at the end.
    pub fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.commit(bytes.len());
    }

    /// Takes `count` bytes from the front. They stay readable until room is asked for.
    pub fn take(&mut self, count: usize) -> &[u8] {
        assert!(count <= self.tail - self.head, "more than there is");
        let start = self.head;
        self.head += count;
        &self.bytes[start..self.head]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps: Vec<(Vec<u8>, u8)>) {
            let mut buffer = Buffer::default();
            let (mut put, mut taken) = (Vec::new(), Vec::new());
            for (bytes, count) in steps {
                buffer.append(&bytes);
                put.extend(bytes);
                let count = usize::from(count).min(buffer.filled().len());
                taken.extend_from_slice(buffer.take(count));
            }
            taken.extend_from_slice(buffer.filled());
            prop_assert_eq!(taken, put);
        }
    }

    #[test]
    fn buffer_does_not_grow_when_moving_is_enough() {
        let mut buffer = Buffer::default();
        buffer.append(&[1; 100]);
        for _ in 0..100 {
            buffer.take(60);
            buffer.append(&[2; 60]);
        }
        assert_eq!(buffer.filled().len(), 100);
        assert!(buffer.bytes.len() <= 160);
    }
}
