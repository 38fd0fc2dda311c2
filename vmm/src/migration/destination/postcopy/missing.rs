//! The pages that the guest has left behind.

use std::sync::Arc;

use vm_memory::GuestMemoryBackend;

use crate::memory::userfault::{Userfault, discard};
use crate::memory::{GuestMemory, PAGE_SIZE};
use crate::migration::destination::ReceiveError;
use crate::migration::left;
use crate::migration::pending::Pending;

/// Which pages are to come, and RAM that tells when one of them is touched.
pub struct Missing {
    pub memory: Arc<GuestMemory>,
    pub userfault: Userfault,
    pub pages: Pending,
    count: u64,
    registered: bool,
}

impl Missing {
    /// None yet. Tries out whether the kernel takes RAM.
    ///
    /// # Errors
    /// [`ReceiveError::NoPostcopy`].
    pub fn new(memory: Arc<GuestMemory>, userfault: Userfault) -> Result<Self, ReceiveError> {
        userfault.register(&memory)?;
        userfault.unregister(&memory)?;
        Ok(Self {
            pages: Pending::none(&memory),
            memory,
            userfault,
            count: 0,
            registered: false,
        })
    }

    /// Pages that are to come.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether some are: from then on nobody may touch RAM before the post-copy thread is at work,
    /// this one above all.
    pub fn is_some(&self) -> bool {
        self.registered
    }

    /// Takes the body of a message about pages that are left behind: what is here of them goes.
    /// Returns how many are to come now.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn leave(&mut self, body: &[u8]) -> Result<u64, ReceiveError> {
        let (chunk, mut words) = left::decode(body, &self.pages)?;
        for (word, known) in words.iter_mut().zip(self.pages.words(chunk)) {
            *word &= !known;
        }
        let runs = self.pages.runs(chunk, &words);
        if !runs.is_empty() && !self.registered {
            self.userfault.register(&self.memory)?;
            self.registered = true;
        }
        let region = self.memory.iter().nth(chunk.region as usize);
        let region = region.expect("the chunk is one of ours");
        let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
        for (gpa, pages) in runs {
            let bytes = u64::from(pages) * PAGE_SIZE;
            discard(region, gpa - start, bytes).map_err(ReceiveError::Drop)?;
            self.count += u64::from(pages);
        }
        self.pages.insert(chunk, &words);
        Ok(self.count)
    }

    /// A page has come.
    pub fn take(&mut self, gpa: u64) -> bool {
        let was_missing = self.pages.take(gpa);
        self.count -= u64::from(was_missing);
        was_missing
    }
}
