//! Answers that last, event streams and consoles, end when who asked may no longer have them.

use std::time::Duration;

use super::Api;
use crate::causes::chain;
use crate::peer::{AS_NODE, PeerError};
use crate::security::{AccountError, Grants, Principal};

/// How often somebody who has such an answer is looked up again.
const PERIOD: Duration = Duration::from_secs(2);

impl Api {
    /// Ends when the token by which somebody is known is revoked, its user deleted, or what it may
    /// do no longer `suffices`. A store that does not answer ends nothing.
    pub(super) async fn until_denied(
        &self,
        principal: &Principal,
        suffices: impl Fn(&Grants) -> bool,
    ) {
        let denied = || async {
            match self.current_grants(principal).await {
                Ok(grants) => !grants.is_some_and(|grants| suffices(&grants)),
                Err(error) => {
                    tracing::debug!("{} cannot be looked up: {}", principal.user, chain(&error));
                    false
                }
            }
        };
        while !denied().await {
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// A node is known by its name, everybody else by a token.
    async fn current_grants(&self, principal: &Principal) -> Result<Option<Grants>, AccountError> {
        let Some(node) = principal.user.strip_prefix(AS_NODE) else {
            return self.accounts.current_grants(&principal.token).await;
        };
        let Some(peers) = self.peers() else {
            return Ok(None);
        };
        match peers.find(node).await {
            Ok(_) => Ok(Some(principal.grants.clone())),
            Err(PeerError::Store(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }
}
