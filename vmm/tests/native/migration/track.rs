//! What a guest says of its life, joined over all that ran it.

use serde_json::Value;

use super::super::harness::Guest;

/// Beats that a guest must make where it has gone.
const BEATS: usize = 3;

/// The guest's lines in their order, from some point on.
pub struct Track {
    lines: Vec<Value>,
}

impl Track {
    /// Of a guest that has just come to `guest`: what it said before, and its first beats there.
    pub fn of_arrival(guest: &mut Guest) -> Self {
        guest.connect_serial();
        let pid = guest.pid();
        let mut track = Self { lines: Vec::new() };
        track.extend(guest, "beats of its new process", |lines| {
            let here = lines.iter().filter(|line| is_beat_of(line, pid));
            here.count() >= BEATS
        });
        track
    }

    /// Reads on until `done`.
    pub fn extend(&mut self, guest: &mut Guest, what: &str, done: impl Fn(&[Value]) -> bool) {
        guest.wait_for(what, |line| {
            // The first line of a history that is cut off.
            if !line.is_null() {
                self.lines.push(line.clone());
            }
            done(&self.lines)
        });
    }

    /// Has the guest verify all of its memory.
    pub fn verify(&mut self, guest: &mut Guest) {
        guest.command("verify");
        let before = self.lines.len();
        self.extend(guest, "verification", |lines| {
            lines[before..].iter().any(|line| line["ev"] == "verify")
        });
        let last = self.lines.last().expect("the verification");
        assert_eq!(last["bad_total"], 0, "{last}");
    }

    fn beats(&self) -> impl Iterator<Item = &Value> {
        self.lines.iter().filter(|line| line["ev"] == "beat")
    }

    /// Who ran it, one after the other.
    pub fn runners(&self) -> Vec<u64> {
        let runners = self.beats().map(|beat| number(beat, "runner"));
        let mut runners: Vec<_> = runners.collect();
        runners.dedup();
        runners
    }

    /// Nothing is lost, nothing is done twice, nothing goes back, nothing is broken.
    pub fn assert_whole(&self) {
        for line in &self.lines {
            let event = line["ev"].as_str().unwrap_or_default();
            let bad = ["clock_back", "bad_page", "bad_block", "error"];
            assert!(!bad.contains(&event), "{line}");
            if event == "blk" {
                assert_eq!((number(line, "errors"), number(line, "bad")), (0, 0));
            }
        }
        let beats: Vec<_> = self.beats().collect();
        for pair in beats.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let seq = |beat| number(beat, "seq");
            assert_eq!(seq(after), seq(before) + 1, "{before} and then {after}");
            for field in ["t_us", "steps", "pages"] {
                let forward = number(after, field) >= number(before, field);
                assert!(forward, "{field}: {before} and then {after}");
            }
        }
    }

    /// The longest time between two steps of a vCPU's around the switchover to `pid`, in
    /// microseconds.
    pub fn blackout_us(&self, pid: u32) -> u64 {
        // The first beat may have begun before it.
        let beats = self.beats().filter(|beat| is_beat_of(beat, pid)).take(2);
        let gaps = beats.map(|beat| number(beat, "gap_max_us"));
        gaps.max().expect("it beats there")
    }

    /// The last of these lines.
    pub fn last(&self, event: &str) -> Option<&Value> {
        self.lines.iter().rev().find(|line| line["ev"] == event)
    }
}

/// Whether `line` is a beat that the guest made in the process `pid`.
pub fn is_beat_of(line: &Value, pid: u32) -> bool {
    line["ev"] == "beat" && line["runner"] == pid
}

fn number(line: &Value, field: &str) -> u64 {
    line[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {line}"))
}
