//! The clock.

use super::{Finding, Level};

/// Days from 1970 to 2025 and to 2050: outside, no clock is right.
const BEGIN_DAY: u64 = 20089;
const END_DAY: u64 = 29220;

/// Judges a clock that says `now`, in seconds since 1970.
pub(super) fn finding(now: u64) -> Finding {
    let day = now / 86400;
    let date = date(day);
    if (BEGIN_DAY..END_DAY).contains(&day) {
        return Finding::new(Level::Good, "Clock", format!("{date} (UTC)"));
    }
    let text = format!(
        "it says {date}, which cannot be: set it in the firmware, or with `date --set` in a shell, \
         or no certificate will be valid; if it is wrong again after each start its battery is empty"
    );
    Finding::new(Level::Warning, "Clock", text)
}

/// A day since 1970 in the Gregorian calendar, as ISO 8601 has it.
fn date(day: u64) -> String {
    // Years that begin in March have their leap day at the end.
    let day = day + 719_468;
    let era = day / 146_097;
    let day_of_era = day % 146_097;
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{date:02}", year + era * 400 + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (day, expected) in [
            (0, "1970-01-01"),
            (11016, "2000-02-29"),
            (BEGIN_DAY, "2025-01-01"),
            (END_DAY, "2050-01-01"),
        ] {
            assert_eq!(date(day), expected);
        }
    }

    #[test]
    fn clock_of_another_decade_is_told() {
        assert_eq!(finding(1_800_000_000).level, Level::Good);
        for wrong in [0, 1_450_000_000, 4_000_000_000] {
            assert_eq!(finding(wrong).level, Level::Warning);
        }
        assert!(finding(0).text.contains("1970-01-01"));
    }
}
