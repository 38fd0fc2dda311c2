//! `start`: from the start of the VMM's process to the guest's first byte on its serial line.
//!
//! The probe sends that byte with its first instructions, so this is the VMM's and its firmware's
//! time, not the guest's.

use std::sync::Arc;

use anyhow::Result;

use super::{Case, Cases, Sample, Setup};
use crate::record::Metric;
use crate::subject::{Machine, Subject};

struct Start {
    setup: Arc<Setup>,
    name: &'static str,
    machine: Machine,
}

/// The machine that every subject must be able to start.
pub fn smallest(setup: &Setup) -> Machine {
    setup.machine("")
}

#[expect(clippy::unnecessary_wraps, reason = "as all benches")]
pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let case = |name, cpus, memory_mib| -> Box<dyn Case> {
        Box::new(Start {
            setup: Arc::clone(setup),
            name,
            machine: Machine {
                memory_mib,
                cpus,
                ..smallest(setup)
            },
        })
    };
    Ok(vec![
        case("1_cpu_512_mib", 1, 512),
        case("4_cpus_2048_mib", 4, 2048),
    ])
}

impl Case for Start {
    fn name(&self) -> &str {
        self.name
    }

    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str> {
        subject.tunings(&self.machine)
    }

    fn measure(&self, subject: &dyn Subject, tuning: &str) -> Result<Vec<Sample>> {
        let mut guest = self.setup.start(subject, &self.machine, tuning)?;
        let time = guest.first_byte()?;
        Ok(vec![Sample::new(
            Metric::FirstByteMs,
            time.as_secs_f64() * 1e3,
        )])
    }
}
