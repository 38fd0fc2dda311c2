//! Post-copy: the guest runs at the destination, and gets the pages that it has left behind.
//!
//! Pages that somebody waits for go first, on a connection of their own. The others follow in the
//! order of their addresses, from the page that was wanted last on: who reads one page is likely
//! to read the next.

use std::time::Instant;

use pindah_vmm_api::{MigrationPhase, PostcopyReport};

use super::MigrationError;
use super::sender::{Sender, Urgent};
use super::switchover::{ANSWER, NoAnswer};
use crate::memory::PAGE_SIZE;
use crate::migration::left;
use crate::migration::pending::{Pending, Run};
use crate::migration::progress::Progress;
use crate::migration::protocol::{ANSWER_TIMEOUT, Dropped, Kind, Reason, Running};

/// Has the destination drop pages that stay behind, while the guest still runs here: what it
/// writes meanwhile is little beside them. Returns when it has.
pub fn leave(pages: &Pending, sender: &mut Sender<'_>) -> Result<(), MigrationError> {
    // A page that is still on its way would come after it is dropped.
    sender.drain()?;
    send(pages, sender)?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let (count, mut dropped) = (pages.count(), 0);
    while dropped != count {
        let frame = sender.control.receive(deadline)?;
        match frame.kind {
            Kind::Ack => {}
            Kind::Dropped => {
                let Dropped { pages } = frame.message()?;
                dropped = pages;
            }
            Kind::Aborted => {
                let Reason { message } = frame.message()?;
                return Err(MigrationError::Refused(message));
            }
            _ => return Err(MigrationError::Unexpected("a message out of turn")),
        }
    }
    Ok(())
}

/// Says that these pages stay behind.
pub fn send(pages: &Pending, sender: &mut Sender<'_>) -> Result<(), MigrationError> {
    for body in left::encode(pages) {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        sender.control.send_frame(Kind::Leave, &body, deadline)?;
    }
    Ok(())
}

/// Pages that are left behind, on their way. Begins when COMMIT is sent.
pub struct Postcopy<'a, 'b> {
    sender: &'a mut Sender<'b>,
    progress: &'a Progress,
    pages: Pending,
    count: u64,
    /// Pages that there were.
    all: u64,
    /// Where the next page that nobody has asked for is looked for.
    cursor: u64,
    /// Pages that were staged last.
    staged: Vec<Run>,
    heard: Urgent,
}

impl<'a, 'b> Postcopy<'a, 'b> {
    /// Nothing is sent yet.
    pub fn new(sender: &'a mut Sender<'b>, pages: Pending, progress: &'a Progress) -> Self {
        sender.begin_postcopy();
        let count = pages.count();
        Self {
            sender,
            progress,
            pages,
            count,
            all: count,
            cursor: 0,
            staged: Vec::new(),
            heard: Urgent::default(),
        }
    }

    /// Sends pages until the destination has said whether it runs the guest.
    pub fn until_running(&mut self) -> Result<Running, NoAnswer> {
        let deadline = Instant::now() + ANSWER;
        loop {
            if let Some(answer) = self.answer()? {
                return Ok(answer);
            }
            if Instant::now() > deadline {
                return Err(NoAnswer::Lost("it says nothing".to_owned()));
            }
            if let Err(error) = self.step(true) {
                // It may have said on the other connection what it does, and why.
                tracing::warn!("pages do not reach the destination: {error}");
                return self.last_word(deadline);
            }
        }
    }

    fn answer(&mut self) -> Result<Option<Running>, NoAnswer> {
        let frame = self.sender.control.try_receive();
        match frame.map_err(|error| NoAnswer::of(&error))? {
            Some(frame) => NoAnswer::or_running(&frame),
            None => Ok(None),
        }
    }

    fn last_word(&mut self, deadline: Instant) -> Result<Running, NoAnswer> {
        loop {
            let frame = self.sender.control.receive(deadline);
            let frame = frame.map_err(|error| NoAnswer::of(&error))?;
            if let Some(running) = NoAnswer::or_running(&frame)? {
                return Ok(running);
            }
        }
    }

    /// Sends all that is left: the guest runs at the destination. If it ends there, the rest is of
    /// no use to anybody.
    ///
    /// # Errors
    /// [`MigrationError::Lost`].
    pub fn finish(mut self) -> Result<PostcopyReport, MigrationError> {
        self.progress
            .update(|status| status.phase = MigrationPhase::Postcopy);
        loop {
            if let Some(fetched) = self.heard.fetched {
                if self.count > 0 && !fetched.ended {
                    return Err(lost("it wants no more, and has not got all"));
                }
                return Ok(PostcopyReport {
                    duration_us: fetched.duration_us,
                    pages: self.all - self.count,
                    demanded_pages: fetched.demanded_pages,
                    fault_median_us: fetched.fault_median_us,
                    fault_max_us: fetched.fault_max_us,
                });
            }
            self.step(false)
                .map_err(|error| lost(&crate::causes::chain(&error)))?;
            if self.sender.is_silent() {
                return Err(lost("it says nothing"));
            }
        }
    }

    /// Whether a page is encoded and not sent yet.
    fn is_staged(&self, gpa: u64) -> bool {
        let holds =
            |&(first, pages): &Run| (first..first + u64::from(pages) * PAGE_SIZE).contains(&gpa);
        self.sender.has_unsent() && self.staged.iter().any(holds)
    }

    /// Does what is to be done next, or waits for it.
    fn step(&mut self, control: bool) -> Result<(), MigrationError> {
        if self.heard.fetched.is_some() {
            // RUNNING is still on its way.
            return self.sender.wait_for_control();
        }
        self.sender.hear(&mut self.heard)?;
        while let Some(&gpa) = self.heard.wanted.front() {
            if let Some(wait) = self.sender.cap_wait(PAGE_SIZE) {
                return self.sender.listen(wait, control);
            }
            self.heard.wanted.pop_front();
            if self.pages.take(gpa) {
                self.count -= 1;
                self.cursor = gpa.wrapping_add(PAGE_SIZE);
                self.sender.send_wanted(gpa)?;
            } else if self.is_staged(gpa) {
                self.sender.send_all_staged()?;
            }
        }
        if self.count > 0 && !self.sender.has_unsent() {
            let runs = self
                .pages
                .take_next(self.cursor, self.sender.pages_at_once());
            for &(first, pages) in &runs {
                self.count -= u64::from(pages);
                self.cursor = first + u64::from(pages) * PAGE_SIZE;
            }
            self.sender.stage(&runs)?;
            self.staged = runs;
        }
        let remaining_bytes = self.count * PAGE_SIZE;
        self.progress
            .update(|status| status.remaining_bytes = remaining_bytes);
        match self.sender.send_staged()? {
            Some(wait) => self.sender.listen(wait, control),
            None => Ok(()),
        }
    }
}

fn lost(after: &str) -> MigrationError {
    MigrationError::Lost {
        after: after.to_owned(),
    }
}
