//! The user that a VMM becomes, as its command line names it.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// A user and its group, by number (credentials(7)), as in `990:990`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Below 4294967295, which stands for no change in the system calls (setresuid(2)).
    pub uid: u32,
    /// The same.
    pub gid: u32,
}

/// The text is no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseUserError;

impl std::error::Error for ParseUserError {}

impl Display for ParseUserError {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("a user is UID:GID, two numbers below 4294967295, as in 990:990")
    }
}

impl FromStr for User {
    type Err = ParseUserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = text.split_once(':').ok_or(ParseUserError)?;
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
