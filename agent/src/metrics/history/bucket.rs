//! What was measured in a stretch of time, and how two such are put together.

/// What is kept of a guest or node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// CPU time: of a guest 100 is one processor of the node, of a node all of its processors.
    CpuPercent,
    /// Memory in use, in bytes.
    MemoryBytes,
    /// The same, of what there is.
    MemoryPercent,
    /// Received, in bit/s.
    NetworkRx,
    /// Sent, in bit/s.
    NetworkTx,
    /// Read from disks, in bytes a second.
    DiskRead,
    /// Written to disks, in bytes a second.
    DiskWrite,
}

/// How many quantities there are.
pub const QUANTITIES: usize = 7;

impl Quantity {
    /// All, in the order of their numbers.
    pub const ALL: [Self; QUANTITIES] = [
        Self::CpuPercent,
        Self::MemoryBytes,
        Self::MemoryPercent,
        Self::NetworkRx,
        Self::NetworkTx,
        Self::DiskRead,
        Self::DiskWrite,
    ];

    /// What the last digit that is kept stands for. Nothing is measured more finely.
    pub(super) fn unit(self) -> f64 {
        match self {
            Self::CpuPercent | Self::MemoryPercent => 0.1,
            Self::MemoryBytes => 65536.0,
            Self::NetworkRx | Self::NetworkTx => 100.0,
            Self::DiskRead | Self::DiskWrite => 102.4,
        }
    }
}

/// Mean and maximum of a quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Mean of the samples.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

/// What was measured in a stretch of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bucket {
    /// Of how many samples.
    pub samples: u32,
    /// By [`Quantity`]; `None`: not known.
    figures: [Option<Figure>; QUANTITIES],
}

impl Bucket {
    /// One sample.
    pub fn sample(values: [Option<f64>; QUANTITIES]) -> Self {
        let figure = |value: f64| Figure {
            mean: value,
            max: value,
        };
        Self {
            samples: 1,
            figures: values.map(|value| value.map(figure)),
        }
    }

    pub(super) fn new(samples: u32, figures: [Option<Figure>; QUANTITIES]) -> Self {
        Self { samples, figures }
    }

    /// What is known of a quantity.
    pub fn get(&self, quantity: Quantity) -> Option<Figure> {
        self.figures[quantity as usize]
    }

    /// Takes another one in: each counts by its samples.
    pub fn merge(&mut self, other: &Self) {
        let (ours, theirs) = (f64::from(self.samples), f64::from(other.samples));
        for (mine, other) in self.figures.iter_mut().zip(&other.figures) {
            *mine = match (*mine, *other) {
                (Some(mine), Some(other)) => Some(Figure {
                    mean: (mine.mean * ours + other.mean * theirs) / (ours + theirs).max(1.0),
                    max: mine.max.max(other.max),
                }),
                (one, other) => one.or(other),
            };
        }
        self.samples = self.samples.saturating_add(other.samples);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(percent: f64) -> Bucket {
        let mut values = [None; QUANTITIES];
        values[Quantity::CpuPercent as usize] = Some(percent);
        Bucket::sample(values)
    }

    #[test]
    fn mean_counts_samples_and_maximum_is_the_largest() {
        let mut minute = cpu(10.0);
        minute.merge(&cpu(20.0));
        minute.merge(&cpu(60.0));
        let figure = minute.get(Quantity::CpuPercent).unwrap();
        assert_eq!((figure.mean, figure.max, minute.samples), (30.0, 60.0, 3));
        assert_eq!(minute.get(Quantity::DiskRead), None);
    }

    #[test]
    fn what_only_one_knows_is_kept() {
        let mut minute = Bucket::sample([None; QUANTITIES]);
        minute.merge(&cpu(20.0));
        let mean = |minute: &Bucket| minute.get(Quantity::CpuPercent).map(|figure| figure.mean);
        assert_eq!(mean(&minute), Some(20.0));
        minute.merge(&Bucket::sample([None; QUANTITIES]));
        assert_eq!(mean(&minute), Some(20.0));
    }
}
