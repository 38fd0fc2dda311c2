//! Who may do what: roles, users, tokens; the node's own certificate authority; the audit log.

mod accounts;
mod audit;
mod authority;
mod grants;
mod login_limit;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use accounts::{
    Account, AccountError, Accounts, NewToken, NewUser, SESSION_LIFE, Token, User, login_of,
};
pub use audit::{AuditEntry, AuditLog};
pub use authority::{Authority, AuthorityError, NodeCertificate, fingerprint};
pub use grants::{GUESTS_MAX, GrantChange, Grants, Right};
pub use login_limit::LoginLimit;

/// What somebody may do. Each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Create, run and delete guests.
    Operator,
    /// Everything, users and tokens too.
    Admin,
}

impl std::fmt::Display for Role {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The user, or the token's name.
    pub user: String,
    /// What it may do.
    pub grants: Grants,
    /// The token by which we know.
    pub token: String,
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // A string takes it.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
