//! `block`: a raw image on tmpfs through virtio-blk, with one and with 32 requests in flight.
//!
//! tmpfs has no device to wait for: what is measured is the way there and back.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::{Case, Cases, Sample, Setup, patience};
use crate::disk::DiskImage;
use crate::record::Metric;
use crate::subject::{Machine, Subject};

struct Block {
    setup: Arc<Setup>,
    name: String,
    machine: Machine,
    rate: Rate,
}

/// What is of interest besides latency.
#[derive(Clone, Copy)]
enum Rate {
    Requests,
    Bytes,
}

pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let disk = Arc::new(DiskImage::new()?);
    let mut cases: Cases = Vec::new();
    for (op, size, rate) in [
        ("randread", "4k", Rate::Requests),
        ("randwrite", "4k", Rate::Requests),
        ("seqread", "1m", Rate::Bytes),
        ("seqwrite", "1m", Rate::Bytes),
    ] {
        for depth in [1, 32] {
            let seconds = setup.seconds();
            let orders = format!("blk=1 blk_op={op} blk_bs={size} blk_qd={depth} blk_s={seconds}");
            cases.push(Box::new(Block {
                setup: Arc::clone(setup),
                name: format!("{op}_{size}_qd{depth}"),
                machine: Machine {
                    disk: Some(Arc::clone(&disk)),
                    ..setup.machine(&orders)
                },
                rate,
            }));
        }
    }
    Ok(cases)
}

impl Case for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str> {
        subject.tunings(&self.machine)
    }

    fn measure(&self, subject: &dyn Subject, tuning: &str) -> Result<Vec<Sample>> {
        let mut guest = self.setup.start(subject, &self.machine, tuning)?;
        let patience = patience(self.setup.seconds());
        let line = guest.wait_for("blk", patience, |line| line["done"] == true)?;
        if line["errors"] != 0 || line["ios"] == 0 {
            bail!("the disk does not work: {line}");
        }
        let rate = match self.rate {
            Rate::Requests => Sample::from_line(Metric::Iops, &line, "iops")?,
            Rate::Bytes => Sample::from_line(Metric::MibPerS, &line, "mib_s")?,
        };
        Ok(vec![
            rate,
            Sample::from_line(Metric::LatencyP99Us, &line, "p99_us")?,
        ])
    }
}
