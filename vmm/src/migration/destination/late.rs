//! What comes late: pages that stay behind, and the word to the network.

use std::time::{Duration, Instant};

use pindah_vmm_api::{MemoryBacking, MigrationPhase};

use super::postcopy::{Fetching, Job, Missing, Postcopier};
use super::{Arrival, ReceiveError};
use crate::migration::pages::Decoder;

/// When the network is told where the guest is, from when it runs.
const ANNOUNCE_MS: [u64; 5] = [0, 50, 150, 300, 500];

/// How often to tell how many pages are still to come.
const TELL: Duration = Duration::from_millis(200);

/// How long the source may take to hear that no page is wanted any more.
const FAREWELL: Duration = Duration::from_secs(2);

impl Arrival<'_> {
    /// Whether the guest can run here before all of its pages have come.
    pub(super) fn prepare_postcopy(
        &mut self,
        postcopier: Option<Postcopier>,
    ) -> Result<(), ReceiveError> {
        let refuse = |why: &str| Err(ReceiveError::NoPostcopy(why.to_owned()));
        if self.machine.config().memory.backing == MemoryBacking::Hugetlb {
            return refuse("memory.backing is hugetlb, whose pages cannot come one by one");
        }
        let Some(postcopier) = postcopier else {
            return refuse("it was started without it");
        };
        let (userfault, starter) = postcopier.into_parts();
        let missing = Missing::new(
            self.machine.memory(),
            userfault.map_err(ReceiveError::NoPostcopy)?,
        )?;
        self.missing = Some((missing, starter));
        Ok(())
    }

    /// Whether RAM must not be touched since pages stay behind.
    pub(super) fn has_missing(&self) -> bool {
        self.missing
            .as_ref()
            .is_some_and(|(missing, _)| missing.is_some())
    }

    /// Hands over to the post-copy thread: from here on RAM may be touched again.
    pub(super) fn begin_postcopy(&mut self, committed: Instant) -> Result<(), ReceiveError> {
        let (Some((missing, starter)), Some(urgent)) = (self.missing.take(), self.urgent.take())
        else {
            return Err(ReceiveError::Unexpected("pages that may not stay behind"));
        };
        let memory = self.machine.memory();
        let job = Job {
            missing,
            decoder: std::mem::replace(&mut self.decoder, Decoder::new(memory)),
            data: std::mem::take(&mut self.data),
            urgent,
            in_place: self.in_place,
            acknowledged: self.acknowledged,
            committed,
        };
        self.fetching = Some(starter.begin(job));
        Ok(())
    }

    /// The guest runs: the network is told, and the rest of its pages comes, unless it ends before.
    pub(super) fn settle(&self) -> Result<(), ReceiveError> {
        let start = Instant::now();
        let mut announcements = ANNOUNCE_MS
            .map(Duration::from_millis)
            .into_iter()
            .peekable();
        let mut fetching = self.fetching.as_ref();
        loop {
            if self.machine.has_ended() {
                if let Some(pages) = fetching {
                    pages.end();
                    self.has_fetched(pages, FAREWELL)?;
                }
                return Ok(());
            }
            while announcements.next_if(|at| start.elapsed() >= *at).is_some() {
                self.machine.announce();
            }
            let next = announcements
                .peek()
                .map(|at| at.saturating_sub(start.elapsed()));
            match (fetching, next) {
                (None, None) => return Ok(()),
                (None, Some(next)) => std::thread::sleep(next),
                (Some(pages), next) => {
                    if self.has_fetched(pages, next.unwrap_or(TELL).min(TELL))? {
                        fetching = None;
                    }
                }
            }
        }
    }

    /// Whether all pages are here, or are within `time`.
    fn has_fetched(&self, pages: &Fetching, time: Duration) -> Result<bool, ReceiveError> {
        match pages.wait(time) {
            None => {
                let remaining_bytes = pages.remaining() * crate::memory::PAGE_SIZE;
                self.progress
                    .update(|status| status.remaining_bytes = remaining_bytes);
                Ok(false)
            }
            Some(Ok(fetched)) => {
                tracing::info!(?fetched, "all pages are here");
                self.progress.update(|status| {
                    status.remaining_bytes = 0;
                    status.phase = MigrationPhase::Completed;
                });
                Ok(true)
            }
            Some(Err(reason)) => {
                self.machine.lose();
                Err(ReceiveError::Lost(reason))
            }
        }
    }
}
