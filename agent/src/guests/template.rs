//! Templates: guests that do not start, and that others are copied from.

use super::{GuestError, GuestState, Guests};
use crate::domain::{Guest, Wanted};

const OFF: [GuestState; 2] = [GuestState::Stopped, GuestState::Crashed];
const HINT: &str = "stop it first: a template does not run";

impl Guests {
    /// Makes a guest of this node that is off a template, or a template a guest again.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Incomplete`], [`GuestError::Placement`],
    /// [`GuestError::Busy`], [`GuestError::Store`].
    pub async fn set_template(&self, guest: &Guest, template: bool) -> Result<Guest, GuestError> {
        guest.may_start_on(&self.resources().node)?;
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        let _operation = self.operate(guest)?;
        self.require(guest, &OFF, HINT)?;
        if template {
            // One that has crashed may be about to start again.
            self.want(guest.uuid, Wanted::Stopped).await?;
        }
        let key = guest.uuid.to_string();
        let updated = self
            .records()
            .update(&key, |guest| guest.template = template);
        let now = updated.await?.ok_or(GuestError::NotFound(key))?.value;
        self.tell_changed(&now);
        Ok(now)
    }
}
