//! `net`: a virtio-net card on a tap. Frames are counted on the host's side of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Case, Cases, Sample, Setup, patience};
use crate::guest::Guest;
use crate::interrupt;
use crate::network::{Count, Network};
use crate::record::Metric;
use crate::subject::{Machine, Subject};

struct Net {
    setup: Arc<Setup>,
    name: &'static str,
    network: Arc<Network>,
    machine: Machine,
    exercise: Exercise,
}

#[derive(Clone, Copy)]
enum Exercise {
    /// The guest sends as fast as it can.
    Send,
    /// The guest pings the host, one after the other.
    Ping,
}

pub(super) fn cases(setup: &Arc<Setup>) -> Result<Cases> {
    let network = Arc::new(Network::new()?);
    // The probe sends a second longer than the tap is watched, and its first second is not.
    let send = setup.seconds() + 2;
    let case = |name, exercise, orders: String| -> Box<dyn Case> {
        Box::new(Net {
            setup: Arc::clone(setup),
            name,
            machine: Machine {
                network: Some(Arc::clone(&network)),
                ..setup.machine(&orders)
            },
            network: Arc::clone(&network),
            exercise,
        })
    };
    let orders = |op: &str, size, seconds| {
        format!("net=1 net_op={op} net_size={size} net_qd=128 net_s={seconds} spin=1")
    };
    Ok(vec![
        case("send_60_b", Exercise::Send, orders("tx", 60, send)),
        case("send_1514_b", Exercise::Send, orders("tx", 1514, send)),
        case("ping", Exercise::Ping, orders("ping", 98, setup.seconds())),
    ])
}

impl Case for Net {
    fn name(&self) -> &str {
        self.name
    }

    fn tunings(&self, subject: &dyn Subject) -> Vec<&'static str> {
        subject.tunings(&self.machine)
    }

    fn measure(&self, subject: &dyn Subject, tuning: &str) -> Result<Vec<Sample>> {
        let mut guest = self.setup.start(subject, &self.machine, tuning)?;
        match self.exercise {
            Exercise::Send => self.send(&mut guest),
            Exercise::Ping => self.ping(&mut guest),
        }
    }
}

impl Net {
    fn send(&self, guest: &mut Guest) -> Result<Vec<Sample>> {
        let seconds = self.setup.seconds();
        let line = guest.wait_for("net", patience(seconds), |_| true)?;
        if line["peer_found"] != true {
            bail!("the card does not work: {line}");
        }
        let before = self.network.count()?;
        interrupt::sleep(Duration::from_secs(seconds))?;
        let after = self.network.count()?;
        // It must have gone on until now.
        guest.wait_for("net", patience(seconds), |line| line["done"] == true)?;
        let (packets_per_s, bytes_per_s) = rates(before, after);
        if packets_per_s == 0.0 {
            bail!("nothing reached the tap");
        }
        Ok(vec![
            Sample::new(Metric::PacketsPerS, packets_per_s),
            Sample::new(Metric::MibPerS, bytes_per_s / f64::from(1 << 20)),
        ])
    }

    fn ping(&self, guest: &mut Guest) -> Result<Vec<Sample>> {
        let patience = patience(self.setup.seconds());
        let line = guest.wait_for("net", patience, |line| line["done"] == true)?;
        if line["rx"] == 0 || line["peer_found"] != true {
            bail!("no ping was answered: {line}");
        }
        Ok(vec![Sample::from_line(
            Metric::LatencyP99Us,
            &line,
            "p99_us",
        )?])
    }
}

fn rates(before: Count, after: Count) -> (f64, f64) {
    let seconds = (after.at - before.at).as_secs_f64();
    let rate = |before, after: u64| after.saturating_sub(before) as f64 / seconds;
    (
        rate(before.packets, after.packets),
        rate(before.bytes, after.bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn rates_are_by_time_between_counts() {
        let at = Instant::now();
        let before = Count {
            at,
            packets: 10,
            bytes: 1000,
        };
        let after = Count {
            at: at + Duration::from_secs(2),
            packets: 30,
            bytes: 3000,
        };
        let (packets, bytes) = rates(before, after);
        assert!((packets - 10.0).abs() < 1e-9);
        assert!((bytes - 1000.0).abs() < 1e-9);
    }
}
