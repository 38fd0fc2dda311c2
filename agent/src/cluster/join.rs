//! A node enters: what it asks, what a node of the cluster does for it, and how it begins anew.
//!
//! ```text
//!  fresh node                              a node of the cluster
//!     │ token, name, address ────────────────► binds the token to the node
//!     │                                        adds a record, and an etcd member without vote
//!     │ ◄──────────── authority, its key, members
//!     │ writes down that it enters
//!     │ starts its etcd, which learns all
//!     │                                        lets it vote, if it is there
//!     │ begins anew, in the cluster
//! ```
//!
//! Whoever dies on the way: the fresh node is alone again if its etcd had not begun, and is in, as
//! soon as it may vote, if it had. What the cluster has of one that did not come counts for nothing;
//! the same command, said again, takes its place, and a caretaker removes it otherwise.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::init::wait_until_it_answers;
use super::introduction::introduce;
use super::member::{connect, etcd_config, ports};
use super::{
    Beginning, ClusterError, EtcdConfig, EtcdProcess, JoinToken, Membership, Site, address,
};
use crate::config::Config;
use crate::security::Authority;
use crate::store::Store;

/// What a person asks a fresh node for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// A node of the cluster: its address, with a port if that is not 7480; absent: the one that
    /// made the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The join token.
    pub token: String,
    /// Where other nodes find this one; absent: its first address that is not its guests' network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "192.168.1.12")]
    pub address: Option<IpAddr>,
    /// It is to vote and run no guests.
    #[serde(default)]
    pub witness: bool,
}

/// What a fresh node asks the cluster for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The join token's id.
    pub token_id: String,
    /// Its secret.
    pub token_secret: String,
    /// The node's name.
    pub node: String,
    /// Where it is.
    #[schema(value_type = String, example = "192.168.1.12")]
    pub address: IpAddr,
    /// The port of its API.
    pub port: u16,
    /// It votes and runs no guests.
    pub witness: bool,
    /// It was in this cluster before, which has lost its majority since and was recovered.
    #[serde(default)]
    pub again: bool,
}

/// What a node needs to be one of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinAnswer {
    /// The cluster.
    pub cluster: Uuid,
    /// Its authority, as PEM.
    pub authority: String,
    /// The authority's key, as PEM.
    pub authority_key: String,
    /// etcd's members, the new one included: `name=url,…`.
    pub members: String,
    /// The node that let it in.
    pub node: String,
}

impl Site {
    /// Takes this node into the cluster that the token is from. The node begins anew.
    ///
    /// # Errors
    /// [`ClusterError`]; the node is then what it was.
    pub async fn join(&self, order: &Admission) -> Result<(), ClusterError> {
        let _change = self.begin_change()?;
        let token = JoinToken::parse(&order.token)?;
        let before = Authority::open(&self.private())?;
        let again = self.member.is_some();
        self.require_joinable(&token, &before).await?;
        let address = address::choose(&self.config, order.address).await?;
        let witness = order.witness || !std::path::Path::new("/dev/kvm").exists();
        let request = JoinRequest {
            token_id: token.id.clone(),
            token_secret: token.secret.clone(),
            node: self.config.node.clone(),
            address,
            port: ports(&self.config)?.api,
            witness,
            again,
        };
        EtcdConfig::require_program().await?;
        let server = order.server.as_deref().unwrap_or(&token.address);
        let answer = introduce(server, &token, &request).await?;
        let membership = Membership {
            cluster: answer.cluster,
            node: request.node,
            address,
            witness,
        };
        if let Some(member) = &self.member {
            member.wipe_etcd().await?;
        }
        let entered = self.enter(&membership, &answer).await;
        let is_in = again || settle_entry(&self.config).await?.is_some();
        if is_in {
            self.restart();
        }
        let node = membership.node;
        entered.map_err(|source| {
            let source = Box::new(source);
            if is_in {
                ClusterError::Late { node, source }
            } else {
                ClusterError::NotEntered { node, source }
            }
        })
    }

    /// A node that is alone and has no guests; or one of this very cluster that lost its majority.
    async fn require_joinable(
        &self,
        token: &JoinToken,
        authority: &Authority,
    ) -> Result<(), ClusterError> {
        self.require_idle()?;
        if let Some(member) = &self.member {
            let same = authority.fingerprint()? == token.fingerprint;
            let lost = !member.store.settled(Duration::ZERO).await;
            return if same && lost {
                Ok(())
            } else {
                Err(ClusterError::AlreadyIn)
            };
        }
        let (guests, _) = self.guests.list(None, usize::MAX).await.unwrap_or_default();
        if guests.is_empty() {
            return Ok(());
        }
        let hint = "delete them, or make this node the first of the cluster (`pindah cluster \
                    init`) and let the others join it";
        Err(ClusterError::HasGuests(guests.len(), hint))
    }

    async fn enter(
        &self,
        membership: &Membership,
        answer: &JoinAnswer,
    ) -> Result<(), ClusterError> {
        let authority =
            Authority::from_pem(answer.authority.clone(), answer.authority_key.clone())?;
        let names = address::own_names(&self.config, Some(membership.address)).await;
        let certificate = authority.issue(&names)?;
        let etcd = etcd_config(&self.config, membership)?;
        etcd.wipe().await?;
        etcd.write_certificate(&certificate)?;
        if self.member.is_none() {
            authority.stage(&self.private())?;
        }
        // Before our etcd begins: once it has, it may be given a vote.
        membership
            .save(&self.config.state_dir)
            .map_err(|source| self.io(source))?;
        let beginning = Beginning::Among(answer.members.clone());
        let process = EtcdProcess::start(etcd.clone(), beginning).await?;
        let store = connect(&etcd, &certificate).await?;
        wait_until_it_answers(&store).await?;
        // It runs by itself, until we begin anew and adopt it.
        drop(process);
        Ok(())
    }
}

/// The node's place in its cluster, if it is in one. One whose way in was cut short is in if its
/// etcd had begun, for the cluster may count on that; else it is alone as before.
///
/// # Errors
/// The files'.
pub async fn settle_entry(config: &Config) -> Result<Option<Membership>, ClusterError> {
    let state_dir = &config.state_dir;
    let io = |source| ClusterError::Io {
        path: state_dir.clone(),
        source,
    };
    let private = state_dir.join("private");
    let membership = Membership::load(state_dir).map_err(io)?;
    let Some(membership) = membership else {
        Authority::unstage(&private)?;
        wipe_stray_etcd(config).await?;
        return Ok(None);
    };
    if !Authority::is_staged(&private) {
        return Ok(Some(membership));
    }
    let etcd = etcd_config(config, &membership)?;
    if !etcd.has_data() {
        etcd.stop().await;
    }
    if etcd.has_data() {
        Authority::adopt_staged(&private)?;
        return Ok(Some(membership));
    }
    tracing::warn!("this node did not get into the cluster; `pindah cluster join` tries it again");
    Membership::remove(state_dir).map_err(io)?;
    Authority::unstage(&private)?;
    wipe_stray_etcd(config).await?;
    Ok(None)
}

async fn wipe_stray_etcd(config: &Config) -> Result<(), ClusterError> {
    let nowhere = Membership {
        cluster: Uuid::nil(),
        node: config.node.clone(),
        address: config.listen.ip(),
        witness: false,
    };
    if config.state_dir.join("etcd").exists() {
        etcd_config(config, &nowhere)?.wipe().await?;
    }
    Ok(())
}
