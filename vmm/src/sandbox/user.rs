//! Becomes somebody else than root, to whom nothing of the host belongs.

use std::fmt::{Display, Formatter};
use std::io;
use std::str::FromStr;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use thiserror::Error;

use super::SandboxError;

/// A user and its group, by number (credentials(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

/// The text is no user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a user is UID:GID, two numbers below 4294967295, as in 990:990")]
pub struct ParseUserError;

impl FromStr for User {
    type Err = ParseUserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = text.split_once(':').ok_or(ParseUserError)?;
        // The largest number stands for no change in these system calls.
        let number = |text: &str| match text.parse() {
            Ok(u32::MAX) | Err(_) => Err(ParseUserError),
            Ok(number) => Ok(number),
        };
        Ok(Self {
            uid: number(uid)?,
            gid: number(gid)?,
        })
    }
}

impl Display for User {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl User {
    /// Becomes this user for good, without supplementary groups. The calls are the calling
    /// thread's: it must be the only one, and have the capabilities for it.
    ///
    /// # Errors
    /// [`SandboxError::User`].
    pub(super) fn become_it(self) -> Result<(), SandboxError> {
        let failed = |source: rustix::io::Errno| SandboxError::User {
            user: self,
            source: io::Error::from(source),
        };
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[]).map_err(failed)?;
        set_thread_res_gid(gid, gid, gid).map_err(failed)?;
        set_thread_res_uid(uid, uid, uid).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_two_numbers_that_mean_somebody() {
        let user: User = "990:991".parse().unwrap();
        assert_eq!((user.uid, user.gid), (990, 991));
        assert_eq!(user.to_string(), "990:991");
        for text in [
            "",
            "990",
            "root:root",
            "-1:0",
            "1:4294967295",
            "1:2:3",
            "4294967296:1",
        ] {
            assert_eq!(text.parse::<User>(), Err(ParseUserError), "{text}");
        }
    }
}
