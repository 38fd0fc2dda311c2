//! `pindah token …`.

use clap::Subcommand;
use reqwest::Method;

use super::output::{Output, age, table};
use crate::api::TokenCreated;
use crate::client::Client;
use crate::security::{NewToken, Role, Token};

/// Tokens for programs.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// List all tokens, logins too.
    List,
    /// Make a token and print it: it is shown only now.
    Create {
        /// What it is for.
        name: String,
        /// What it may do: viewer, operator or admin.
        #[arg(long, default_value = "viewer", value_parser = parse_role)]
        role: Role,
    },
    /// Revoke a token.
    Delete {
        /// Its id.
        id: String,
    },
}

/// A role by its name.
pub(super) fn parse_role(text: &str) -> Result<Role, String> {
    let role = serde_json::from_value(text.into());
    role.map_err(|_| format!("{text:?} is none of viewer, operator and admin"))
}

impl TokenCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let tokens: Vec<Token> = client.list("/tokens").await?;
                output.show(&tokens, |tokens| {
                    table(&["ID", "NAME", "ROLE", "AGE"], tokens.iter().map(row))
                })
            }
            Self::Create { name, role } => {
                let new = NewToken { name, role };
                let created: TokenCreated = client.post("/tokens", &new).await?;
                output.show(&created, |created| created.text.clone())
            }
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
    vec![
        token.id.clone(),
        token.name.clone(),
        token.role.to_string(),
        age(token.created_unix_ms),
    ]
}
