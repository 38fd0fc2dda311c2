//! `pindah user …`.

use std::io::{BufRead, IsTerminal, Write};

use clap::Subcommand;
use reqwest::Method;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::output::{Output, table};
use super::token::parse_role;
use crate::client::Client;
use crate::security::{NewUser, Role, User};

/// Users with passwords.
#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// List all users.
    List,
    /// Make a user; the password is asked for, or read from standard input.
    Create {
        /// The name.
        name: String,
        /// What the user may do: viewer, operator or admin.
        #[arg(long, default_value = "viewer", value_parser = parse_role)]
        role: Role,
    },
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
                    let row = |user: &User| vec![user.name.clone(), user.role.to_string()];
                    table(&["NAME", "ROLE"], users.iter().map(row))
                })
            }
            Self::Create { name, role } => {
                let password = read_password()?;
                let new = NewUser {
                    name,
                    role,
                    password,
                };
                let user: User = client.post("/users", &new).await?;
                output.show(&user, |user| format!("user {} is {}", user.name, user.role))
            }
            Self::Delete { name } => {
                let name = super::guest::segment(&name)?;
                let request = client.request(Method::DELETE, &format!("/users/{name}"));
                client.send(request).await?;
                Ok(())
            }
        }
    }
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
