//! Passwords: argon2's hashes of them.

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};

use super::{AccountError, random};

/// Longest password, in characters.
pub(super) const PASSWORD_MAX: usize = 256;

pub(super) fn hash(password: &str) -> Result<String, AccountError> {
    let failed = |error: argon2::password_hash::Error| AccountError::Crypto(error.to_string());
    let salt = SaltString::encode_b64(&random::<16>()?).map_err(failed)?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    Ok(hash.map_err(failed)?.to_string())
}

pub(super) fn verify(password: &str, known: &str) -> bool {
    PasswordHash::new(known).is_ok_and(|known| {
        let argon2 = Argon2::default();
        argon2.verify_password(password.as_bytes(), &known).is_ok()
    })
}
