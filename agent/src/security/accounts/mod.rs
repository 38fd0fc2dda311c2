//! Users with passwords, and tokens. Of a token only a hash is kept; of a password argon2's.

mod error;
mod granting;
mod password;
#[cfg(test)]
mod tests;
mod token;
mod user;

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;

pub use error::AccountError;
pub use granting::Account;
pub use token::{NewToken, Token};
pub use user::{NewUser, SESSION_LIFE, User, login_of};

use crate::domain::{Invalid, is_label};
use crate::store::{Collection, Store};
use token::TokenRecord;
use user::UserRecord;

/// Passwords that are hashed at once.
const HASHING: usize = 2;

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

    /// Away from the threads that serve requests, and two at a time: each takes 19 MiB.
    async fn hash<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, AccountError> + Send + 'static,
    ) -> Result<T, AccountError> {
        let _permit = self.hashing.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| AccountError::Crypto(error.to_string()))?
    }
}

fn check_name(name: &str) -> Result<(), Invalid> {
    if is_label(name) {
        return Ok(());
    }
    let must = "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on";
    Err(Invalid::text("name", name, must))
}

fn not_found(kind: &'static str, name: &str) -> AccountError {
    let name = name.chars().take(64).collect();
    AccountError::NotFound { kind, name }
}

fn random<const N: usize>() -> Result<[u8; N], AccountError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| AccountError::Crypto("the host has no random numbers".to_owned()))?;
    Ok(bytes)
}
