//! Who watches an installation.

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Old tables and signatures go.
    Clear,
    /// The image is copied and read back.
    Root,
    /// The ESP is made.
    Boot,
    /// The state partition is made.
    State,
    /// The disk becomes one that boots.
    Table,
    /// All is done.
    Done,
}

impl Step {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Clear => "Clearing the disk",
            Self::Root => "Copying the system and reading it back",
            Self::Boot => "Copying kernel and boot loader",
            Self::State => "Making the state partition",
            Self::Table => "Writing the partition table",
            Self::Done => "Done",
        }
    }
}

/// Is told what is done.
pub trait Observer {
    /// A step begins.
    fn step(&mut self, step: Step);
    /// `done` of `total` bytes were copied or read back.
    fn bytes(&mut self, done: u64, total: u64);
}

/// Does not care.
#[derive(Debug)]
pub struct Silent;

impl Observer for Silent {
    fn step(&mut self, _: Step) {}
    fn bytes(&mut self, _: u64, _: u64) {}
}

/// Counts bytes.
pub(crate) struct Meter<'a> {
    observer: &'a mut dyn Observer,
    done: u64,
    total: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(observer: &'a mut dyn Observer, total: u64) -> Self {
        Self {
            observer,
            done: 0,
            total,
        }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.done = (self.done + bytes).min(self.total);
        self.observer.bytes(self.done, self.total);
    }

    pub(crate) fn step(&mut self, step: Step) {
        self.observer.step(step);
    }
}
