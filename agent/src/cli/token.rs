//! `pindah token …`.

use clap::Subcommand;
use reqwest::Method;

use super::grant::{GrantArguments, Names, RevokeArguments, RoleArguments, short};
use super::output::{Output, age, properties, table};
use crate::api::TokenCreated;
use crate::client::Client;
use crate::security::{NewToken, Token};

/// Tokens for programs.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// List all tokens, logins too.
    List,
    /// Make a token and print it: it is shown only now.
    Create {
        /// What it is for.
        name: String,
        #[command(flatten)]
        role: RoleArguments,
    },
    /// Show a token and what it may do.
    Show {
        /// Its id.
        id: String,
    },
    /// Give a token a role, for everything or for one guest.
    Grant(GrantArguments),
    /// Take a role away from a token.
    Revoke(RevokeArguments),
    /// Revoke a token.
    Delete {
        /// Its id.
        id: String,
    },
}

impl TokenCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let tokens: Vec<Token> = client.list("/tokens").await?;
                output.show(&tokens, |tokens| {
                    table(
                        &["ID", "NAME", "ROLE", "GUESTS", "AGE"],
                        tokens.iter().map(row),
                    )
                })
            }
            Self::Create { name, role } => {
                let (role, guests) = role.resolve(client).await?;
                let new = NewToken { name, role, guests };
                let created: TokenCreated = client.post("/tokens", &new).await?;
                output.show(&created, |created| created.text.clone())
            }
            Self::Show { id } => {
                let id = super::guest::segment(&id)?;
                let token: Token = client.get(&format!("/tokens/{id}")).await?;
                let names = Names::of(client, &token.grants).await?;
                output.show(&token, |token| {
                    properties(&[
                        ("token", token.id.clone()),
                        ("name", token.name.clone()),
                        ("may", names.text(&token.grants)),
                        ("age", age(token.created_unix_ms)),
                    ])
                })
            }
            Self::Grant(arguments) => arguments.run("tokens", client, output).await,
            Self::Revoke(arguments) => arguments.run("tokens", client, output).await,
            Self::Delete { id } => {
                let id = super::guest::segment(&id)?;
                let request = client.request(Method::DELETE, &format!("/tokens/{id}"));
                client.send(request).await?;
                Ok(())
            }
        }
    }
}

fn row(token: &Token) -> Vec<String> {
    let [role, guests] = short(&token.grants);
    vec![
        token.id.clone(),
        token.name.clone(),
        role,
        guests,
        age(token.created_unix_ms),
    ]
}
