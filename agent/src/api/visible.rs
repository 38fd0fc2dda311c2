//! What of lists somebody sees who has roles for single guests only.

use uuid::Uuid;

use super::{Api, ApiError};
use crate::domain::{Guest, Task};
use crate::events::Event;
use crate::security::{Principal, Right};

impl Principal {
    /// Whether somebody sees more than single guests.
    pub(super) fn sees_all(&self) -> bool {
        self.grants.role.is_some()
    }

    /// Whether somebody has a right to what is about this guest, or about none: that is for who
    /// has a role for everything.
    pub(super) fn may(&self, guest: Option<Uuid>, right: Right) -> bool {
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
