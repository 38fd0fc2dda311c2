//! One-time tokens, by which a fresh node enters. The node that uses one may do so again until it is
//! in: what breaks on its way is done again by the same command.
//!
//! Its text tells the new node where the cluster is and by what authority it proves itself, and
//! proves the node to the cluster: `pindah-join.ID.SECRET.FINGERPRINT.ADDRESS`.

use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::ClusterError;
use crate::security::hex;
use crate::store::{
    Collection, LeaseId, Outcome, Record, Store, StoreError, Stored, Transaction, encode,
};

const BEGIN: &str = "pindah-join";
const NOT_ONE: ClusterError = ClusterError::Token(
    "this is no join token; `pindah cluster token` on a node of the cluster prints one",
);
const UNKNOWN: ClusterError = ClusterError::Token(
    "the join token was used, has expired, or is another cluster's; make a new one with `pindah \
     cluster token`",
);

#[derive(Serialize, Deserialize)]
struct JoinTokenRecord {
    sha256: String,
    /// The lease with which it goes.
    lease: i64,
    /// The node that uses it: nobody else may from then on, and that one until it is in.
    bearer: Option<String>,
}

impl Record for JoinTokenRecord {
    const KIND: &'static str = "join-tokens";
    const SCHEMA: u32 = 1;
}

/// A join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Its id.
    pub id: String,
    /// What proves it.
    pub secret: String,
    /// SHA-256 of the cluster's authority, in hexadecimal digits.
    pub fingerprint: String,
    /// A node of the cluster: `HOST:PORT`.
    pub address: String,
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            id,
            secret,
            fingerprint,
            address,
        } = self;
        write!(formatter, "{BEGIN}.{id}.{secret}.{fingerprint}.{address}")
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.chars().all(|c| c.is_ascii_hexdigit())
}

impl JoinToken {
    /// Reads a token's text.
    ///
    /// # Errors
    /// [`ClusterError::Token`].
    pub fn parse(text: &str) -> Result<Self, ClusterError> {
        let parts: Vec<&str> = text.trim().splitn(5, '.').collect();
        let &[BEGIN, id, secret, fingerprint, address] = parts.as_slice() else {
            return Err(NOT_ONE);
        };
        if !(is_hex(id, 16) && is_hex(secret, 64) && is_hex(fingerprint, 64)) {
            return Err(NOT_ONE);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            fingerprint: fingerprint.to_owned(),
            address: address.to_owned(),
        })
    }

    /// Makes one that is good once, for `lifetime`.
    ///
    /// # Errors
    /// [`ClusterError::Store`].
    pub async fn create(
        store: &Arc<dyn Store>,
        lifetime: Duration,
        fingerprint: String,
        address: String,
    ) -> Result<Self, ClusterError> {
        let token = Self {
            id: random::<8>()?,
            secret: random::<32>()?,
            fingerprint,
            address,
        };
        let key = Collection::<JoinTokenRecord>::key(&token.id);
        let sha256 = hash(&token.secret);
        let lease = store.grant_lease(lifetime).await?;
        let record = JoinTokenRecord {
            sha256,
            lease: lease.0,
            bearer: None,
        };
        let value = encode(&key, &record)?;
        let put = Transaction::new().put_leased(&key, value, lease);
        store.commit(put).await?;
        Ok(token)
    }

    /// Lets `bearer`, and nobody else from now on, use the token.
    ///
    /// # Errors
    /// [`ClusterError::Token`], [`ClusterError::Store`].
    pub async fn redeem(
        store: &Arc<dyn Store>,
        id: &str,
        secret: &str,
        bearer: &str,
    ) -> Result<(), ClusterError> {
        if !is_hex(id, 16) {
            return Err(UNKNOWN);
        }
        let records = Collection::<JoinTokenRecord>::new(Arc::clone(store));
        let Stored {
            value: mut record,
            revision,
        } = records.get(id).await?.ok_or(UNKNOWN)?;
        let known = record.sha256.as_bytes();
        if !bool::from(known.ct_eq(hash(secret).as_bytes())) {
            return Err(UNKNOWN);
        }
        match record.bearer.replace(bearer.to_owned()) {
            Some(before) if before == bearer => return Ok(()),
            Some(_) => return Err(UNKNOWN),
            None => {}
        }
        let key = Collection::<JoinTokenRecord>::key(id);
        let lease = LeaseId(record.lease);
        let used = Transaction::new().if_unchanged(&key, revision).put_leased(
            &key,
            encode(&key, &record)?,
            lease,
        );
        match store.commit(used).await {
            Ok(Outcome::Committed(_)) => Ok(()),
            Ok(Outcome::Conflict) | Err(StoreError::LeaseGone(_)) => Err(UNKNOWN),
            Err(error) => Err(error.into()),
        }
    }

    /// The node that used it is in: nobody needs it any more.
    ///
    /// # Errors
    /// [`ClusterError::Store`].
    pub async fn forget(store: &Arc<dyn Store>, id: &str) -> Result<(), ClusterError> {
        let records = Collection::<JoinTokenRecord>::new(Arc::clone(store));
        Ok(records.delete(id).await?)
    }
}

fn hash(secret: &str) -> String {
    hex(digest(&SHA256, secret.as_bytes()).as_ref())
}

fn random<const N: usize>() -> Result<String, ClusterError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| ClusterError::Busy("the host has no random numbers yet; try again"))?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    #[tokio::test]
    async fn token_is_good_for_one_node_and_for_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let make = |lifetime| {
            JoinToken::create(
                &store,
                lifetime,
                "f".repeat(64),
                "[fd00::1]:7480".to_owned(),
            )
        };
        let token = make(Duration::from_secs(60)).await.unwrap();
        assert_eq!(JoinToken::parse(&token.to_string()).unwrap(), token);
        let wrong = "0".repeat(64);
        let redeem = async |secret: &str, bearer: &str| {
            JoinToken::redeem(&store, &token.id, secret, bearer).await
        };
        redeem(&wrong, "node2").await.unwrap_err();
        redeem(&token.secret, "node2").await.unwrap();
        redeem(&token.secret, "node3").await.unwrap_err();
        redeem(&token.secret, "node2").await.unwrap();
        JoinToken::forget(&store, &token.id).await.unwrap();
        redeem(&token.secret, "node2").await.unwrap_err();
        let short = make(Duration::from_millis(700)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let late = JoinToken::redeem(&store, &short.id, &short.secret, "node2");
        late.await.unwrap_err();
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "pindah-join",
            "pindah-join.a.b.c.d",
            "pindah_1_2",
            "x.y.z.a.b",
        ] {
            assert!(JoinToken::parse(text).is_err(), "{text}");
        }
    }
}
