//! Delete: the guest, its disks and its log.

use serde_json::json;

use super::{GuestError, GuestState, Guests};
use crate::domain::{Guest, Task, TaskKind, TaskSubject};

impl Guests {
    /// Begins to delete a guest: one that is off, or with `force` any.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Busy`], [`GuestError::Store`].
    pub async fn delete(&self, guest: &Guest, force: bool, user: &str) -> Result<Task, GuestError> {
        let off = [GuestState::Stopped, GuestState::Crashed];
        if !force {
            self.require(guest, &off, "stop it first, or delete it by force")?;
        }
        let operation = self.operate(guest)?;
        let guests = self.clone();
        let guest = guest.clone();
        let subject = TaskSubject::from(&guest);
        let tasks = &self.resources().tasks;
        let task = tasks.start(TaskKind::DeleteGuest, subject, user, |context| async move {
            let _operation = operation;
            guests.stop_now(&guest, None, &context).await?;
            context.log("removing its disks");
            guests.remove(&guest).await?;
            Ok(json!({ "uuid": guest.uuid }))
        });
        Ok(task.await?)
    }
}
