//! The file by which root on this node need not log in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::state::file_error;
use super::{RETRY, StartError};
use crate::causes::chain;
use crate::client::Context;
use crate::files;
use crate::security::{AccountError, Accounts, NewToken, Role};
use crate::store::StoreError;

/// So that root on this node need not log in. A token that is good stays.
pub(super) struct AdminContext {
    pub(super) path: PathBuf,
    pub(super) accounts: Accounts,
    pub(super) authority: String,
    pub(super) address: SocketAddr,
}

impl AdminContext {
    /// At once; in a cluster that has no majority, when it has one.
    pub(super) async fn write_soon(self, in_cluster: bool) -> Result<(), StartError> {
        match self.write().await {
            Err(StartError::Account(AccountError::Store(StoreError::NoMajority))) if in_cluster => {
                tokio::spawn(async move {
                    while let Err(error) = self.write().await {
                        tracing::debug!("{}", chain(&error));
                        tokio::time::sleep(RETRY).await;
                    }
                });
                Ok(())
            }
            written => written,
        }
    }

    async fn write(&self) -> Result<(), StartError> {
        let before = Context::load(&self.path).ok();
        let mut token = before.map(|context| context.token);
        if let Some(text) = &token
            && self.accounts.authenticate(text).await.is_err()
        {
            token = None;
        }
        let token = if let Some(token) = token {
            token
        } else {
            let new = NewToken {
                name: "root".to_owned(),
                role: Some(Role::Admin),
                guests: BTreeMap::new(),
            };
            self.accounts.create_token(&new).await?.1
        };
        let ip = if self.address.ip().is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.address.ip()
        };
        let context = Context {
            server: format!("https://{}", SocketAddr::new(ip, self.address.port())),
            authority: self.authority.clone(),
            token,
        };
        files::replace_by_json(&self.path, &context).map_err(file_error("write", &self.path))
    }
}
