//! What a machine does once, when it first starts: it begins or joins a cluster.
//!
//! The installer leaves the wish in [`FILE`]; a unit runs `pindah-install first-boot` until the wish
//! has come true and the file is gone.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::answers::{Answers, Cluster};
use crate::program;

/// Where the wish is, on the installed system.
pub const FILE: &str = "/etc/pindah/first-boot.toml";

/// The wish.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "mode", rename_all = "snake_case")]
pub enum FirstBoot {
    /// To be the first node of a cluster.
    New {
        /// Where other nodes find it; absent: its first address.
        own_address: Option<IpAddr>,
    },
    /// To join one.
    Join {
        /// A node of the cluster.
        address: String,
        /// The join token.
        token: String,
        /// Where other nodes find this one; absent: its first address.
        own_address: Option<IpAddr>,
        /// To vote only.
        witness: bool,
    },
}

impl std::fmt::Debug for FirstBoot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New { own_address } => write!(formatter, "New({own_address:?})"),
            Self::Join {
                address, witness, ..
            } => write!(formatter, "Join({address}, witness: {witness})"),
        }
    }
}

impl FirstBoot {
    /// What `answers` ask for, on a machine that runs guests or does not.
    pub fn of(answers: &Answers, runs_guests: bool) -> Option<Self> {
        let own_address = answers.own_address();
        match answers.cluster.clone() {
            Cluster::Single => None,
            Cluster::New => Some(Self::New { own_address }),
            Cluster::Join {
                address,
                token,
                witness,
            } => Some(Self::Join {
                address,
                token,
                own_address,
                witness: witness || !runs_guests,
            }),
        }
    }

    /// The arguments of `pindah` that do it.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["cluster".to_owned()];
        match self {
            Self::New { own_address } => {
                arguments.push("init".to_owned());
                if let Some(own) = own_address {
                    arguments.extend(["--address".to_owned(), own.to_string()]);
                }
            }
            Self::Join {
                address,
                token,
                own_address,
                witness,
            } => {
                arguments.extend(["join".to_owned(), address.clone(), token.clone()]);
                if let Some(own) = own_address {
                    arguments.extend(["--own-address".to_owned(), own.to_string()]);
                }
                if *witness {
                    arguments.push("--witness".to_owned());
                }
            }
        }
        arguments
    }

    /// Has `pindah` do what the file at `path` says, and removes the file.
    ///
    /// # Errors
    /// `pindah` fails; the file is there still.
    pub fn run(path: &Path, pindah: &str) -> anyhow::Result<()> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let wish: Self =
            toml::from_str(&text).with_context(|| format!("{} is broken", path.display()))?;
        if program::run(pindah, &["cluster", "show"], b"").is_err() {
            program::run(pindah, &wish.arguments(), b"").with_context(|| {
                format!(
                    "it did not work yet, and is tried again; `{pindah} cluster …` by hand does \
                     as well, and so does removing {}",
                    path.display()
                )
            })?;
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn join(witness: bool) -> FirstBoot {
        FirstBoot::Join {
            address: "10.0.0.1".to_owned(),
            token: "pindah-join.x".to_owned(),
            own_address: Some([10, 0, 0, 2].into()),
            witness,
        }
    }

    #[test]
    fn wish_survives_its_file() {
        for wish in [join(true), FirstBoot::New { own_address: None }] {
            let text = toml::to_string(&wish).unwrap();
            assert_eq!(toml::from_str::<FirstBoot>(&text).unwrap(), wish);
        }
    }

    #[test]
    fn machine_that_runs_no_guests_joins_as_a_witness() {
        let answers = Answers::parse(include_str!("../answers.toml"), Path::new("/")).unwrap();
        for (runs_guests, expected) in [(true, false), (false, true)] {
            let Some(FirstBoot::Join { witness, .. }) = FirstBoot::of(&answers, runs_guests) else {
                panic!("no wish to join");
            };
            assert_eq!(witness, expected);
        }
    }

    /// A `pindah` that is in a cluster once it was told to join, and writes down how.
    #[test]
    fn wish_is_tried_until_it_comes_true_and_then_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let script = format!(
            "#!/bin/sh\ncd {}\ncase \"$*\" in\n'cluster show') [ -e joined ] ;;\n*) [ -e up ] || \
             {{ echo 'nobody answers' >&2; exit 1; }}; echo \"$*\" >joined ;;\nesac\n",
            directory.path().display()
        );
        std::fs::write(file("pindah"), script).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(file("pindah"), executable).unwrap();
        std::fs::write(file("wish"), toml::to_string(&join(true)).unwrap()).unwrap();
        let pindah = file("pindah");
        let run = || FirstBoot::run(&file("wish"), pindah.to_str().unwrap());

        let error = format!("{:#}", run().unwrap_err());
        assert!(
            error.contains("nobody answers") && file("wish").exists(),
            "{error}"
        );
        std::fs::write(file("up"), "").unwrap();
        run().unwrap();
        let joined = std::fs::read_to_string(file("joined")).unwrap();
        let expected = "cluster join 10.0.0.1 pindah-join.x --own-address 10.0.0.2 --witness\n";
        assert_eq!(joined, expected);
        assert!(!file("wish").exists());
        run().unwrap();
    }
}
