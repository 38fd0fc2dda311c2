//! `exits`: how many VM exits a second one vCPU gets answered.
//!
//! `pio` writes a byte to a port, `mmio` reads a register of a virtio device: both go to the VMM
//! and back. `notify` rings the doorbell of an empty queue, which KVM turns into an eventfd.

use std::sync::Arc;

use anyhow::Result;

use super::{Case, Cases, Sample, Setup, patience};
use crate::disk::DiskImage;
use crate::record::Metric;
use crate::subject::{Machine, Subject};

struct Exits {
    setup: Arc<Setup>,
    kind: &'static str,
    machine: Machine,
}

pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let disk = Arc::new(DiskImage::new()?);
    let seconds = setup.seconds();
    let case = |kind| -> Box<dyn Case> {
        let orders = format!("exits={kind} exits_s={seconds}");
        Box::new(Exits {
            setup: Arc::clone(setup),
            kind,
            machine: Machine {
                disk: Some(Arc::clone(&disk)),
                ..setup.machine(&orders)
            },
        })
    };
    Ok(["pio", "mmio", "notify"].map(case).into())
}

impl Case for Exits {
    fn name(&self) -> &str {
        self.kind
    }

    /// The disk does nothing, so how it does it makes no difference.
    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str> {
        let mut tunings = subject.tunings(&self.machine);
        tunings.truncate(1);
        tunings
    }

    fn measure(&self, subject: &dyn Subject, tuning: &str) -> Result<Vec<Sample>> {
        let mut guest = self.setup.start(subject, &self.machine, tuning)?;
        let line = guest.wait_for("exits", patience(self.setup.seconds()), |_| true)?;
        Ok(vec![
            Sample::from_line(Metric::ExitsPerS, &line, "exits_s")?,
            Sample::from_line(Metric::LatencyP99Us, &line, "p99_us")?,
        ])
    }
}
