//! Values from the fuzzer's bytes. When the bytes run out, all values are zero.

use arbitrary::Unstructured;

/// The bytes of one case.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn word(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn dword(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub fn qword(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        match end {
            ..=0xff => usize::from(self.byte()) % end,
            0x100..=0xffff => usize::from(self.word()) % end,
            _ => self.dword() as usize % end,
        }
    }

    /// True once in `times`; never without bytes.
    pub fn chance(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Up to `most` bytes.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.below(most + 1).min(self.0.len());
        self.0.bytes(count).unwrap_or_default().to_vec()
    }

    /// A number at which arithmetic goes wrong, or any other.
    pub fn edge(&mut self) -> u64 {
        let near = u64::from(self.byte() & 7);
        match self.below(12) {
            0 => near,
            1 => u64::MAX - near,
            2 => (1 << 63) - near,
            3 => (1 << 32) - near,
            4 => (1 << 31) + near,
            5 => (1 << 16) - near,
            6 => 0xc000_0000 + near,
            7 => 1_u64.wrapping_shl(self.byte().into()).wrapping_sub(near),
            8 => u64::from(self.word()),
            9 => u64::from(self.dword()),
            _ => self.qword(),
        }
    }
}
