//! The probe's lines out of two processes: a line may begin at the source and end at the
//! destination (`vmm/probe`, "Lines").

use serde_json::Value;

const PAGE_BYTES: f64 = 4096.0;

/// What both sides wrote to the serial line.
pub struct Joined {
    bytes: Vec<u8>,
    /// Where the destination's part begins.
    seam: usize,
}

impl Joined {
    /// Joins them.
    pub fn new(source: &[u8], destination: &[u8]) -> Self {
        Self {
            bytes: [source, destination].concat(),
            seam: source.len(),
        }
    }

    /// The longest pause between two of the guest's steps, in microseconds, by the heartbeats that
    /// ended at the destination: the first of them, or the second if the first was on its way when
    /// the guest stopped, tells of the blackout, and each later one of what came after. Should the
    /// first one be torn, the others still know the longest pause of the guest's life. Below zero if
    /// the guest's clock went back meanwhile, by how much.
    pub fn longest_gap_us(&self) -> Option<f64> {
        let lines: Vec<Value> = self.destination_lines().collect();
        if let Some(back) = lines.iter().find_map(|line| line["back_us"].as_f64()) {
            return Some(-back);
        }
        let longest = |field: &str| -> Option<f64> {
            let beats = lines.iter().filter(|line| line["ev"] == "beat");
            beats
                .filter_map(|line| line[field].as_f64())
                .reduce(f64::max)
        };
        let source = self::lines(&self.bytes[..self.seam]);
        let before = source.filter_map(|line| line["gap_max_total_us"].as_f64());
        let before = before.reduce(f64::max).unwrap_or(f64::MAX);
        let news = longest("gap_max_total_us").filter(|longest| *longest > before);
        news.into_iter()
            .chain(longest("gap_max_us"))
            .reduce(f64::max)
    }

    /// What the guest dirtied in a second of its own clock, in MiB, from its last heartbeat in the
    /// first `mark` bytes of the source until the last one.
    pub fn dirtied_mib_per_s(&self, mark: usize) -> Option<f64> {
        let beats = |bytes| lines(bytes).filter(|line| line["ev"] == "beat");
        let first = beats(&self.bytes[..mark.min(self.seam)]).last()?;
        let last = beats(&self.bytes).last()?;
        let between = |field: &str| Some(last[field].as_f64()? - first[field].as_f64()?);
        let mib = between("pages")? * PAGE_BYTES / f64::from(1 << 20);
        let seconds = between("t_us")? / 1e6;
        (seconds > 0.0).then(|| mib / seconds)
    }

    /// The first message of an `error` or `bad_page` line of either side.
    pub fn complaint(&self) -> Option<String> {
        let mut lines = lines(&self.bytes);
        let line = lines.find(|line| line["ev"] == "error" || line["ev"] == "bad_page");
        line.map(|line| line.to_string())
    }

    /// Lines that the destination ended.
    fn destination_lines(&self) -> impl Iterator<Item = Value> {
        let source = &self.bytes[..self.seam];
        let newline = source.iter().rposition(|byte| *byte == b'\n');
        lines(&self.bytes[newline.map_or(0, |at| at + 1)..])
    }
}

/// A VMM may lose a byte where the two parts meet: such a line is left out.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Value> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.filter(|line| line.ends_with(b"\n"));
    whole.filter_map(|line| serde_json::from_slice(line).ok())
}

/// How many heartbeats have begun and ended in these bytes.
pub fn whole_beats(bytes: &[u8]) -> usize {
    let newline = bytes.iter().position(|byte| *byte == b'\n');
    let rest = &bytes[newline.map_or(0, |at| at + 1)..];
    lines(rest).filter(|line| line["ev"] == "beat").count()
}

/// Whether there is a line of kind `event`.
pub fn has(bytes: &[u8], event: &str) -> bool {
    lines(bytes).any(|line| line["ev"] == event)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &[u8] = b"{\"ev\":\"ready\"}\n{\"ev\":\"beat\",\"gap_max_us\":900}\n{\"ev\":\"be";
    const DESTINATION: &[u8] =
        b"at\",\"gap_max_us\":5}\n{\"ev\":\"beat\",\"gap_max_us\":70}\n{\"ev\":\"beat\",\"gap_max_";

    #[test]
    fn longest_gap_is_of_lines_that_the_destination_ended() {
        let joined = Joined::new(SOURCE, DESTINATION);
        assert_eq!(joined.longest_gap_us(), Some(70.0));
        assert_eq!(joined.complaint(), None);
        assert_eq!(Joined::new(SOURCE, b"").longest_gap_us(), None);
    }

    #[test]
    fn longest_gap_of_clock_that_went_back_is_negative() {
        let destination = b"{\"ev\":\"clock_back\",\"cpu\":0,\"back_us\":40}\n";
        let joined = Joined::new(b"", &[DESTINATION, b"\"\n", destination].concat());
        assert_eq!(joined.longest_gap_us(), Some(-40.0));
    }

    #[test]
    fn torn_line_at_the_seam_is_left_out() {
        let joined = Joined::new(SOURCE, &DESTINATION[1..]);
        assert_eq!(joined.longest_gap_us(), Some(70.0));
    }

    #[test]
    fn dirtied_is_between_the_heartbeats_around_the_move() {
        let beat = |t_us, pages| format!("{{\"t_us\":{t_us},\"ev\":\"beat\",\"pages\":{pages}}}\n");
        let source = [beat(0, 0), beat(1_000_000, 1000), beat(1_500_000, 1100)].concat();
        let mark = source.len() - 10;
        let joined = Joined::new(source.as_bytes(), beat(3_000_000, 1512).as_bytes());
        assert_eq!(joined.dirtied_mib_per_s(mark), Some(1.0));
        assert_eq!(joined.dirtied_mib_per_s(5), None);
    }

    #[test]
    fn complaint_of_the_probe_is_found() {
        let joined = Joined::new(SOURCE, b"x\n{\"ev\":\"bad_page\",\"page\":3}\n");
        assert!(joined.complaint().unwrap().contains("bad_page"));
    }

    #[test]
    fn whole_beats_are_those_that_began_here() {
        assert_eq!(whole_beats(DESTINATION), 1);
        assert_eq!(whole_beats(b""), 0);
        assert!(has(SOURCE, "ready") && !has(SOURCE, "end"));
    }
}
