//! The user that VMMs run as.

use nix::unistd::{Uid, User};
use thiserror::Error;

/// Who VMMs run as if nothing else is said and this user exists: the image makes it.
const DEFAULT: &str = "pindah-vmm";

/// A user and its group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmmUser {
    uid: u32,
    gid: u32,
}

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

impl VmmUser {
    /// Who VMMs run as: `setting`, a name or `UID:GID`. Without it `pindah-vmm` if there is such a
    /// user and the agent is root, and who the agent is otherwise.
    ///
    /// # Errors
    /// [`VmmUserError`].
    pub fn of_setting(setting: Option<&str>) -> Result<Option<Self>, VmmUserError> {
        match setting {
            Some(setting) => match numbers(setting) {
                Some(user) => Ok(Some(user)),
                None => match look_up(setting)? {
                    Some(user) => Ok(Some(user)),
                    None => Err(VmmUserError::Unknown(setting.to_owned())),
                },
            },
            None if Uid::effective().is_root() => look_up(DEFAULT),
            None => Ok(None),
        }
    }
}

impl std::fmt::Display for VmmUser {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.uid, self.gid)
    }
}

/// As in `990:990`; the largest number means nobody (setresuid(2)).
fn numbers(text: &str) -> Option<VmmUser> {
    let (uid, gid) = text.split_once(':')?;
    let number = |text: &str| text.parse().ok().filter(|&number| number != u32::MAX);
    Some(VmmUser {
        uid: number(uid)?,
        gid: number(gid)?,
    })
}

fn look_up(name: &str) -> Result<Option<VmmUser>, VmmUserError> {
    let user = User::from_name(name).map_err(|source| VmmUserError::LookUp {
        name: name.to_owned(),
        source,
    })?;
    Ok(user.map(|user| VmmUser {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_a_name_or_two_numbers() {
        let user = |setting| VmmUser::of_setting(Some(setting));
        assert_eq!(user("990:991").unwrap().unwrap().to_string(), "990:991");
        assert_eq!(user("root").unwrap().unwrap().to_string(), "0:0");
        for setting in ["no-such-user", "", "990", "1:4294967295", "-1:0"] {
            let refused = user(setting).unwrap_err().to_string();
            assert!(refused.contains("no such user"), "{refused}");
        }
    }
}
