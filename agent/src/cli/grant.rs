//! Roles of users and tokens: `grant`, `revoke`, and how they are shown.

use std::collections::BTreeMap;

use clap::Args;
use reqwest::Method;
use uuid::Uuid;

use super::guest::segment;
use super::output::Output;
use crate::api::{GuestView, RoleGrant};
use crate::client::Client;
use crate::security::{Grants, Role};

/// A role, and for what.
#[derive(Debug, Args)]
pub(super) struct RoleArguments {
    /// What it may do: viewer, operator or admin.
    #[arg(long, default_value = "viewer", value_parser = parse_role)]
    role: Role,
    /// Only with this guest; may be given several times [default: with everything].
    #[arg(long = "guest", value_name = "GUEST")]
    guests: Vec<String>,
}

/// A role to give.
#[derive(Debug, Args)]
pub(super) struct GrantArguments {
    #[command(flatten)]
    place: Place,
    /// Which: viewer, operator or admin.
    #[arg(long, value_parser = parse_role)]
    role: Role,
}

/// A role to take away.
#[derive(Debug, Args)]
pub(super) struct RevokeArguments {
    #[command(flatten)]
    place: Place,
}

/// Whose role, and for what.
#[derive(Debug, Args)]
struct Place {
    /// The user's name, or the token's id.
    account: String,
    /// The role for this guest only [default: the role for everything].
    #[arg(long)]
    guest: Option<String>,
}

/// A role by its name.
fn parse_role(text: &str) -> Result<Role, String> {
    let role = serde_json::from_value(text.into());
    role.map_err(|_| format!("{text:?} is none of viewer, operator and admin"))
}

impl RoleArguments {
    /// The role for everything, and those for single guests.
    pub(super) async fn resolve(
        self,
        client: &Client,
    ) -> anyhow::Result<(Option<Role>, BTreeMap<Uuid, Role>)> {
        let mut guests = BTreeMap::new();
        for guest in &self.guests {
            let path = format!("/guests/{}", segment(guest)?);
            let guest: GuestView = client.get(&path).await?;
            guests.insert(guest.uuid, self.role);
        }
        Ok((Some(self.role).filter(|_| guests.is_empty()), guests))
    }
}

impl GrantArguments {
    /// `noun`: `users` or `tokens`.
    pub(super) async fn run(
        self,
        noun: &str,
        client: &Client,
        output: Output,
    ) -> anyhow::Result<()> {
        let body = RoleGrant { role: self.role };
        let put = client.request(Method::PUT, &self.place.path(noun)?);
        change_and_show(put.json(&body), client, output).await
    }
}

impl RevokeArguments {
    /// `noun`: `users` or `tokens`.
    pub(super) async fn run(
        self,
        noun: &str,
        client: &Client,
        output: Output,
    ) -> anyhow::Result<()> {
        let delete = client.request(Method::DELETE, &self.place.path(noun)?);
        change_and_show(delete, client, output).await
    }
}

impl Place {
    /// `/users/anna/role`, or `/users/anna/guests/web`.
    fn path(&self, noun: &str) -> anyhow::Result<String> {
        let account = segment(&self.account)?;
        Ok(match &self.guest {
            Some(guest) => format!("/{noun}/{account}/guests/{}", segment(guest)?),
            None => format!("/{noun}/{account}/role"),
        })
    }
}

/// Changes an account's roles, and shows what they are then.
async fn change_and_show(
    change: reqwest::RequestBuilder,
    client: &Client,
    output: Output,
) -> anyhow::Result<()> {
    let grants: Grants = client.data(change).await?;
    let names = Names::of(client, &grants).await?;
    output.show(&grants, |grants| names.text(grants))
}

/// The names of guests.
pub(super) struct Names(BTreeMap<Uuid, String>);

impl Names {
    /// Of those that these roles are for.
    pub(super) async fn of(client: &Client, grants: &Grants) -> anyhow::Result<Self> {
        if grants.guests.is_empty() {
            return Ok(Self(BTreeMap::new()));
        }
        let guests: Vec<GuestView> = client.list("/guests").await?;
        let names = guests.into_iter();
        Ok(Self(
            names
                .map(|guest| (guest.uuid, guest.name.to_string()))
                .collect(),
        ))
    }

    /// `viewer; operator of web`.
    pub(super) fn text(&self, grants: &Grants) -> String {
        let role = grants.role.map(|role| role.to_string());
        let guests = grants.guests.iter().map(|(guest, role)| {
            let name = self.0.get(guest).cloned();
            let name = name.unwrap_or_else(|| format!("{guest}, which is deleted"));
            format!("{role} of {name}")
        });
        let all: Vec<String> = role.into_iter().chain(guests).collect();
        if all.is_empty() {
            return "no role".to_owned();
        }
        all.join("; ")
    }
}

/// The roles in a table: how many guests, not which.
pub(super) fn short(grants: &Grants) -> [String; 2] {
    let role = grants.role.map_or("-".to_owned(), |role| role.to_string());
    [role, grants.guests.len().to_string()]
}
