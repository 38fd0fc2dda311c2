//! The user that VMMs run as.

use nix::unistd::Uid;
use pindah_vmm_api::User;
use thiserror::Error;

/// Who VMMs run as if nothing else is said and this user exists: the image makes it.
const DEFAULT: &str = "pindah-vmm";

/// Why nobody is known by that name.
#[derive(Debug, Error)]
pub enum VmmUserError {
    /// There is no such user.
    #[error(
        "vmm_user = {0:?}: there is no such user; make it, as by `adduser --system --group {0}`"
    )]
    Unknown(String),
    /// The host's users cannot be read.
    #[error("vmm_user = {name:?}: cannot look it up")]
    LookUp {
        /// Whom.
        name: String,
        /// Why.
        #[source]
        source: nix::Error,
    },
}

/// Who VMMs run as: `setting`, a name or `UID:GID`. Without it `pindah-vmm` if there is such a user
/// and the agent is root, and who the agent is otherwise.
///
/// # Errors
/// [`VmmUserError`].
pub fn vmm_user(setting: Option<&str>) -> Result<Option<User>, VmmUserError> {
    match setting {
        Some(setting) => match setting.parse() {
            Ok(user) => Ok(Some(user)),
            Err(_) => match look_up(setting)? {
                Some(user) => Ok(Some(user)),
                None => Err(VmmUserError::Unknown(setting.to_owned())),
            },
        },
        None if Uid::effective().is_root() => look_up(DEFAULT),
        None => Ok(None),
    }
}

fn look_up(name: &str) -> Result<Option<User>, VmmUserError> {
    let user = nix::unistd::User::from_name(name).map_err(|source| VmmUserError::LookUp {
        name: name.to_owned(),
        source,
    })?;
    Ok(user.map(|user| User {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_a_name_or_two_numbers() {
        let user = |setting| vmm_user(Some(setting));
        assert_eq!(user("990:991").unwrap().unwrap().to_string(), "990:991");
        assert_eq!(user("root").unwrap().unwrap().to_string(), "0:0");
        for setting in ["no-such-user", "", "990", "1:4294967295", "-1:0"] {
            let refused = user(setting).unwrap_err().to_string();
            assert!(refused.contains("no such user"), "{refused}");
        }
    }
}
