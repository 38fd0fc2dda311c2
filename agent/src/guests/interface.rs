//! Changes to an interface, which a running guest gets at once.

use super::{GuestError, GuestState, Guests};
use crate::causes::chain;
use crate::domain::{Guest, InterfaceEdit, MacOwner};
use crate::network::if_unchanged;
use crate::store::{Collection, Outcome, Stored, Transaction, encode};

impl Guests {
    /// Changes an interface of a guest of this node, if its record is still the one of `stored`. What
    /// a running guest's node cannot do is refused, and everything stays as it was.
    ///
    /// # Errors
    /// [`GuestError::NoInterface`], [`GuestError::Invalid`], [`GuestError::Changed`],
    /// [`GuestError::MacTaken`], [`GuestError::State`], [`GuestError::Busy`],
    /// [`GuestError::Network`], [`GuestError::Store`].
    pub async fn edit_interface(
        &self,
        stored: &Stored<Guest>,
        id: &str,
        edit: &InterfaceEdit,
    ) -> Result<Stored<Guest>, GuestError> {
        let before = &stored.value;
        before.may_start_on(&self.resources().node)?;
        let edited = edit.apply(before, id)?.ok_or_else(|| {
            let id = id.chars().take(64).collect();
            let name = before.name.to_string();
            GuestError::NoInterface { name, id }
        })?;
        let _operation = self.operate(before)?;
        let macs = |guest: &Guest| -> Vec<String> {
            let interfaces = guest.interfaces.iter();
            interfaces.map(|one| one.mac.clone()).collect()
        };
        if macs(before) != macs(&edited) {
            let off = [GuestState::Stopped, GuestState::Crashed];
            self.require(
                before,
                &off,
                "its MAC address can be changed when it is off",
            )?;
        }
        let now = self.swap_interfaces(stored, edited).await?;
        if !self.status(before.uuid).state.has_process() {
            return Ok(now);
        }
        if let Err(error) = self.networks().connect(&now.value).await {
            self.swap_interfaces(&now, before.clone()).await?;
            if let Err(error) = self.networks().connect(before).await {
                tracing::error!("guest {}: {}", before.name, chain(&error));
            }
            return Err(error.into());
        }
        Ok(now)
    }

    /// Writes the record, its MAC addresses with it, while its networks are what they are.
    async fn swap_interfaces(
        &self,
        stored: &Stored<Guest>,
        edited: Guest,
    ) -> Result<Stored<Guest>, GuestError> {
        let networks = self.networks().of_interfaces(&edited.interfaces).await?;
        let id = edited.uuid.to_string();
        let key = Collection::<Guest>::key(&id);
        let mut transaction = Transaction::new()
            .if_unchanged(&key, stored.revision)
            .put(&key, encode(&key, &edited)?);
        let mut new_mac = None;
        for (old, new) in stored.value.interfaces.iter().zip(&edited.interfaces) {
            if old.mac != new.mac {
                let mac = |mac: &str| Collection::<MacOwner>::key(&MacOwner::id(mac));
                let (old, reserved) = (mac(&old.mac), mac(&new.mac));
                let owner = encode(&reserved, &MacOwner { uuid: edited.uuid })?;
                transaction = transaction.if_absent(&reserved);
                transaction = transaction.put(&reserved, owner).delete(old);
                new_mac = Some(new.mac.clone());
            }
        }
        let transaction = if_unchanged(transaction, &networks);
        match self.resources().store.commit(transaction).await? {
            Outcome::Committed(revision) => {
                self.tell_changed(&edited);
                let value = edited;
                Ok(Stored { value, revision })
            }
            Outcome::Conflict => {
                let now = self.records().get(&id).await?;
                let unchanged = now.is_some_and(|now| now.revision == stored.revision);
                match new_mac.filter(|_| unchanged) {
                    Some(mac) => Err(GuestError::MacTaken(mac)),
                    None => Err(GuestError::Changed(edited.name.to_string())),
                }
            }
        }
    }
}
