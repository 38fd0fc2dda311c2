//! What somebody may do: a role for everything, roles for single guests, and what each allows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Role;
use crate::domain::Invalid;

/// Most single guests that one account has roles for: they go along in a header from node to node.
pub const GUESTS_MAX: usize = 128;

/// The roles of a user or token. Who has none for everything sees the guests that it has one for,
/// with their tasks and events, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Grants {
    /// For everything; absent: for single guests only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// For single guests, by their UUIDs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guests: BTreeMap<Uuid, Role>,
}

/// What can be done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// See it, its log, tasks, events and figures.
    Look,
    /// Start, stop, reset and pause it, use its console, cancel its tasks.
    Run,
    /// Change what it is, move and delete it.
    Change,
    /// Give others roles for it.
    Share,
}

impl Right {
    /// The role for everything that has this right to each guest.
    pub fn role(self) -> Role {
        match self {
            Self::Look => Role::Viewer,
            Self::Run | Self::Change => Role::Operator,
            Self::Share => Role::Admin,
        }
    }

    /// The role for one guest that has this right to it. What a guest takes of the site is not for
    /// who only runs it.
    pub fn role_for_guest(self) -> Role {
        match self {
            Self::Look => Role::Viewer,
            Self::Run => Role::Operator,
            Self::Change | Self::Share => Role::Admin,
        }
    }
}

/// A change of an account's roles; `None` takes a role away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantChange {
    /// The role for everything.
    Everything(Option<Role>),
    /// The role for one guest.
    Guest(Uuid, Option<Role>),
}

impl Grants {
    /// Whether these roles give this right to a guest.
    pub fn allow(&self, guest: Uuid, right: Right) -> bool {
        let for_guest = self.guests.get(&guest);
        self.role.is_some_and(|role| role >= right.role())
            || for_guest.is_some_and(|role| *role >= right.role_for_guest())
    }

    /// These roles after a change.
    ///
    /// # Errors
    /// There would be more than [`GUESTS_MAX`] single guests.
    pub fn with(&self, change: GrantChange) -> Result<Self, Invalid> {
        let mut grants = self.clone();
        match change {
            GrantChange::Everything(role) => grants.role = role,
            GrantChange::Guest(guest, None) => {
                grants.guests.remove(&guest);
            }
            GrantChange::Guest(guest, Some(role)) => {
                grants.guests.insert(guest, role);
            }
        }
        grants.check()?;
        Ok(grants)
    }

    /// Refuses more single guests than an account may have.
    ///
    /// # Errors
    /// There are more than [`GUESTS_MAX`].
    pub fn check(&self) -> Result<(), Invalid> {
        let count = self.guests.len();
        if count > GUESTS_MAX {
            let must = "an account may have roles for at most 128 single guests; \
                give it a role for everything, or make a second account";
            return Err(Invalid::number("guests", count as u64, must));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_for_one_guest_says_nothing_of_another() {
        let (web, db) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let grants = |role, guests: &[(Uuid, Role)]| Grants {
            role,
            guests: guests.iter().copied().collect(),
        };
        let rights = [Right::Look, Right::Run, Right::Change, Right::Share];
        let allowed = |grants: &Grants, guest| rights.map(|right| grants.allow(guest, right));
        for (role, on_web) in [
            (Role::Viewer, [true, false, false, false]),
            (Role::Operator, [true, true, false, false]),
            (Role::Admin, [true, true, true, true]),
        ] {
            let grants = grants(None, &[(web, role)]);
            assert_eq!(allowed(&grants, web), on_web, "{role}");
            assert_eq!(allowed(&grants, db), [false; 4], "{role}");
        }
        for (role, on_all) in [
            (Role::Viewer, [true, false, false, false]),
            (Role::Operator, [true, true, true, false]),
            (Role::Admin, [true, true, true, true]),
        ] {
            assert_eq!(allowed(&grants(Some(role), &[]), db), on_all, "{role}");
        }
        let both = grants(Some(Role::Viewer), &[(web, Role::Operator)]);
        assert!(both.allow(web, Right::Run) && !both.allow(db, Right::Run));
        assert_eq!(allowed(&Grants::default(), web), [false; 4]);
    }

    #[test]
    fn changes_give_and_take_up_to_a_bound() {
        let web = Uuid::from_u128(1);
        let change = |grants: &Grants, change| grants.with(change).unwrap();
        let mut grants = change(
            &Grants::default(),
            GrantChange::Guest(web, Some(Role::Viewer)),
        );
        assert!(grants.allow(web, Right::Look));
        grants = change(&grants, GrantChange::Everything(Some(Role::Admin)));
        grants = change(&grants, GrantChange::Guest(web, None));
        grants = change(&grants, GrantChange::Everything(None));
        assert_eq!(grants, Grants::default());
        for guest in 0..GUESTS_MAX as u128 {
            let guest = Uuid::from_u128(guest);
            grants = change(&grants, GrantChange::Guest(guest, Some(Role::Viewer)));
        }
        let more = GrantChange::Guest(Uuid::from_u128(1 << 20), Some(Role::Viewer));
        assert!(grants.with(more).is_err());
    }
}
