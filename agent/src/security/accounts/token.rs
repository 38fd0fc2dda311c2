//! Tokens: a random secret each, of which only a hash is kept.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

use super::user::login_of;
use super::{AccountError, Accounts, check_name, not_found, random};
use crate::clock::now_unix_ms;
use crate::security::{Grants, Principal, Role, hex};
use crate::store::Record;

/// What all tokens begin with, so that they are known when they leak.
const TOKEN_PREFIX: &str = "pindah";
/// Bytes of randomness in a token's secret.
const SECRET_BYTES: usize = 32;

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id, part of the token's text.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do; of a login, what its user might when it was made, and may since.
    #[serde(flatten)]
    pub grants: Grants,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    pub(super) token: Token,
    pub(super) sha256: String,
}

impl Record for TokenRecord {
    const KIND: &'static str = "tokens";
    const SCHEMA: u32 = 1;
}

/// A token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for: 1 to 63 lower-case letters, digits and hyphens.
    #[schema(pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
    pub name: String,
    /// What it may do everywhere; absent: nothing but what `guests` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// What it may do with single guests, by their UUIDs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guests: BTreeMap<Uuid, Role>,
}

impl NewToken {
    fn grants(&self) -> Grants {
        Grants {
            role: self.role,
            guests: self.guests.clone(),
        }
    }
}

impl Accounts {
    /// Makes a token. Its text is given out here and never again.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_token(&self, new: &NewToken) -> Result<(Token, String), AccountError> {
        check_name(&new.name)?;
        let grants = new.grants();
        grants.check()?;
        let (record, text) = make_token(&new.name, grants)?;
        self.tokens.create(&record.token.id, &record).await?;
        Ok((record.token, text))
    }

    /// All tokens, logins too.
    ///
    /// # Errors
    /// [`AccountError::Store`].
    pub async fn tokens(&self) -> Result<Vec<Token>, AccountError> {
        let all = self.tokens.all().await?;
        Ok(all.into_iter().map(|stored| stored.value.token).collect())
    }

    /// A token by its id.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn token(&self, id: &str) -> Result<Token, AccountError> {
        let found = if is_id(id) {
            self.tokens.get(id).await?
        } else {
            None
        };
        let found = found.map(|stored| stored.value.token);
        found.ok_or_else(|| not_found("token", id))
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn delete_token(&self, id: &str) -> Result<(), AccountError> {
        self.token(id).await?;
        Ok(self.tokens.delete(id).await?)
    }

    /// Who has this token.
    ///
    /// # Errors
    /// [`AccountError::Denied`], [`AccountError::Store`].
    pub async fn authenticate(&self, text: &str) -> Result<Principal, AccountError> {
        let mut parts = text.splitn(3, '_');
        let (Some(TOKEN_PREFIX), Some(id), Some(secret)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(AccountError::Denied);
        };
        if !is_id(id) {
            return Err(AccountError::Denied);
        }
        let record = self.tokens.get(id).await?.ok_or(AccountError::Denied)?;
        let known = record.value.sha256;
        if !bool::from(known.as_bytes().ct_eq(hash(secret).as_bytes())) {
            return Err(AccountError::Denied);
        }
        let token = record.value.token;
        let grants = self.grants_of(&token).await?.ok_or(AccountError::Denied)?;
        Ok(Principal {
            user: token.name,
            grants,
            token: token.id,
        })
    }

    /// What the holder of the token with this id may do now. `None`: the token was revoked, or its
    /// user deleted.
    ///
    /// # Errors
    /// [`AccountError::Store`].
    pub async fn current_grants(&self, id: &str) -> Result<Option<Grants>, AccountError> {
        match self.tokens.get(id).await? {
            Some(record) => self.grants_of(&record.value.token).await,
            None => Ok(None),
        }
    }

    /// What a login may do is what its user may now; `None`: that one is no more.
    async fn grants_of(&self, token: &Token) -> Result<Option<Grants>, AccountError> {
        let Some(user) = login_of(&token.name) else {
            return Ok(Some(token.grants.clone()));
        };
        let user = self.users.get(user).await?;
        Ok(user.map(|user| user.value.user.grants))
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 16 && id.chars().all(|c| c.is_ascii_hexdigit())
}

pub(super) fn make_token(
    name: &str,
    grants: Grants,
) -> Result<(TokenRecord, String), AccountError> {
    let id = hex(&random::<8>()?);
    let secret = hex(&random::<SECRET_BYTES>()?);
    let text = format!("{TOKEN_PREFIX}_{id}_{secret}");
    let token = Token {
        id,
        name: name.to_owned(),
        grants,
        created_unix_ms: now_unix_ms(),
    };
    let sha256 = hash(&secret);
    Ok((TokenRecord { token, sha256 }, text))
}

/// The secret is random and long: a plain hash is as good as a slow one.
fn hash(secret: &str) -> String {
    hex(digest(&SHA256, secret.as_bytes()).as_ref())
}
