//! A node enters: what it asks, what a node of the cluster does for it, and how it begins anew.
//!
//! ```text
//!  fresh node                              a node of the cluster
//!     │ token, name, address ────────────────► uses the token up
//!     │                                        adds an etcd member without vote, and a record
//!     │ ◄──────────── authority, its key, members
//!     │ starts its etcd, which learns all
//!     │                                        lets it vote
//!     │ begins anew, in the cluster
//! ```

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::init::wait_until_it_answers;
use super::introduction::introduce;
use super::member::{connect, etcd_config, ports};
use super::{
    Beginning, ClusterError, EtcdProcess, JoinToken, Member, Membership, NodeRecord, Ports, Site,
    address,
};
use crate::clock::now_unix_ms;
use crate::domain::is_label;
use crate::security::Authority;
use crate::store::{Collection, Outcome, Store, Transaction, encode};

/// How long a new member is looked after by the node that let it in.
const CARE: Duration = Duration::from_secs(120);
/// How often.
const CARE_PERIOD: Duration = Duration::from_millis(300);

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
    /// Lets a node in.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn admit(&self, request: &JoinRequest) -> Result<JoinAnswer, ClusterError> {
        let member = self.require_member()?;
        let _change = self.begin_change()?;
        JoinToken::redeem(&self.store, &request.token_id, &request.token_secret).await?;
        let record = check(request)?;
        let url = Ports::from_api(record.port)
            .map(|ports| ports.etcd_peer_url(record.address))
            .unwrap_or_default();
        self.insert(member, &record, request.again, &url).await?;
        let members = member.members();
        if request.again {
            members.remove(&record.name, &url).await?;
        }
        let added = async {
            members.add_learner(&url).await?;
            let list = members.list().await?;
            let known = list.iter().map(|one| {
                let name = if one.node.is_empty() {
                    &record.name
                } else {
                    &one.node
                };
                format!("{name}={}", one.url)
            });
            Ok::<_, ClusterError>(known.collect::<Vec<_>>().join(","))
        };
        let added = match added.await {
            Ok(added) => added,
            Err(error) => {
                self.nodes().delete(&record.name).await?;
                return Err(error);
            }
        };
        tokio::spawn(async move {
            let care = async {
                while !members.promote_learners().await.unwrap_or(false) {
                    tokio::time::sleep(CARE_PERIOD).await;
                }
            };
            // What is not done by then, every node's caretaker does.
            let _ = tokio::time::timeout(CARE, care).await;
        });
        tracing::info!("node {} joins from {}", record.name, record.address);
        let authority = Authority::open(&self.private())?;
        Ok(JoinAnswer {
            cluster: member.membership.cluster,
            authority: authority.pem().to_owned(),
            authority_key: authority.key_pem().to_owned(),
            members: added,
            node: member.membership.node.clone(),
        })
    }

    /// The node's record, if nobody has its name or place.
    async fn insert(
        &self,
        member: &Member,
        record: &NodeRecord,
        again: bool,
        url: &str,
    ) -> Result<(), ClusterError> {
        let key = Collection::<NodeRecord>::key(&record.name);
        let value = encode(&key, record)?;
        if again && !member.peers.is_alive(&record.name).await? {
            self.store
                .commit(Transaction::new().put(&key, value))
                .await?;
            return Ok(());
        }
        for other in self.nodes().all().await? {
            let other = other.value;
            let there = other
                .ports()
                .map(|ports| ports.etcd_peer_url(other.address));
            if there.as_deref() == Some(url) && other.name != record.name {
                let text = format!("node {} is at {} already", other.name, other.api());
                return Err(ClusterError::NodeState(text));
            }
        }
        let create = Transaction::new().if_absent(&key).put(&key, value);
        match self.store.commit(create).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(ClusterError::NameTaken(record.name.clone())),
        }
    }

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
        if let Err(error) = entered {
            if !again {
                self.stay_out(&membership, &before).await?;
            }
            return Err(ClusterError::NotEntered {
                node: membership.node,
                source: Box::new(error),
            });
        }
        self.restart();
        Ok(())
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
        authority.install(&self.private())?;
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

    /// As if nothing had been asked, but for the cluster's record of us.
    async fn stay_out(
        &self,
        membership: &Membership,
        before: &Authority,
    ) -> Result<(), ClusterError> {
        let state_dir = &self.config.state_dir;
        Membership::remove(state_dir).map_err(|source| self.io(source))?;
        etcd_config(&self.config, membership)?.wipe().await?;
        Ok(before.install(&self.private())?)
    }
}

fn check(request: &JoinRequest) -> Result<NodeRecord, ClusterError> {
    let value = |field, value: String, must| Err(ClusterError::Value { field, value, must });
    if !is_label(&request.node) {
        let must = "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on";
        return value("node", request.node.chars().take(64).collect(), must);
    }
    if Ports::from_api(request.port).is_none() {
        return value("port", request.port.to_string(), "must be 1 to 65532");
    }
    if request.address.is_unspecified() || request.address.is_multicast() {
        let must = "must be one by which nodes reach it";
        return value("address", request.address.to_string(), must);
    }
    Ok(NodeRecord {
        name: request.node.clone(),
        address: request.address,
        port: request.port,
        witness: request.witness,
        joined_unix_ms: now_unix_ms(),
    })
}
