//! The host goes down: its guests shut down before it. What is wanted of them stays, so they run
//! again when it is back.

use std::time::Duration;

use futures_util::future::join_all;

use super::{GuestError, Guests};
use crate::causes::chain;
use crate::domain::{Guest, TaskKind, TaskSubject};

/// How much longer than the guests' own deadline all of it may take.
const MARGIN: Duration = Duration::from_secs(30);
/// Who stops them, for the tasks.
const USER: &str = "pindahd";

impl Guests {
    /// Asks all guests that run here to shut down, waits, and switches off those that do not. Returns
    /// when none runs, or when it is no use to wait any longer.
    pub async fn shut_down_with_host(&self) {
        let guests = match self.records().all().await {
            Ok(guests) => guests.into_iter().map(|stored| stored.value),
            Err(error) => {
                tracing::error!("guests are not shut down: {}", chain(&error));
                return;
            }
        };
        let running: Vec<Guest> = guests.filter(|guest| self.runs(guest)).collect();
        tracing::info!(
            "the host goes down; guests that shut down: {}",
            running.len()
        );
        let ends = running.iter().map(|guest| async move {
            if let Err(error) = self.shut_down_one(guest).await {
                tracing::error!("guest {}: {}", guest.name, chain(&error));
            }
        });
        let patience = self.resources().stop_deadline + MARGIN;
        if tokio::time::timeout(patience, join_all(ends))
            .await
            .is_err()
        {
            tracing::error!("not all guests are off after {} s", patience.as_secs());
        }
    }

    fn runs(&self, guest: &Guest) -> bool {
        self.status(guest.uuid).state.has_process()
    }

    async fn shut_down_one(&self, guest: &Guest) -> Result<(), GuestError> {
        // What is under way with it comes to its end first: it may move away.
        let operation = self.machine(guest.uuid).operate().await;
        if !self.runs(guest) {
            return Ok(());
        }
        let deadline = self.resources().stop_deadline;
        let (guests, subject) = (self.clone(), TaskSubject::from(guest));
        let stopped = guest.clone();
        let tasks = &self.resources().tasks;
        let task = tasks.start(TaskKind::StopGuest, subject, USER, |context| async move {
            let _operation = operation;
            context.log("the host goes down");
            guests.end_now(&stopped, Some(deadline), &context).await?;
            Ok(serde_json::json!({ "uuid": stopped.uuid }))
        });
        let id = task.await?.id;
        tasks.wait(id, deadline + MARGIN).await?;
        Ok(())
    }
}
