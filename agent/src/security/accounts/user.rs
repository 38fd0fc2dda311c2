//! Users: a password each, and logins that are tokens for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::password::{self, PASSWORD_MAX};
use super::token::{TokenRecord, make_token};
use super::{AccountError, Accounts, check_name};
use crate::domain::{Invalid, is_label};
use crate::security::Role;
use crate::store::{Collection, Outcome, Record, Transaction, encode};

/// How long a login is good.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Shortest password, in characters.
const PASSWORD_MIN: usize = 10;

/// A user, without the password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// The name.
    pub name: String,
    /// What the user may do.
    pub role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct UserRecord {
    user: User,
    password: String,
}

impl Record for UserRecord {
    const KIND: &'static str = "users";
    const SCHEMA: u32 = 1;
}

/// A user to make.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The name: 1 to 63 lower-case letters, digits and hyphens.
    pub name: String,
    /// What the user may do.
    pub role: Role,
    /// 10 to 256 characters.
    pub password: String,
}

impl Accounts {
    /// Makes a user.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_user(&self, new: NewUser) -> Result<User, AccountError> {
        check_name(&new.name)?;
        let length = new.password.chars().count();
        if length < PASSWORD_MIN || new.password.len() > PASSWORD_MAX {
            let must = "must have 10 to 256 characters";
            return Err(Invalid::text("password", "…", must).into());
        }
        let password = self.hash(move || password::hash(&new.password)).await?;
        let user = User {
            name: new.name,
            role: new.role,
        };
        let record = UserRecord {
            user: user.clone(),
            password,
        };
        match self.users.create(&user.name, &record).await? {
            Outcome::Committed(_) => Ok(user),
            Outcome::Conflict => Err(AccountError::Exists {
                kind: "user",
                name: user.name,
            }),
        }
    }

    /// All users.
    ///
    /// # Errors
    /// [`AccountError::Store`].
    pub async fn users(&self) -> Result<Vec<User>, AccountError> {
        let all = self.users.all().await?;
        Ok(all.into_iter().map(|stored| stored.value.user).collect())
    }

    /// Removes a user, and ends what logins there are.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn delete_user(&self, name: &str) -> Result<(), AccountError> {
        if !is_label(name) || self.users.get(name).await?.is_none() {
            let name = name.chars().take(64).collect();
            return Err(AccountError::NotFound { kind: "user", name });
        }
        let sessions: BTreeMap<String, String> = self
            .tokens()
            .await?
            .into_iter()
            .map(|token| (token.id, token.name))
            .collect();
        self.users.delete(name).await?;
        let login = login_name(name);
        for (id, _) in sessions.into_iter().filter(|(_, name)| *name == login) {
            self.tokens.delete(&id).await?;
        }
        Ok(())
    }

    /// A token for 12 hours, for a user who knows the password.
    ///
    /// # Errors
    /// [`AccountError::Denied`], [`AccountError::Store`].
    pub async fn login(&self, name: &str, password: String) -> Result<String, AccountError> {
        let user = if is_label(name) && password.len() <= PASSWORD_MAX {
            self.users.get(name).await?.map(|stored| stored.value)
        } else {
            None
        };
        let Some(user) = user else {
            // Who has no account waits as long as who has a wrong password.
            self.hash(move || password::hash(&password)).await?;
            return Err(AccountError::Denied);
        };
        let known = user.password.clone();
        if !self
            .hash(move || Ok(password::verify(&password, &known)))
            .await?
        {
            return Err(AccountError::Denied);
        }
        let (record, text) = make_token(&login_name(&user.user.name), user.user.role)?;
        let key = Collection::<TokenRecord>::key(&record.token.id);
        let lease = self.store.grant_lease(SESSION).await?;
        let value = encode(&key, &record)?;
        let session = Transaction::new().put_leased(&key, value, lease);
        self.store.commit(session).await?;
        Ok(text)
    }
}

/// Tokens of logins carry the user's name in a form that no other token can have.
fn login_name(user: &str) -> String {
    format!("user:{user}")
}
