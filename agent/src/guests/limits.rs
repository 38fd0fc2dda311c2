//! Limits of what a guest takes of its node's processors: wanted by its record, applied to its
//! process. A node that cannot apply them runs the guest without, and says so.

use super::Guests;
use crate::causes::chain;
use crate::domain::Guest;
use crate::supervisor::Contained;

impl Guests {
    /// Puts a process that has just been started, or found, into its guest's group, and limits it.
    pub(super) async fn contain(&self, guest: &Guest, pid: u32) {
        let machine = self.machine(guest.uuid);
        let _turn = machine.limits().await;
        // It may have been edited since the caller read it.
        let now = self.records().get(&guest.uuid.to_string()).await;
        let now = now.ok().flatten().map(|stored| stored.value);
        let guest = now.as_ref().unwrap_or(guest);
        let contained = Contained {
            uuid: guest.uuid,
            name: guest.name.as_str(),
            pid,
            limits: guest.cpu_limits,
        };
        let result = self.resources().containment.contain(&contained).await;
        let error = result.err().map(|error| chain(&error));
        if let Some(error) = &error {
            tracing::error!("guest {}: {error}", guest.name);
        }
        machine.set_limits_error(error.filter(|_| !guest.cpu_limits.is_empty()));
    }

    /// Applies the limits of a guest that was edited, if it runs.
    pub(super) async fn limit_if_running(&self, guest: &Guest) {
        if let Some(pid) = self.status(guest.uuid).pid {
            self.contain(guest, pid).await;
        }
    }
}
