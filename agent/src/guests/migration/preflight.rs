//! Whether a guest can move, and where to: known before anything is changed.

use std::net::IpAddr;

use pindah_vmm_api::Baseline;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MoveRequest;
use crate::causes::chain;
use crate::cluster::features_of_node;
use crate::domain::{Forecast, Guest, Invalid, within};
use crate::guests::{GuestError, GuestState, Guests, HostMemory};
use crate::names::some_of;
use crate::network::NetworkState;

/// What a node says of a guest that it could take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    /// The node.
    pub node: String,
    /// Memory that it would have left for guests, in MiB.
    pub memory_left_mib: u64,
    /// Where guests arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// What a move would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The node that it would move to.
    pub to: String,
    /// Whether it would run on the way.
    pub live: bool,
    /// Memory that the node would have left for guests, in MiB.
    pub memory_left_mib: u64,
    /// The most that there is to send, in MiB; more if the guest writes a lot on the way.
    pub memory_mib: u64,
    /// What that would take, if it would run on the way.
    #[serde(default)]
    pub forecast: Option<Forecast>,
}

impl Guests {
    /// What a move of the guest would be. Changes nothing.
    ///
    /// # Errors
    /// [`GuestError::Alone`], [`GuestError::Immovable`], [`GuestError::State`],
    /// [`GuestError::Invalid`], [`GuestError::NoDestination`], [`GuestError::Peer`],
    /// [`GuestError::Store`].
    pub async fn plan_move(
        &self,
        guest: &Guest,
        request: &MoveRequest,
    ) -> Result<Plan, GuestError> {
        check(request)?;
        self.require_movable(guest).await?;
        let offer = self
            .choose(guest, request.to.as_deref(), request.force)
            .await?;
        let live = self.status(guest.uuid).state.has_process();
        let forecast = if live {
            Some(self.foretell(guest, &offer, request).await?)
        } else {
            None
        };
        Ok(Plan {
            to: offer.node,
            live,
            memory_left_mib: offer.memory_left_mib,
            memory_mib: if live { self.resident_mib(guest) } else { 0 },
            forecast,
        })
    }

    /// Refuses a guest that has something only this node has.
    async fn require_movable(&self, guest: &Guest) -> Result<(), GuestError> {
        guest.may_start_on(&self.resources().node)?;
        let can_move = [GuestState::Running, GuestState::Paused, GuestState::Stopped];
        self.require(
            guest,
            &can_move,
            "it can be moved when it runs, stands paused or is off",
        )?;
        self.require_portable(guest).await
    }

    /// Refuses a guest that could not go on without what only its node has, whichever that is.
    ///
    /// # Errors
    /// [`GuestError::Incomplete`], [`GuestError::Spare`], [`GuestError::Immovable`],
    /// [`GuestError::Store`].
    pub async fn require_portable(&self, guest: &Guest) -> Result<(), GuestError> {
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        for disk in &guest.disks {
            if let Some(pool) = &disk.spare {
                // Nobody would remove it from a pool that this node alone has.
                return Err(GuestError::Spare {
                    guest: guest.name.to_string(),
                    disk: disk.id.clone(),
                    pool: pool.clone(),
                });
            }
        }
        self.require_shared_disks(guest).await
    }

    /// Refuses a guest whose disks another node could not reach.
    pub(in crate::guests) async fn require_shared_disks(
        &self,
        guest: &Guest,
    ) -> Result<(), GuestError> {
        let pools = &self.resources().pools;
        for disk in &guest.disks {
            let pool = &disk.volume.pool;
            if pool.is_local() || !pools.record(pool).await?.value.source.is_shared() {
                return Err(GuestError::Immovable {
                    name: guest.name.to_string(),
                    what: format!(
                        "its disk {} is in pool {pool}, which no other node has",
                        disk.id
                    ),
                    hint: "it can when all its disks are in shared pools",
                });
            }
        }
        Ok(())
    }

    /// Refuses a guest whose addresses would stay behind.
    async fn require_networks(&self, guest: &Guest, to: &str) -> Result<(), GuestError> {
        for interface in &guest.interfaces {
            let network = &interface.network;
            let follows = !network.is_of_node() && {
                let network = self.networks().find(network.as_str()).await?;
                network
                    .value
                    .follows_a_move([self.resources().node.as_str(), to])
            };
            if !follows {
                return Err(GuestError::Immovable {
                    name: guest.name.to_string(),
                    what: format!("its interface {} is on network {network}", interface.id),
                    hint: "its address would stay behind; say --force if it may",
                });
            }
        }
        Ok(())
    }

    /// What the node says of the guest.
    pub(in crate::guests) async fn ask_for_offer(
        &self,
        guest: &Guest,
        to: &str,
        force: bool,
    ) -> Result<Offer, GuestError> {
        if !force {
            self.require_networks(guest, to).await?;
        }
        let path = format!("/arrivals/{}/offer", guest.uuid);
        let peers = &self.links()?.peers;
        Ok(peers.ask(to, Method::GET, &path, None::<&()>).await?)
    }

    /// The node that is asked for, or the best; and what it says.
    async fn choose(
        &self,
        guest: &Guest,
        to: Option<&str>,
        force: bool,
    ) -> Result<Offer, GuestError> {
        let peers = &self.links()?.peers;
        if let Some(to) = to {
            if to == self.resources().node {
                let must = "must be another node: the guest is there";
                return Err(Invalid::text("to", to, must).into());
            }
            return self.ask_for_offer(guest, to, force).await;
        }
        let mut best: Option<Offer> = None;
        let mut refusals = Vec::new();
        for node in peers.all().await? {
            if node.name == self.resources().node || node.witness {
                continue;
            }
            match self.ask_for_offer(guest, &node.name, force).await {
                Ok(offer) => {
                    let more = |best: &Offer| best.memory_left_mib < offer.memory_left_mib;
                    if best.as_ref().is_none_or(more) {
                        best = Some(offer);
                    }
                }
                Err(error) => refusals.push(format!("{}: {}", node.name, chain(&error))),
            }
        }
        best.ok_or_else(|| GuestError::NoDestination {
            name: guest.name.to_string(),
            refusals: if refusals.is_empty() {
                "there is no other node that runs guests".to_owned()
            } else {
                refusals.join("; ")
            },
        })
    }

    /// Whether this node can take the guest, which is elsewhere. Changes nothing.
    ///
    /// # Errors
    /// [`GuestError::Witness`], [`GuestError::Drained`], [`GuestError::NoMemory`],
    /// [`GuestError::NoNetwork`], [`GuestError::Store`].
    pub async fn offer(&self, guest: &Guest) -> Result<Offer, GuestError> {
        let resources = self.resources();
        if resources.witness {
            return Err(GuestError::Witness(resources.node.clone()));
        }
        self.require_undrained().await?;
        self.require_cpu_here(guest).await?;
        self.require_networks_here(guest).await?;
        resources.pools.of(guest).await?.require(guest).await?;
        self.require_memory(guest).await?;
        let taken = self.used_memory_mib().await? + resources.reserved_memory_mib;
        let left = HostMemory::read().total_mib.saturating_sub(taken);
        Ok(Offer {
            node: resources.node.clone(),
            memory_left_mib: left.saturating_sub(guest.memory_mib),
            address: resources.migration.as_ref().map(|links| links.address),
        })
    }

    /// Refuses a guest that may see more than the processor here has. With a named baseline its
    /// VMM does, which knows what that is.
    async fn require_cpu_here(&self, guest: &Guest) -> Result<(), GuestError> {
        let store = &self.resources().store;
        let seen = match &guest.cpu_features {
            Some(features) => Some(features.clone()),
            None if guest.baseline == Baseline::Host => {
                features_of_node(store, &guest.node).await?
            }
            None => None,
        };
        let ours = features_of_node(store, &self.resources().node).await?;
        let (Some(seen), Some(ours)) = (seen, ours) else {
            return Ok(());
        };
        let lacks = seen.lacking_in(&ours);
        if lacks.is_empty() {
            return Ok(());
        }
        Err(GuestError::Cpu {
            name: guest.name.to_string(),
            node: self.resources().node.clone(),
            lacks: some_of(&lacks),
        })
    }

    async fn require_networks_here(&self, guest: &Guest) -> Result<(), GuestError> {
        if guest.interfaces.is_empty() {
            return Ok(());
        }
        let statuses = self.networks().statuses().await;
        for interface in &guest.interfaces {
            let mut found = statuses.iter();
            let status = found.find(|status| status.network == interface.network);
            let works = status.is_some_and(|status| status.state != NetworkState::Failed);
            if !works {
                let problem = status.and_then(|status| status.problem.clone());
                return Err(GuestError::NoNetwork {
                    name: guest.name.to_string(),
                    network: interface.network.to_string(),
                    node: self.resources().node.clone(),
                    problem: problem.unwrap_or_else(|| "it is switched off".to_owned()),
                });
            }
        }
        Ok(())
    }

    /// RAM of the guest that its process has touched, in MiB.
    pub(super) fn resident_mib(&self, guest: &Guest) -> u64 {
        let resident = self.usage(guest.uuid).memory_resident_mib;
        resident.map_or(guest.memory_mib, |resident| resident.min(guest.memory_mib))
    }
}

/// Refuses values that cannot be.
fn check(request: &MoveRequest) -> Result<(), Invalid> {
    for (field, value, range, unit) in [
        (
            "downtime_target_ms",
            request.downtime_target_ms,
            1..=60_000,
            " ms",
        ),
        ("timeout_s", request.timeout_s, 1..=86_400, " s"),
        (
            "bandwidth_bytes_per_s",
            request.bandwidth_bytes_per_s,
            1 << 16..=1 << 40,
            " bytes a second",
        ),
    ] {
        value.map_or(Ok(()), |value| within(field, value, range, unit))?;
    }
    Ok(())
}
