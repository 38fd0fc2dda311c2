//! Users: a password each, and logins that are tokens for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::password::{self, PASSWORD_MAX};
use super::token::{TokenRecord, make_token};
use super::{AccountError, Accounts, check_name, not_found};
use crate::domain::{Invalid, is_label};
use crate::security::{Grants, Role};
use crate::store::{Collection, Outcome, Record, Stored, Transaction, encode};

/// How long a login is good.
const LOGIN_LIFE: Duration = Duration::from_secs(12 * 3600);
/// How long a login of the web page is good after it was last renewed.
pub const SESSION_LIFE: Duration = Duration::from_secs(3600);
/// What the names of logins begin with.
const LOGIN: &str = "user:";
/// Shortest password, in characters.
const PASSWORD_MIN: usize = 10;

/// A user, without the password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// The name.
    pub name: String,
    /// What the user may do.
    #[serde(flatten)]
    pub grants: Grants,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct UserRecord {
    pub(super) user: User,
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
    #[schema(pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
    pub name: String,
    /// What the user may do everywhere; absent: nothing but what `guests` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// What the user may do with single guests, by their UUIDs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guests: BTreeMap<Uuid, Role>,
    /// 10 to 256 characters.
    #[schema(min_length = 10, max_length = 256)]
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
        if !(PASSWORD_MIN..=PASSWORD_MAX).contains(&length) {
            let must = "must have 10 to 256 characters";
            return Err(Invalid::text("password", "…", must).into());
        }
        let grants = Grants {
            role: new.role,
            guests: new.guests,
        };
        grants.check()?;
        let password = self.hash(move || password::hash(&new.password)).await?;
        let user = User {
            name: new.name,
            grants,
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

    /// A user.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn user(&self, name: &str) -> Result<User, AccountError> {
        let found = if is_label(name) {
            self.users.get(name).await?
        } else {
            None
        };
        let found = found.map(|stored| stored.value.user);
        found.ok_or_else(|| not_found("user", name))
    }

    /// Removes a user, and ends what logins there are.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn delete_user(&self, name: &str) -> Result<(), AccountError> {
        self.user(name).await?;
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
        self.login_for(name, password, LOGIN_LIFE).await
    }

    /// A token for [`SESSION_LIFE`], for a user who knows the password.
    ///
    /// # Errors
    /// [`AccountError::Denied`], [`AccountError::Store`].
    pub async fn open_session(&self, name: &str, password: String) -> Result<String, AccountError> {
        self.login_for(name, password, SESSION_LIFE).await
    }

    async fn login_for(
        &self,
        name: &str,
        password: String,
        life: Duration,
    ) -> Result<String, AccountError> {
        let user = if is_label(name) && password.chars().count() <= PASSWORD_MAX {
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
        let (record, text) = make_token(&login_name(&user.user.name), user.user.grants)?;
        let key = Collection::<TokenRecord>::key(&record.token.id);
        let lease = self.store.grant_lease(life).await?;
        let value = encode(&key, &record)?;
        let session = Transaction::new().put_leased(&key, value, lease);
        self.store.commit(session).await?;
        Ok(text)
    }

    /// Makes a login good for [`SESSION_LIFE`] from now on.
    ///
    /// # Errors
    /// [`AccountError::NotLogin`], [`AccountError::Denied`] if it has ended meanwhile,
    /// [`AccountError::Store`].
    pub async fn renew_session(&self, id: &str) -> Result<(), AccountError> {
        let record = self.session(id).await?;
        let key = Collection::<TokenRecord>::key(id);
        let lease = self.store.grant_lease(SESSION_LIFE).await?;
        let value = encode(&key, &record.value)?;
        let renewed = Transaction::new()
            .if_unchanged(&key, record.revision)
            .put_leased(&key, value, lease);
        match self.store.commit(renewed).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => {
                self.store.revoke_lease(lease).await?;
                // Another tab of the same login has renewed it, or it has ended.
                self.session(id).await.map(|_| ())
            }
        }
    }

    /// Ends a login.
    ///
    /// # Errors
    /// [`AccountError::NotLogin`], [`AccountError::Denied`], [`AccountError::Store`].
    pub async fn end_session(&self, id: &str) -> Result<(), AccountError> {
        self.session(id).await?;
        Ok(self.tokens.delete(id).await?)
    }

    async fn session(&self, id: &str) -> Result<Stored<TokenRecord>, AccountError> {
        let record = self.tokens.get(id).await?.ok_or(AccountError::Denied)?;
        match login_of(&record.value.token.name) {
            Some(_) => Ok(record),
            None => Err(AccountError::NotLogin(id.to_owned())),
        }
    }
}

/// Tokens of logins carry the user's name in a form that no other token can have.
fn login_name(user: &str) -> String {
    format!("{LOGIN}{user}")
}

/// The user whose login has this name.
pub fn login_of(token: &str) -> Option<&str> {
    token.strip_prefix(LOGIN)
}
