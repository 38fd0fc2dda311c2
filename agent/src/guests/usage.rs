//! What guests take.

use async_trait::async_trait;
use uuid::Uuid;

use super::Guests;
use crate::causes::chain;
use crate::metrics::{GuestUsage, Metrics, Subject, Subjects};

impl Guests {
    /// What is known of this node and its guests.
    pub fn metrics(&self) -> &Metrics {
        &self.resources().metrics
    }

    /// What a guest takes, as far as this node knows.
    pub fn usage(&self, uuid: Uuid) -> GuestUsage {
        let status = self.status(uuid);
        self.metrics().guest(uuid, status.pid)
    }
}

#[async_trait]
impl Subjects for Guests {
    async fn subjects(&self) -> Result<Vec<Subject>, String> {
        let (guests, _) = self
            .list(None, usize::MAX)
            .await
            .map_err(|error| chain(&error))?;
        let running = guests.into_iter().filter_map(|stored| {
            let guest = stored.value;
            let pid = self.status(guest.uuid).pid?;
            let taps = guest.interfaces.into_iter();
            Some(Subject {
                uuid: guest.uuid,
                pid,
                memory_mib: guest.memory_mib,
                taps: taps
                    .map(|interface| (interface.id, interface.tap))
                    .collect(),
                vmm: self.client(guest.uuid),
            })
        });
        Ok(running.collect())
    }
}
