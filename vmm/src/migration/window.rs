//! How many bytes may be on their way, so that the queue on a shared link stays short and the link
//! stays full.
//!
//! The destination acknowledges what is in place, so a byte on its way is one that waits at the
//! source, in the link's queue or at the destination: one window bounds all three. It is set once a
//! round (the time in which what was sent at its beginning is acknowledged) from what was measured:
//!
//! ```text
//! window = rate × (min_rtt + held) + max(rate × target − frame, rate × target / 4)
//! target = 25 kB / rate, within 0.5 … 2 ms
//! ```
//!
//! The first term fills the link, the second is the queue. It is allowed for less than its target
//! by a frame, since `min_rtt` holds the time that a frame takes on the link. While the link is not
//! full, `rate` is `window / rtt`, so the window grows by itself, quickly where the RTT is short.
//!
//! An acknowledgement is late for two reasons. What the kernel's own RTT shows ([`LinkTime`]) is a
//! queue on the link, and calls for a shorter window. The rest, `held`, is a thread of either side
//! that waited for a processor: on a busy host that takes many times the link's RTT. It calls for
//! a longer window, or there would be one window a wait and less with every round.
//!
//! ```text
//! Startup ──── delay, or a rate that no longer grows ────► Steady ◄─── sample ─── Probe
//! (doubles each RTT)                                          └─ 5 s without a short RTT ─► (one frame
//!                                                                                     at a time)
//! ```
//! Who else has a standing queue on the link is given way to until the next probe takes that queue
//! for the link's own delay.

mod outstanding;
mod rate;
#[cfg(test)]
mod tests;

use std::time::Duration;

use outstanding::Outstanding;
use rate::Rate;

use super::connection::LinkTime;

/// The window at first, in bytes: 1.3 ms of 100 Mbit/s.
const FIRST_WINDOW: u64 = 16 << 10;

/// The least window, in bytes: two of the smallest frames, one on the link and one behind it.
const MIN_WINDOW: u64 = 2 * MIN_FRAME;

/// The largest window, in bytes, whatever the other side acknowledges.
const MAX_WINDOW: u64 = 16 << 20;

/// The smallest frame worth its cost, in bytes.
const MIN_FRAME: u64 = 8 << 10;

/// The largest frame on a link of less than [`FAST_LINK`], in bytes.
const MAX_FRAME: u64 = 64 << 10;

/// The largest frame at all, in bytes: 64 raw pages.
const MAX_FRAME_FAST: u64 = 256 << 10;

/// From here on, in bytes a second, the cost of a frame counts for more than its length.
const FAST_LINK: u64 = 1_000_000_000;

/// A frame is this much of the link at most.
const FRAME_TIME: Duration = Duration::from_micros(250);

/// What the queue should hold, in bytes, as far as the limits of its time allow.
const QUEUE_BYTES: u64 = 25_000;

/// The shortest time that the queue should hold: threads do not wake any faster.
const MIN_TARGET: Duration = Duration::from_micros(500);

/// The longest time that the queue should hold.
const MAX_TARGET: Duration = Duration::from_millis(2);

/// A round lasts for this long at least: shorter ones measure the scheduler.
const MIN_ROUND: Duration = Duration::from_micros(500);

/// Threads that wait for a processor are made up for to this time; the destination may then owe as
/// much.
const MAX_HELD: Duration = Duration::from_millis(20);

/// The same in bytes, for fast links: what both sides' caches hold is sent and taken fastest.
const MAX_HELD_BYTES: u64 = 2 << 20;

/// So long the least RTT is believed without being seen again.
const MIN_RTT_LIFE: Duration = Duration::from_secs(5);

/// How many rounds without a faster rate end the start.
const FLAT_ROUNDS: u8 = 3;

/// How many rounds in a row with a queue end it.
const LATE_ROUNDS: u8 = 2;

/// How much may be on its way. Times are those since any one start; bytes are those of frames on
/// all data connections, as in [`Ack`](super::protocol::Ack).
///
/// The sender waits until [`Self::available`] is at least the frame that it wants to send, which
/// should be about [`Self::frame_bytes`].
#[derive(Debug)]
pub struct Window {
    sent: u64,
    acked: u64,
    outstanding: Outstanding,
    /// When the last byte that is acknowledged was sent.
    acked_sent_at: Duration,
    bytes: u64,
    phase: Phase,
    /// The least RTT, and when one like it was last seen.
    min_rtt: Option<(Duration, Duration)>,
    /// How long threads have waited of late.
    held: Duration,
    rate: Rate,
    round: Round,
    /// Since when the sender may send and does not.
    open_since: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Doubles each RTT.
    Startup {
        /// The highest rate so far, in bytes a second.
        best: u64,
        /// Rounds in which it did not grow.
        flat: u8,
        /// Rounds in a row with a queue: the first may be a thread that woke late.
        late: u8,
    },
    Steady,
    /// The queue is let run dry to see the RTT without it.
    Probe {
        /// The first byte sent into the empty link, once it is empty.
        from: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Round {
    began: Duration,
    /// When the last byte that was acknowledged when it began was sent.
    sent_at: Duration,
    /// What was acknowledged when it began, in bytes.
    acked: u64,
    /// It ends when more than this is acknowledged, in bytes: something that was sent in it.
    ends: u64,
    /// The least RTT in it.
    min_rtt: Option<Duration>,
    /// The shortest queue in it by the kernel's word.
    queue: Option<Duration>,
    /// How long the sender could have sent and did not.
    idle: Duration,
}

/// By how much acknowledgements are later than at best, and why.
#[derive(Clone, Copy, Debug)]
struct Delay {
    /// A queue on the link.
    queue: Duration,
    /// Threads that waited for a processor, or for the destination's memory.
    held: Duration,
}

impl Round {
    fn new(now: Duration, sent_at: Duration, acked: u64, ends: u64) -> Self {
        Self {
            began: now,
            sent_at,
            acked,
            ends,
            min_rtt: None,
            queue: None,
            idle: Duration::ZERO,
        }
    }
}

impl Window {
    /// A window for connections on which nothing was sent yet.
    pub fn new(now: Duration) -> Self {
        Self {
            sent: 0,
            acked: 0,
            outstanding: Outstanding::default(),
            acked_sent_at: now,
            bytes: FIRST_WINDOW,
            phase: Phase::Startup {
                best: 0,
                flat: 0,
                late: 0,
            },
            min_rtt: None,
            held: Duration::ZERO,
            rate: Rate::default(),
            round: Round::new(now, now, 0, 0),
            open_since: Some(now),
        }
    }

    /// `bytes` were handed to a socket.
    pub fn on_sent(&mut self, now: Duration, bytes: u64) {
        if self.sent == 0 {
            self.round = Round::new(now, now, 0, 0);
            self.acked_sent_at = now;
            self.open_since = Some(now);
        }
        if let Phase::Probe { from } = &mut self.phase
            && self.sent == self.acked
        {
            from.get_or_insert(self.sent);
        }
        self.sent += bytes;
        self.outstanding.push(self.sent, now);
        if self.available() < self.frame() {
            self.close(now);
        }
    }

    /// What the kernel has measured on the link until now. To be told before [`Self::on_ack`].
    pub fn on_link(&mut self, time: LinkTime) {
        let queue = time.rtt.saturating_sub(time.min_rtt);
        self.round.queue = Some(self.round.queue.map_or(queue, |least| least.min(queue)));
    }

    /// The destination has the first `total_acked` bytes in place. What it cannot have, and what it
    /// has said before, is ignored.
    pub fn on_ack(&mut self, now: Duration, total_acked: u64) {
        let total = total_acked.min(self.sent);
        if total <= self.acked {
            return;
        }
        let was_full = self.available() < self.frame();
        let newly = total - self.acked;
        self.acked = total;
        if let Some(sent_at) = self.outstanding.acked(total) {
            let rtt = now.saturating_sub(sent_at);
            self.acked_sent_at = sent_at;
            self.on_rtt(now, rtt);
            // The bursts of a start queue up even on a long link that is far from full.
            let limit = (self.target() / 2).max(rtt / 8);
            let starting = matches!(self.phase, Phase::Startup { .. });
            if starting && was_full && self.delay(rtt, None).queue <= limit {
                self.bytes = (self.bytes + newly).min(MAX_WINDOW);
            }
        }
        if total > self.round.ends && now.saturating_sub(self.round.began) >= MIN_ROUND {
            self.end_round(now);
        }
        if self.available() >= self.frame() {
            self.open_since.get_or_insert(now);
        }
    }

    /// Bytes that may be sent now.
    pub fn available(&self) -> u64 {
        let window = match self.phase {
            Phase::Probe { .. } => self.frame(),
            Phase::Startup { .. } | Phase::Steady => self.bytes,
        };
        window.saturating_sub(self.in_flight())
    }

    /// Bytes that were sent and are not known to be in place.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.acked
    }

    /// What the destination puts in place, in bytes a second; `None` before it is measured. Follows
    /// within some 50 ms. Times in which the sender had nothing to send may only raise it.
    pub fn rate(&self) -> Option<u64> {
        self.rate.smooth()
    }

    /// What the link carries, in bytes a second; `None` as long as it was never full: it may carry
    /// more than what was sent. The fastest of late: a thread that waits for a processor makes it
    /// look slower than it is.
    pub fn link_rate(&self) -> Option<u64> {
        match self.phase {
            Phase::Startup { .. } => None,
            Phase::Steady | Phase::Probe { .. } => self.rate.smooth().max(self.rate.recent()),
        }
    }

    /// How fast the kernel should let bytes go, in bytes a second, where this side's threads come
    /// too late to do it themselves: what they send at once must not queue up on the link. `None`
    /// where they need no help.
    pub fn pace(&self) -> Option<u64> {
        let rate = self.rate.smooth().filter(|&rate| rate < FAST_LINK)?;
        // Somewhat faster than now, so that a link that could carry more shows it.
        self.is_held().then_some(rate + rate / 4)
    }

    /// The least time from the sending of a frame to the word that it is in place.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt.map(|(rtt, _)| rtt)
    }

    /// How long a frame should be, in bytes, header included: 0.25 ms of the link, at most a quarter
    /// of the window, 8 KiB to 64 KiB, on very fast links to 256 KiB.
    pub fn frame_bytes(&self) -> usize {
        self.frame() as usize
    }

    fn frame(&self) -> u64 {
        let rate = self.rate.recent().unwrap_or(FAST_LINK - 1);
        let longest = if rate < FAST_LINK {
            MAX_FRAME
        } else {
            MAX_FRAME_FAST
        };
        let frame = bytes_in(rate, FRAME_TIME).min(self.bytes / 4);
        (frame & !0xfff).clamp(MIN_FRAME, longest)
    }

    /// The sender cannot go on: what it left unused until now was its own choice.
    fn close(&mut self, now: Duration) {
        if let Some(since) = self.open_since.take() {
            // A time of idleness that began in an earlier round counts from this one's beginning.
            self.round.idle += now.saturating_sub(since.max(self.round.began));
        }
    }

    fn on_rtt(&mut self, now: Duration, rtt: Duration) {
        self.round.min_rtt = Some(self.round.min_rtt.map_or(rtt, |least| least.min(rtt)));
        match self.min_rtt {
            Some((least, seen)) if rtt >= least => {
                let alike = rtt <= least + least / 8 + Duration::from_micros(20);
                self.min_rtt = Some((least, if alike { now } else { seen }));
            }
            _ => self.min_rtt = Some((rtt, now)),
        }
        match self.phase {
            Phase::Probe { from: Some(from) } if self.acked > from => {
                self.min_rtt = Some((rtt, now));
                self.phase = Phase::Steady;
                // What was delivered in the meantime says nothing about the link.
                self.round = Round::new(now, self.acked_sent_at, self.acked, self.sent);
            }
            _ => {}
        }
    }

    /// Why an acknowledgement with this RTT came later than the earliest one.
    fn delay(&self, rtt: Duration, queue: Option<Duration>) -> Delay {
        let all = rtt.saturating_sub(self.min_rtt().unwrap_or(rtt));
        let queue = queue.map_or(all, |queue| queue.min(all));
        Delay {
            queue,
            held: all.saturating_sub(queue).min(MAX_HELD),
        }
    }

    /// How long the queue should be.
    fn target(&self) -> Duration {
        let Some(rate) = self.rate.recent() else {
            return MAX_TARGET;
        };
        Duration::from_secs_f64(QUEUE_BYTES as f64 / rate.max(1) as f64)
            .clamp(MIN_TARGET, MAX_TARGET)
    }

    fn end_round(&mut self, now: Duration) {
        let length = now.saturating_sub(self.round.began);
        let open = self.open_since.is_some();
        self.close(now);
        self.open_since = open.then_some(now);

        let delivered = self.acked - self.round.acked;
        let idle = self.round.idle * 4 > length;
        let delay = self.delay(self.round.min_rtt.unwrap_or_default(), self.round.queue);
        let late = delay.queue > self.target() * 3 / 2;
        if late && !idle {
            self.rate.forget();
        }
        let starting = matches!(self.phase, Phase::Startup { .. });
        // What was sent slowly may be acknowledged at once, by a thread that woke late: that is not
        // how fast the link is.
        let sending = self.acked_sent_at.saturating_sub(self.round.sent_at);
        let taken = if idle { length.max(sending) } else { length };
        self.rate.add(delivered, taken, idle || starting);
        self.held = delay.held.max(self.held * 7 / 8);
        self.round = Round::new(now, self.acked_sent_at, self.acked, self.sent);

        match self.phase {
            Phase::Startup { best, flat, late } => {
                self.next_startup(best, flat, late, delay, idle);
            }
            Phase::Steady => {
                let seen = self.min_rtt.map_or(now, |(_, seen)| seen);
                if now.saturating_sub(seen) > MIN_RTT_LIFE {
                    self.phase = Phase::Probe { from: None };
                } else {
                    self.next_window(delay, idle, late);
                }
            }
            Phase::Probe { .. } => {}
        }
    }

    fn next_startup(&mut self, best: u64, flat: u8, late: u8, delay: Delay, idle: bool) {
        let rate = self.rate.recent().unwrap_or(0);
        let grows = rate > best + best / 4;
        let flat = if grows { 0 } else { flat + u8::from(!idle) };
        let late = if delay.queue > self.target() / 2 {
            late + 1
        } else {
            0
        };
        self.phase = Phase::Startup {
            best: best.max(rate),
            flat,
            late,
        };
        if flat >= FLAT_ROUNDS || late >= LATE_ROUNDS {
            self.end_startup();
        }
    }

    fn end_startup(&mut self) {
        self.phase = Phase::Steady;
        if let Some(window) = self.measured() {
            self.bytes = window;
        }
    }

    /// The window that the measurements call for.
    fn measured(&self) -> Option<u64> {
        let (rate, rtt) = (self.rate.recent()?, self.min_rtt()?);
        let queue = bytes_in(rate, self.target());
        let queue = queue.saturating_sub(self.frame()).max(queue / 4);
        let held = if self.is_held() {
            bytes_in(rate, self.held).min(MAX_HELD_BYTES)
        } else {
            0
        };
        Some((bytes_in(rate, rtt) + queue + held).clamp(MIN_WINDOW, MAX_WINDOW))
    }

    /// Whether threads wait for so long that it counts: what is less is within what the queue is
    /// allowed for, and may be an error of the clocks.
    fn is_held(&self) -> bool {
        self.held > self.target() / 2
    }

    fn next_window(&mut self, delay: Delay, idle: bool, late: bool) {
        let Some(measured) = self.measured() else {
            return;
        };
        self.bytes = if idle && !late {
            self.bytes.max(measured)
        } else if !idle && delay.queue + delay.held < self.target() / 4 {
            // The link is not full: on a long one the formula alone would take its time.
            measured.max(self.bytes + self.bytes / 4).min(MAX_WINDOW)
        } else {
            measured
        };
    }
}

/// Bytes that a link of `rate` bytes a second carries in `time`.
fn bytes_in(rate: u64, time: Duration) -> u64 {
    (rate as f64 * time.as_secs_f64()) as u64
}
