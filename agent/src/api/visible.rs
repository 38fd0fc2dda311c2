//! What of lists somebody sees who has roles for single guests only.

use uuid::Uuid;

use super::{Api, ApiError, ErrorCode};
use crate::domain::{Guest, Task};
use crate::events::Event;
use crate::security::{Principal, Right};

impl Principal {
    /// Whether somebody sees more than single guests.
    pub(super) fn sees_all(&self) -> bool {
        self.grants.role.is_some()
    }

    /// What is about no guest is for who sees everything.
    fn may(&self, guest: Option<Uuid>, right: Right) -> bool {
        match guest {
            Some(guest) => self.grants.allow(guest, right),
            None => self.grants.role.is_some_and(|role| role >= right.role()),
        }
    }

    /// Whether somebody may see an event.
    pub(super) fn sees_event(&self, event: &Event) -> bool {
        self.may(event.kind.guest(), Right::Look)
    }

    /// Whether somebody may see a task.
    pub(super) fn sees_task(&self, task: &Task) -> bool {
        self.may(task.guest, Right::Look)
    }

    /// Refuses who sees a task and may not cancel it.
    pub(super) fn require_cancel(&self, task: &Task) -> Result<(), ApiError> {
        if self.may(task.guest, Right::Run) {
            return Ok(());
        }
        let (role, user) = (Right::Run.role(), &self.user);
        let message = format!(
            "to cancel {} needs the role {role}, which {user} has not",
            task.kind
        );
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }
}

impl Api {
    /// At most `limit` guests after this UUID that somebody may see, and whether there are more.
    pub(super) async fn visible_guests(
        &self,
        principal: &Principal,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<(Vec<Guest>, bool), ApiError> {
        let (mut guests, more) = if principal.sees_all() {
            self.guests.list(after, limit).await?
        } else {
            let mut guests = Vec::new();
            for uuid in principal.grants.guests.keys() {
                if after.is_none_or(|after| *uuid > after) && guests.len() <= limit {
                    guests.extend(self.guests.by_uuid(*uuid).await?);
                }
            }
            let more = guests.len() > limit;
            (guests, more)
        };
        guests.truncate(limit);
        let guests = guests.into_iter().map(|stored| stored.value);
        Ok((guests.collect(), more))
    }
}
