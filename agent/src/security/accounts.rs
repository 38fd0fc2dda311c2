//! Users with passwords, and tokens. Of a token only a hash is kept; of a password argon2's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use super::{Principal, Role, hex};
use crate::clock::now_unix_ms;
use crate::domain::{Invalid, is_label};
use crate::store::{Collection, Outcome, Record, Store, StoreError, Transaction, encode};

/// How long a login is good.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Passwords that are hashed at once.
const HASHING: usize = 2;
/// Shortest and longest password, in characters and bytes.
const PASSWORD_MIN: usize = 10;
const PASSWORD_MAX: usize = 256;
/// What all tokens begin with, so that they are known when they leak.
const TOKEN_PREFIX: &str = "pindah";
/// Bytes of randomness in a token's secret.
const SECRET_BYTES: usize = 32;

/// Why there is no such account, or cannot be.
#[derive(Debug, Error)]
pub enum AccountError {
    /// The token or password is wrong, or was revoked. Which, is not said.
    #[error("the user, password or token is wrong or no longer valid")]
    Denied,
    /// A value.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is one already.
    #[error("there is a {kind} {name} already")]
    Exists {
        /// `user` or `token`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is none.
    #[error("there is no {kind} {name}")]
    NotFound {
        /// `user` or `token`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The host has no randomness, or argon2 fails.
    #[error("cannot make a secret: {0}")]
    Crypto(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id, part of the token's text.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TokenRecord {
    token: Token,
    sha256: String,
}

impl Record for TokenRecord {
    const KIND: &'static str = "tokens";
    const SCHEMA: u32 = 1;
}

/// A user, without the password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// The name.
    pub name: String,
    /// What the user may do.
    pub role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct UserRecord {
    user: User,
    password: String,
}

impl Record for UserRecord {
    const KIND: &'static str = "users";
    const SCHEMA: u32 = 1;
}

/// A token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for: 1 to 63 lower-case letters, digits and hyphens.
    pub name: String,
    /// What it may do.
    pub role: Role,
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

/// All users and tokens.
#[derive(Clone)]
pub struct Accounts {
    store: Arc<dyn Store>,
    tokens: Collection<TokenRecord>,
    users: Collection<UserRecord>,
    hashing: Arc<Semaphore>,
}

impl Accounts {
    /// Those in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            tokens: Collection::new(Arc::clone(&store)),
            users: Collection::new(Arc::clone(&store)),
            store,
            hashing: Arc::new(Semaphore::new(HASHING)),
        }
    }

    /// Makes a token. Its text is given out here and never again.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_token(&self, new: &NewToken) -> Result<(Token, String), AccountError> {
        check_name(&new.name)?;
        let (record, text) = make_token(&new.name, new.role)?;
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

    /// Revokes a token.
    ///
    /// # Errors
    /// [`AccountError::NotFound`], [`AccountError::Store`].
    pub async fn delete_token(&self, id: &str) -> Result<(), AccountError> {
        if !is_id(id) || self.tokens.get(id).await?.is_none() {
            let name = id.chars().take(64).collect();
            return Err(AccountError::NotFound {
                kind: "token",
                name,
            });
        }
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
        Ok(Principal {
            user: token.name,
            role: token.role,
            token: token.id,
        })
    }

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
        let password = self.hash(move || hash_password(&new.password)).await?;
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

    /// Away from the threads that serve requests, and two at a time: each takes 19 MiB.
    async fn hash<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, AccountError> + Send + 'static,
    ) -> Result<T, AccountError> {
        let _permit = self.hashing.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| AccountError::Crypto(error.to_string()))?
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
            self.hash(move || hash_password(&password)).await?;
            return Err(AccountError::Denied);
        };
        let known = user.password.clone();
        if !self.hash(move || Ok(verify(&password, &known))).await? {
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

fn check_name(name: &str) -> Result<(), Invalid> {
    if is_label(name) {
        return Ok(());
    }
    let must = "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on";
    Err(Invalid::text("name", name, must))
}

fn is_id(id: &str) -> bool {
    id.len() == 16 && id.chars().all(|c| c.is_ascii_hexdigit())
}

fn make_token(name: &str, role: Role) -> Result<(TokenRecord, String), AccountError> {
    let id = hex(&random::<8>()?);
    let secret = hex(&random::<SECRET_BYTES>()?);
    let text = format!("{TOKEN_PREFIX}_{id}_{secret}");
    let token = Token {
        id,
        name: name.to_owned(),
        role,
        created_unix_ms: now_unix_ms(),
    };
    let sha256 = hash(&secret);
    Ok((TokenRecord { token, sha256 }, text))
}

/// The secret is random and long: a plain hash is as good as a slow one.
fn hash(secret: &str) -> String {
    hex(digest(&SHA256, secret.as_bytes()).as_ref())
}

fn random<const N: usize>() -> Result<[u8; N], AccountError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| AccountError::Crypto("the host has no random numbers".to_owned()))?;
    Ok(bytes)
}

fn hash_password(password: &str) -> Result<String, AccountError> {
    let failed = |error: argon2::password_hash::Error| AccountError::Crypto(error.to_string());
    let salt = SaltString::encode_b64(&random::<16>()?).map_err(failed)?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    Ok(hash.map_err(failed)?.to_string())
}

fn verify(password: &str, known: &str) -> bool {
    PasswordHash::new(known).is_ok_and(|known| {
        let argon2 = Argon2::default();
        argon2.verify_password(password.as_bytes(), &known).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    fn accounts() -> (tempfile::TempDir, Accounts) {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        (directory, Accounts::new(Arc::new(store)))
    }

    #[tokio::test]
    async fn token_is_known_until_it_is_revoked() {
        let (_directory, accounts) = accounts();
        let new = NewToken {
            name: "ci".to_owned(),
            role: Role::Operator,
        };
        let (token, text) = accounts.create_token(&new).await.unwrap();
        let principal = accounts.authenticate(&text).await.unwrap();
        assert_eq!(
            (principal.user.as_str(), principal.role),
            ("ci", Role::Operator)
        );
        let mut wrong = text.clone();
        wrong.replace_range(
            text.len() - 1..,
            if text.ends_with('0') { "1" } else { "0" },
        );
        for text in [wrong.as_str(), "", "pindah", "pindah_x_y", "pindah_../_x"] {
            assert!(accounts.authenticate(text).await.is_err(), "{text}");
        }
        accounts.delete_token(&token.id).await.unwrap();
        assert!(accounts.authenticate(&text).await.is_err());
        assert!(accounts.delete_token(&token.id).await.is_err());
    }

    #[tokio::test]
    async fn login_needs_the_password_and_ends_with_the_user() {
        let (_directory, accounts) = accounts();
        let new = NewUser {
            name: "siti".to_owned(),
            role: Role::Admin,
            password: "correct horse".to_owned(),
        };
        accounts.create_user(new.clone()).await.unwrap();
        assert!(accounts.create_user(new).await.is_err());
        for (user, password) in [("siti", "wrong horse"), ("budi", "correct horse"), ("", "")] {
            assert!(accounts.login(user, password.to_owned()).await.is_err());
        }
        let text = accounts
            .login("siti", "correct horse".to_owned())
            .await
            .unwrap();
        assert_eq!(
            accounts.authenticate(&text).await.unwrap().role,
            Role::Admin
        );
        accounts.delete_user("siti").await.unwrap();
        assert!(accounts.authenticate(&text).await.is_err());
        let short = NewUser {
            name: "x".to_owned(),
            role: Role::Viewer,
            password: "short".to_owned(),
        };
        assert!(accounts.create_user(short).await.is_err());
    }
}
