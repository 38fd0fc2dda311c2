//! Who runs the guest after something broke, as the guest itself says.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pindah_vmm::api::client::Client;
use pindah_vmm_api::{PauseReason, VmInfo};
use serde_json::Value;

use super::super::api_client::request;
use super::super::harness::Guest;
use super::proxy::Proxy;
use super::track::is_beat_of;

/// The longest of the protocol's own deadlines, and some time for a busy host.
const SETTLED: Duration = Duration::from_secs(150);
/// Beats that show that a guest runs: a fifth of a second, and more than may be on its way.
const BEATS: usize = 10;

/// Who has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It runs at its source.
    Stayed,
    /// It runs at its destination.
    Moved,
    /// It stands still at its source, since it may run at its destination.
    InDoubt,
    /// It is gone with the process that had it.
    Lost,
}

/// How a case ended.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    pub outcome: Outcome,
    /// It had begun to run at the destination, which then died, and goes on at the source from
    /// where it was before.
    pub rolled_back: bool,
    /// The source stands still beside the destination that runs the guest.
    pub stands_beside: bool,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.outcome)?;
        if self.rolled_back {
            f.write_str(", rolled back")?;
        }
        if self.stands_beside {
            f.write_str(", the source stands in doubt")?;
        }
        Ok(())
    }
}

/// What the test itself did and saw.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct Known {
    pub killed_source: bool,
    pub killed_destination: bool,
    pub has_disk: bool,
    /// Whether the proxy could tell COMMIT from other messages.
    pub tells: bool,
    /// COMMIT came, or would have come next without a word from the destination.
    pub commit_came: bool,
    pub commit_passed: bool,
    pub running_passed: bool,
}

/// One process, and what its guest has said.
struct Side {
    guest: Guest,
    /// Beats that the guest made in this process, by their number.
    own: BTreeMap<u64, u64>,
    /// Beats since the fault is over.
    fresh: usize,
    verified: Option<Value>,
    disk: Option<Value>,
}

impl Side {
    fn new(guest: Guest) -> Self {
        Self {
            guest,
            own: BTreeMap::new(),
            fresh: 0,
            verified: None,
            disk: None,
        }
    }

    fn listen(&mut self) {
        while let Ok(line) = self.guest.next_line(Instant::now()) {
            match line["ev"].as_str().unwrap_or_default() {
                "beat" if is_beat_of(&line, self.guest.pid()) => {
                    let field = |name: &str| line[name].as_u64().unwrap_or_default();
                    self.own.insert(field("seq"), field("t_us"));
                    self.fresh += 1;
                }
                "clock_back" | "bad_page" | "bad_block" | "error" => {
                    self.guest.fail(&line.to_string());
                }
                "verify" => self.verified = Some(line),
                "blk" => self.disk = Some(line),
                _ => {}
            }
        }
    }

    fn runs(&self) -> bool {
        self.fresh >= BEATS
    }

    fn is_in_doubt(&mut self) -> bool {
        if !self.guest.is_alive() {
            return false;
        }
        // It may be about to end.
        let client = Client::connect(&self.guest.path("api"));
        let info = client.and_then(|mut client| client.get::<VmInfo>("/api/v1/vm"));
        info.is_ok_and(|info| info.pause_reason == Some(PauseReason::InDoubt))
    }

    /// Ends it as a person would, and looks whether something is left.
    fn power_off(&mut self) {
        let api = self.guest.path("api");
        let (status, answer) = request(&api, "POST", "/api/v1/vm/power-off", None);
        assert_eq!(status / 100, 2, "{answer}");
        assert_eq!(self.guest.wait_exit().code(), Some(0));
        self.assert_nothing_left();
    }

    fn assert_nothing_left(&self) {
        // The sandbox forbids to remove their files; whoever comes next replaces them.
        for socket in ["api", "serial"] {
            let stream = UnixStream::connect(self.guest.path(socket));
            assert!(stream.is_err(), "somebody still listens on {socket}");
        }
    }
}

struct Pair {
    source: Side,
    destination: Side,
}

/// Waits until it is clear who has the guest, and that this is as it should be.
pub fn judge(
    source: Guest,
    destination: Guest,
    proxy: &Proxy,
    known: impl Fn(&Proxy) -> Known,
) -> Verdict {
    let mut pair = Pair {
        source: Side::new(source),
        destination: Side::new(destination),
    };
    pair.listen();
    (pair.source.fresh, pair.destination.fresh) = (0, 0);
    let outcome = pair.settle();
    let verdict = Verdict {
        outcome,
        rolled_back: outcome == Outcome::Stayed && !pair.destination.own.is_empty(),
        stands_beside: outcome == Outcome::Moved && pair.source.is_in_doubt(),
    };
    let known = known(proxy);
    if let Err(reason) = is_allowed(verdict, known) {
        pair.fail(&format!("{reason}: {verdict} with {known:?}"));
    }
    pair.assert_alone(outcome);
    pair.verify(verdict, known);
    pair.end(verdict, known);
    verdict
}

/// The rule of who may run the guest when.
fn is_allowed(verdict: Verdict, known: Known) -> Result<(), &'static str> {
    let committed = known.commit_came || !known.tells;
    let allowed = match verdict.outcome {
        Outcome::Stayed if known.running_passed => Err("it was said to run elsewhere"),
        Outcome::Moved if known.tells && !known.commit_passed => Err("nobody gave it away"),
        Outcome::InDoubt if !committed || known.running_passed => Err("there is no doubt"),
        // The kernel gives the lock of a process that was killed free when its I/O has wound up,
        // which takes a busy host longer than a source waits for it.
        Outcome::InDoubt if known.has_disk && !known.killed_destination => {
            Err("its disk's lock tells")
        }
        // It was to run where it was before COMMIT, and where it went after it.
        Outcome::Lost if known.killed_source && !known.commit_passed => Ok(()),
        Outcome::Lost if known.killed_destination && known.running_passed => Ok(()),
        Outcome::Lost => Err("it is lost"),
        _ => Ok(()),
    };
    if verdict.stands_beside && !committed {
        return Err("the source gave nothing away");
    }
    allowed
}

impl Pair {
    fn listen(&mut self) {
        self.source.listen();
        self.destination.listen();
    }

    fn fail(&self, why: &str) -> ! {
        let destination = self.destination.guest.log();
        self.source
            .guest
            .fail(&format!("{why}\n--- log of the destination\n{destination}"))
    }

    fn settle(&mut self) -> Outcome {
        let end = Instant::now() + SETTLED;
        loop {
            self.listen();
            match (self.source.runs(), self.destination.runs()) {
                (true, true) => self.fail("both run it"),
                (true, false) => return Outcome::Stayed,
                (false, true) => return Outcome::Moved,
                (false, false) => {}
            }
            if !self.destination.guest.is_alive() {
                if !self.source.guest.is_alive() {
                    return Outcome::Lost;
                }
                if self.source.is_in_doubt() {
                    return Outcome::InDoubt;
                }
            }
            if Instant::now() > end {
                self.fail("nobody runs it, and nothing says why");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The one runs on, and the other does not, and never did what the one did.
    fn assert_alone(&mut self, outcome: Outcome) {
        let runs_at_source = match outcome {
            Outcome::Stayed => true,
            Outcome::Moved => false,
            Outcome::InDoubt | Outcome::Lost => return,
        };
        (self.source.fresh, self.destination.fresh) = (0, 0);
        let end = Instant::now() + SETTLED;
        loop {
            self.listen();
            let (one, other) = if runs_at_source {
                (&self.source, &self.destination)
            } else {
                (&self.destination, &self.source)
            };
            if other.fresh > 0 {
                self.fail("both run it");
            }
            if one.runs() {
                break;
            }
            if Instant::now() > end {
                self.fail("it runs no more");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if outcome == Outcome::Moved {
            let first = self.destination.own.keys().next().copied();
            let last = self.source.own.keys().next_back().copied();
            if last >= first {
                self.fail(&format!("beat {last:?} at the source, {first:?} beyond"));
            }
        }
    }

    /// Memory and disk of the guest that runs.
    fn verify(&mut self, verdict: Verdict, known: Known) {
        let side = match verdict.outcome {
            Outcome::Stayed => &mut self.source,
            Outcome::Moved => &mut self.destination,
            Outcome::InDoubt | Outcome::Lost => return,
        };
        side.guest.command("verify");
        let end = Instant::now() + SETTLED;
        side.disk = None;
        while side.verified.is_none() || (known.has_disk && side.disk.is_none()) {
            assert!(Instant::now() < end, "no verification in time");
            side.listen();
            std::thread::sleep(Duration::from_millis(5));
        }
        let verified = side.verified.as_ref().expect("the loop ends with it");
        assert_eq!(verified["bad_total"], 0, "{verified}");
        if let Some(disk) = &side.disk {
            assert_eq!(
                (&disk["errors"], &disk["bad"]),
                (&0.into(), &0.into()),
                "{disk}"
            );
        }
    }

    /// Nothing is left of either.
    fn end(&mut self, verdict: Verdict, known: Known) {
        let ended = match verdict.outcome {
            Outcome::Stayed | Outcome::InDoubt => {
                self.source.power_off();
                &mut self.destination
            }
            Outcome::Moved => {
                if verdict.stands_beside {
                    self.refuse_resume(known);
                    self.source.power_off();
                }
                self.destination.power_off();
                &mut self.source
            }
            Outcome::Lost => return,
        };
        let end = Instant::now() + SETTLED;
        while ended.guest.is_alive() {
            if Instant::now() > end {
                ended.guest.fail(&format!("it does not end: {verdict}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        match ended.guest.wait_exit().code() {
            None => assert!(known.killed_source || known.killed_destination),
            Some(0) => assert!(verdict.stands_beside, "it ends by itself"),
            Some(code) => assert!([1, 5].contains(&code), "it ends with {code}"),
        }
        ended.assert_nothing_left();
    }

    /// A guest in doubt is not to be resumed while its disk is somebody else's.
    fn refuse_resume(&mut self, known: Known) {
        if known.has_disk {
            let api = self.source.guest.path("api");
            let (status, answer) = request(&api, "POST", "/api/v1/vm/resume", None);
            assert_eq!(status / 100, 4, "{answer}");
        }
    }
}
