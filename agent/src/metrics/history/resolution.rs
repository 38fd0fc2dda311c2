//! How finely time is kept, and how finely it is shown.

/// How finely time is kept. Slots are of the time of day: each begins at a multiple of its length
/// since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// In memory.
    Live,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

impl Resolution {
    /// The finest first.
    pub const ALL: [Self; 3] = [Self::Live, Self::Minute, Self::Hour];

    /// How long a slot is, in seconds.
    pub const fn slot_s(self) -> u64 {
        match self {
            Self::Live => 10,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }

    /// How long it is kept, in seconds; a little longer than it is promised, so that a question
    /// about all of it finds its beginning.
    pub const fn kept_s(self) -> u64 {
        match self {
            Self::Live => 3600 + 300,
            Self::Minute => 15 * 86_400 + 3600,
            Self::Hour => 366 * 86_400,
        }
    }

    /// How many slots are kept together.
    pub(super) const fn block_slots(self) -> u64 {
        match self {
            Self::Live | Self::Minute => 60,
            Self::Hour => 24,
        }
    }

    /// Which one has slots of this length.
    pub fn of_slot(slot_s: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.slot_s() == slot_s)
    }
}

/// A stretch of time in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// What it is made of.
    pub resolution: Resolution,
    /// Begin of the first step, in seconds since the Unix epoch: a multiple of the step.
    pub from_s: u64,
    /// Length of a step, in seconds: a multiple of the resolution's.
    pub step_s: u64,
    /// How many steps.
    pub steps: usize,
}

/// Steps that people can read, in seconds: beyond, whole days.
const STEPS: [u64; 13] = [
    10, 60, 300, 600, 1800, 3600, 7200, 10_800, 14_400, 21_600, 28_800, 43_200, 86_400,
];

impl Grid {
    /// The finest that is kept since `from_s` and has at most `points` steps, two or more, as seen
    /// at `now_s`.
    pub fn fit(from_s: u64, to_s: u64, points: usize, now_s: u64) -> Self {
        let age = now_s.saturating_sub(from_s);
        let kept = |one: &Resolution| age <= one.kept_s();
        let mut resolutions = Resolution::ALL.into_iter();
        let resolution = resolutions.find(kept).unwrap_or(Resolution::Hour);
        let days = (2..).map(|days| days * 86_400);
        let mut grids = STEPS
            .into_iter()
            .chain(days)
            .filter(|step_s| *step_s >= resolution.slot_s())
            .map(|step_s| Self::with_step(from_s, to_s, step_s));
        // Whole days grow beyond any stretch of time.
        let fits = grids.find(|grid| grid.steps <= points);
        fits.unwrap_or_else(|| Self::with_step(from_s, to_s, 86_400))
    }

    fn with_step(from_s: u64, to_s: u64, step_s: u64) -> Self {
        let mut finest_last = Resolution::ALL.into_iter().rev();
        let divides = |one: &Resolution| step_s.is_multiple_of(one.slot_s());
        let resolution = finest_last.find(divides).unwrap_or(Resolution::Live);
        let first = from_s / step_s;
        let end = to_s.max(from_s + 1).div_ceil(step_s);
        Self {
            resolution,
            from_s: first * step_s,
            step_s,
            steps: (end - first) as usize,
        }
    }

    /// Its end, in seconds since the Unix epoch.
    pub fn to_s(&self) -> u64 {
        self.from_s + self.steps as u64 * self.step_s
    }

    /// The step that a time is in.
    pub fn step_of(&self, time_s: u64) -> Option<usize> {
        let step = time_s.checked_sub(self.from_s)? / self.step_s;
        Some(step as usize).filter(|step| *step < self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    fn fit(seconds: u64, points: usize) -> Grid {
        Grid::fit(NOW - seconds, NOW, points, NOW)
    }

    #[test]
    fn finest_step_that_is_kept_and_fits_is_taken() {
        for (seconds, points, step_s, resolution) in [
            (3600, 1000, 10, Resolution::Live),
            (3600, 360, 10, Resolution::Live),
            (3600, 100, 60, Resolution::Minute),
            (DAY / 2, 1000, 60, Resolution::Minute),
            (7 * DAY, 1000, 1800, Resolution::Minute),
            (15 * DAY, 1000, 1800, Resolution::Minute),
            (15 * DAY, 400, 3600, Resolution::Hour),
            (16 * DAY, 1000, 3600, Resolution::Hour),
            (365 * DAY, 1000, 10 * 3600, Resolution::Hour),
        ] {
            let grid = fit(seconds, points);
            assert!(grid.steps <= points, "{grid:?}");
            let finest = STEPS.into_iter().find(|step| *step >= step_s).unwrap();
            assert_eq!((grid.step_s, grid.resolution), (finest, resolution));
            assert!(
                grid.from_s <= NOW - seconds && grid.to_s() >= NOW,
                "{grid:?}"
            );
        }
    }

    #[test]
    fn minutes_are_not_kept_for_what_is_old_however_short_it_is() {
        let grid = Grid::fit(NOW - 20 * DAY, NOW - 20 * DAY + 7200, 1000, NOW);
        assert_eq!((grid.step_s, grid.resolution), (3600, Resolution::Hour));
    }

    #[test]
    fn any_stretch_fits_into_two_points() {
        let grid = Grid::fit(0, NOW, 2, NOW);
        assert!(grid.steps <= 2 && grid.to_s() >= NOW, "{grid:?}");
    }

    #[test]
    fn times_find_their_steps() {
        let grid = Grid::fit(NOW - 605, NOW, 1000, NOW);
        assert_eq!(grid.step_of(grid.from_s), Some(0));
        assert_eq!(grid.step_of(grid.to_s() - 1), Some(grid.steps - 1));
        assert_eq!(grid.step_of(grid.to_s()), None);
        assert_eq!(grid.step_of(grid.from_s - 1), None);
    }
}
