//! `pindah user …`.

use std::io::{BufRead, IsTerminal, Write};

use clap::Subcommand;
use reqwest::Method;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::grant::{GrantArguments, Names, RevokeArguments, RoleArguments, short};
use super::output::{Output, properties, table};
use crate::client::Client;
use crate::security::{NewUser, User};

/// Users with passwords.
#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// List all users.
    List,
    /// Make a user; the password is asked for, or read from standard input.
    Create {
        /// The name.
        name: String,
        #[command(flatten)]
        role: RoleArguments,
    },
    /// Show a user and what the user may do.
    Show {
        /// The name.
        name: String,
    },
    /// Give a user a role, for everything or for one guest.
    Grant(GrantArguments),
    /// Take a role away from a user.
    Revoke(RevokeArguments),
    /// Remove a user.
    Delete {
        /// The name.
        name: String,
    },
}

impl UserCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let users: Vec<User> = client.list("/users").await?;
                output.show(&users, |users| {
                    let row = |user: &User| {
                        let [role, guests] = short(&user.grants);
                        vec![user.name.clone(), role, guests]
                    };
                    table(&["NAME", "ROLE", "GUESTS"], users.iter().map(row))
                })
            }
            Self::Create { name, role } => {
                let (role, guests) = role.resolve(client).await?;
                let password = read_password()?;
                let new = NewUser {
                    name,
                    role,
                    guests,
                    password,
                };
                let user: User = client.post("/users", &new).await?;
                show(&user, client, output).await
            }
            Self::Show { name } => {
                let name = super::guest::segment(&name)?;
                let user: User = client.get(&format!("/users/{name}")).await?;
                show(&user, client, output).await
            }
            Self::Grant(arguments) => arguments.run("users", client, output).await,
            Self::Revoke(arguments) => arguments.run("users", client, output).await,
            Self::Delete { name } => {
                let name = super::guest::segment(&name)?;
                let request = client.request(Method::DELETE, &format!("/users/{name}"));
                client.send(request).await?;
                Ok(())
            }
        }
    }
}

async fn show(user: &User, client: &Client, output: Output) -> anyhow::Result<()> {
    let names = Names::of(client, &user.grants).await?;
    output.show(user, |user| {
        properties(&[
            ("user", user.name.clone()),
            ("may", names.text(&user.grants)),
        ])
    })
}

/// One line, which a terminal does not show.
fn read_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    if stdin.is_terminal() {
        eprint!("Password: ");
        std::io::stderr().flush()?;
        let before = tcgetattr(&stdin)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
        let read = stdin.lock().read_line(&mut line);
        tcsetattr(&stdin, OptionalActions::Flush, &before)?;
        eprintln!();
        read?;
    } else {
        stdin.lock().read_line(&mut line)?;
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
