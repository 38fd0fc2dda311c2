//! Seconds since 1970 to the registers of a calendar clock and back (proleptic Gregorian
//! calendar, no leap seconds).

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const DAYS_OF_400_YEARS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01. Years that start in March have their leap day at the end.
const DAYS_TO_1970: i64 = 719_468;

/// A point in time as a calendar clock shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// Four digits.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1, Sunday, to 7.
    pub weekday: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// From seconds since 1970-01-01 00:00 UTC.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let shifted = days + DAYS_TO_1970;
        let era = shifted.div_euclid(DAYS_OF_400_YEARS);
        let day_of_era = shifted.rem_euclid(DAYS_OF_400_YEARS);
        // Leave out the leap days so far: every 4 years, but not 100, and again 400.
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // From March on, the days before a month are 153 for five months, evenly spread.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            // 1970-01-01 was a Thursday.
            weekday: (days + 4).rem_euclid(7) as u8 + 1,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01 00:00 UTC. Fields out of range count on: 25 o'clock is one the
    /// next day; a month that there is not is the nearest that there is.
    pub fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month_from_march = (month + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * DAYS_OF_400_YEARS + day_of_era - DAYS_TO_1970;
        let of_day =
            i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * DAY + of_day
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates_are_right() {
        for (seconds, date, weekday) in [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (1_709_251_199, (2024, 2, 29, 23, 59, 59), 5),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
        ] {
            let time = DateTime::from_unix(seconds);
            let DateTime {
                year,
                month,
                day,
                hour,
                minute,
                second,
                ..
            } = time;
            assert_eq!((year, month, day, hour, minute, second), date);
            assert_eq!(time.weekday, weekday);
            assert_eq!(time.to_unix(), seconds);
        }
    }

    proptest! {
        #[test]
        fn unix_time_survives_the_calendar(seconds in -60_000_000_000_i64..250_000_000_000) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }
}
