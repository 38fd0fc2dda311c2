//! Why there is no such account, or cannot be.

use thiserror::Error;

use crate::domain::Invalid;
use crate::store::StoreError;

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
    /// A login has what its user has.
    #[error("token {0} is a login; change what its user may do")]
    Login(String),
    /// A token is no login.
    #[error("token {0} is no login: it is good until it is deleted")]
    NotLogin(String),
    /// The host has no randomness, or argon2 fails.
    #[error("cannot make a secret: {0}")]
    Crypto(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}
