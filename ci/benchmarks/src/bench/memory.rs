//! `memory`: what the VMM's processes hold resident besides the guest's RAM.
//!
//! By Rss, as the targets and the peers' own figures are; by Pss too, which is fairer to those
//! that share libraries with other processes. Page tables and kernel memory are in neither.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Case, Cases, Sample, Setup, patience};
use crate::disk::DiskImage;
use crate::guest::PATIENCE;
use crate::interrupt;
use crate::record::Metric;
use crate::smaps;
use crate::subject::{Machine, Subject};

/// For what a VMM does after its guest's last word.
const SETTLE: Duration = Duration::from_millis(200);

struct Memory {
    setup: Arc<Setup>,
    name: &'static str,
    machine: Machine,
    io: bool,
}

pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let case = |name, machine: Machine| -> Box<dyn Case> {
        Box::new(Memory {
            setup: Arc::clone(setup),
            name,
            io: machine.disk.is_some(),
            machine,
        })
    };
    let disk = Machine {
        disk: Some(Arc::new(DiskImage::new()?)),
        ..setup.machine("blk=1 blk_op=seqread blk_bs=1m blk_qd=32 blk_s=1")
    };
    Ok(vec![
        case("idle", setup.machine("")),
        case("after_disk_io", disk),
    ])
}

impl Case for Memory {
    fn name(&self) -> &str {
        self.name
    }

    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str> {
        subject.tunings(&self.machine)
    }

    fn measure(&self, subject: &dyn Subject, tuning: &str) -> Result<Vec<Sample>> {
        let mut guest = self.setup.start(subject, &self.machine, tuning)?;
        guest.wait_for("ready", PATIENCE, |_| true)?;
        if self.io {
            guest.wait_for("blk", patience(1), |line| line["done"] == true)?;
        }
        interrupt::sleep(SETTLE)?;
        let ram = self.machine.memory_mib << 20;
        let beyond = smaps::beyond_ram(&guest.processes(), ram)?;
        let mib = |bytes| bytes as f64 / f64::from(1 << 20);
        Ok(vec![
            Sample::new(Metric::RssBeyondRamMib, mib(beyond.rss)),
            Sample::new(Metric::PssBeyondRamMib, mib(beyond.pss)),
        ])
    }
}
