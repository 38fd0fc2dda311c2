//! What accounts may do, changed while they are used.

use super::token::TokenRecord;
use super::user::{UserRecord, login_of};
use super::{AccountError, Accounts, not_found};
use crate::security::{GrantChange, Grants};

/// A user by name, or a token by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account<'a> {
    /// A user.
    User(&'a str),
    /// A token.
    Token(&'a str),
}

impl Accounts {
    /// The roles of an account.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn grants(&self, account: Account<'_>) -> Result<Grants, AccountError> {
        Ok(match account {
            Account::User(name) => self.user(name).await?.grants,
            Account::Token(id) => self.token(id).await?.grants,
        })
    }

    /// Changes what an account may do; it counts from its next request on.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Login`], [`AccountError::Invalid`],
    /// [`AccountError::Store`].
    pub async fn change(
        &self,
        account: Account<'_>,
        change: GrantChange,
    ) -> Result<(), AccountError> {
        self.grants(account).await?.with(change)?;
        let apply = |grants: &mut Grants| {
            // What somebody else has added meanwhile may have left no room: then nothing changes.
            if let Ok(changed) = grants.with(change) {
                *grants = changed;
            }
        };
        match account {
            Account::User(name) => {
                let apply = |record: &mut UserRecord| apply(&mut record.user.grants);
                let changed = self.users.update(name, apply).await?;
                changed.ok_or_else(|| not_found("user", name))?;
            }
            Account::Token(id) => {
                if login_of(&self.token(id).await?.name).is_some() {
                    return Err(AccountError::Login(id.to_owned()));
                }
                let apply = |record: &mut TokenRecord| apply(&mut record.token.grants);
                let changed = self.tokens.update(id, apply).await?;
                changed.ok_or_else(|| not_found("token", id))?;
            }
        }
        Ok(())
    }
}
