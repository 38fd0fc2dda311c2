//! How a migration is going and what it was, as text for a person.
//!
//! ```text
//! 3.0 s  round 2  412 MiB sent  12.3 MiB left  writes 47.7 MiB/s  link 112 MiB/s  downtime 1.24 ms  ETA 3.2 s
//! ```

#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Formatter};

use crate::{
    MigrationPhase, MigrationReport, MigrationStatus, PageStatistics, PostcopyReport, RoundReport,
    SwitchoverReport,
};

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// Most rounds that a summary lists one by one.
const MOST_ROUNDS: usize = 12;

/// One line on how it is going, without a line's end: what an event each second is shown as.
#[derive(Clone, Copy, Debug)]
pub struct StatusLine<'a>(
    /// What is shown.
    pub &'a MigrationStatus,
);

impl Display for StatusLine<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let status = self.0;
        write!(f, "{}", Time(status.elapsed_ms.saturating_mul(1000)))?;
        match status.phase {
            MigrationPhase::Prepare => f.write_str("  preparing")?,
            MigrationPhase::Precopy => write_precopy(f, status)?,
            MigrationPhase::Switchover => {
                let left = Bytes(status.remaining_bytes);
                write!(f, "  the guest stands  {left} left")?;
            }
            MigrationPhase::Postcopy => {
                let left = Bytes(status.remaining_bytes);
                write!(f, "  the guest runs there  {left} still here")?;
                write!(f, "  link {}/s", Bytes(status.rate_bytes_per_s))?;
            }
            MigrationPhase::Completed => {
                write!(f, "  done  {} sent", Bytes(status.sent_bytes))?;
            }
            MigrationPhase::Failed => f.write_str("  failed, the guest goes on here")?,
            MigrationPhase::InDoubt => {
                f.write_str("  in doubt, the guest stands still because it may run there")?;
            }
            MigrationPhase::Lost => f.write_str("  the guest is lost")?,
        }
        match &status.reason {
            Some(reason) => write!(f, ": {}", OneLine(reason)),
            None => Ok(()),
        }
    }
}

fn write_precopy(f: &mut Formatter, status: &MigrationStatus) -> fmt::Result {
    write!(
        f,
        "  round {}  {} sent  {} left  writes {}/s  link {}/s  downtime {}",
        status.round,
        Bytes(status.sent_bytes),
        Bytes(status.remaining_bytes),
        Bytes(status.dirty_bytes_per_s),
        Bytes(status.rate_bytes_per_s),
        Time(status.predicted_downtime_us),
    )?;
    match status.eta_ms {
        Some(eta) => write!(f, "  ETA {}", Time(eta.saturating_mul(1000)))?,
        None => f.write_str("  ETA unknown")?,
    }
    if status.throttle_percent > 0 {
        write!(f, "  throttle {} %", status.throttle_percent)?;
    }
    Ok(())
}

/// What a migration was, in several lines, the last one without an end.
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a>(
    /// What is shown.
    pub &'a MigrationReport,
);

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let report = self.0;
        write!(
            f,
            "Migrated in {}: {} sent at {}/s on average, the guest stood for {}",
            Time(report.total_ms.saturating_mul(1000)),
            Bytes(report.sent_bytes),
            Bytes(per_second(
                report.sent_bytes,
                report.total_ms.saturating_mul(1000)
            )),
            Time(report.downtime_us),
        )?;
        if report.throttle_percent > 0 {
            write!(
                f,
                ", its vCPUs were held for up to {} % of their time",
                report.throttle_percent
            )?;
        }
        write_pages(f, &report.pages)?;
        write_rounds(f, &report.rounds)?;
        write_switchover(f, &report.switchover)?;
        if let Some(postcopy) = &report.postcopy {
            write_postcopy(f, postcopy)?;
        }
        write!(f, "\nstate       {}", Bytes(report.state_bytes))
    }
}

fn write_pages(f: &mut Formatter, pages: &PageStatistics) -> fmt::Result {
    let kinds = [
        ("untouched", pages.untouched_pages),
        ("zero", pages.zero_pages),
        ("unchanged", pages.unchanged_pages),
        ("differences", pages.delta_pages),
        ("compressed", pages.compressed_pages),
        ("raw", pages.raw_pages),
    ];
    f.write_str("\nmemory      ")?;
    for (name, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
        write!(f, "{} {name}, ", Bytes(count.saturating_mul(PAGE_BYTES)))?;
    }
    write!(f, "as {} on the wire", Bytes(pages.wire_bytes))
}

fn write_rounds(f: &mut Formatter, rounds: &[RoundReport]) -> fmt::Result {
    let skipped = rounds.len().saturating_sub(MOST_ROUNDS);
    for (number, round) in rounds.iter().enumerate() {
        // The first one, and those that led to the switchover.
        if (1..=skipped).contains(&number) {
            if number == 1 {
                write!(f, "\n            {skipped} more rounds")?;
            }
            continue;
        }
        write!(
            f,
            "\nround {:<5} {} of memory as {} in {}: {}/s",
            number + 1,
            Bytes(round.pages.saturating_mul(PAGE_BYTES)),
            Bytes(round.wire_bytes),
            Time(round.duration_us),
            Bytes(per_second(round.wire_bytes, round.duration_us)),
        )?;
    }
    Ok(())
}

fn write_switchover(f: &mut Formatter, steps: &SwitchoverReport) -> fmt::Result {
    let here = [
        ("quiesce", steps.quiesce_us),
        ("pause", steps.pause_us),
        ("last pages", steps.last_pages_us),
        ("save", steps.save_us),
        ("commit", steps.commit_us),
        ("answer", steps.answer_us),
    ];
    let there = [
        ("drain", steps.drain_us),
        ("ownership", steps.ownership_us),
        ("restore", steps.restore_us),
        ("resume", steps.resume_us),
    ];
    f.write_str("\nsource      ")?;
    write_steps(f, &here)?;
    f.write_str("\ndestination ")?;
    write_steps(f, &there)
}

fn write_postcopy(f: &mut Formatter, postcopy: &PostcopyReport) -> fmt::Result {
    write!(
        f,
        "\nleft behind {} fetched in {} while the guest ran; it waited for {} pages",
        Bytes(postcopy.pages.saturating_mul(PAGE_BYTES)),
        Time(postcopy.duration_us),
        postcopy.demanded_pages,
    )?;
    if postcopy.demanded_pages == 0 {
        return Ok(());
    }
    write!(
        f,
        ", {} each in the median, {} at most",
        Time(postcopy.fault_median_us),
        Time(postcopy.fault_max_us)
    )
}

fn write_steps(f: &mut Formatter, steps: &[(&str, u64)]) -> fmt::Result {
    for (number, (name, us)) in steps.iter().enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        write!(f, "{comma}{name} {}", Time(*us))?;
    }
    Ok(())
}

/// Bytes with three digits that count: `12.3 MiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(
    /// How many.
    pub u64,
);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut units = UNITS.iter();
        let mut unit = units.next();
        // From here on it would be rounded to 1024.
        while value >= 1023.5 {
            value /= 1024.0;
            unit = units.next();
        }
        write_three_digits(f, value)?;
        write!(f, " {}", unit.unwrap_or(&"EiB"))
    }
}

/// Microseconds with three digits that count: `1.24 ms`, from a minute on `2 min 5 s`.
#[derive(Clone, Copy, Debug)]
pub struct Time(
    /// How many.
    pub u64,
);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self.0 {
            us @ 0..1000 => write!(f, "{us} µs"),
            us @ 1000..999_500 => {
                write_three_digits(f, us as f64 / 1e3)?;
                f.write_str(" ms")
            }
            us @ 999_500..59_950_000 => {
                write_three_digits(f, us as f64 / 1e6)?;
                f.write_str(" s")
            }
            us => {
                let seconds = us.saturating_add(500_000) / 1_000_000;
                match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
                    (0, minutes, seconds) => write!(f, "{minutes} min {seconds} s"),
                    (hours, minutes, _) => write!(f, "{hours} h {minutes} min"),
                }
            }
        }
    }
}

fn write_three_digits(f: &mut Formatter, value: f64) -> fmt::Result {
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    write!(f, "{value:.digits$}")
}

/// A reason that may come from the other side: on one line whatever it holds.
struct OneLine<'a>(&'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        for character in self.0.chars() {
            let shown = if character.is_control() {
                ' '
            } else {
                character
            };
            write!(f, "{shown}")?;
        }
        Ok(())
    }
}

fn per_second(bytes: u64, us: u64) -> u64 {
    (bytes as f64 / us.max(1) as f64 * 1e6) as u64
}
