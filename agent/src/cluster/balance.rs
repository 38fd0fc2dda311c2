//! Moves that would even out the nodes' load: proposed from what all nodes have said last, and each
//! of them asked for at the guest's node as if it was to begin. Changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{ClusterError, GuestStatus, Member, NodeStatus, Site};
use crate::causes::chain;
use crate::domain::{Forecast, Guest, GuestLoad, NodeBalance, NodeLoad, Suggestion, balance};
use crate::guests::{GuestState, MoveRequest, Plan, promised_mib};
use crate::metrics::GuestUsage;
use crate::store::{Collection, StoreError};

/// Most moves that are asked for: beyond, those that are sure are all.
const MOST_ASKED: usize = 40;

/// How even the nodes' load is, and what would make it so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Balance {
    /// The nodes that take guests, with what guests take of them: now, and after the moves.
    pub nodes: Vec<NodeBalance>,
    /// What to do, in this order; empty: it is not worth any move.
    pub moves: Vec<SuggestedMove>,
    /// Moves that would have been better and cannot be, and why.
    pub refused: Vec<String>,
}

/// A move that can be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SuggestedMove {
    /// What, and why.
    #[serde(flatten)]
    pub suggestion: Suggestion,
    /// What it would take.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// The command that does it.
    pub command: String,
}

/// What the nodes have said, and which moves are known to be possible or not.
struct Survey {
    nodes: Vec<NodeLoad>,
    guests: Vec<GuestLoad>,
    records: BTreeMap<Uuid, Guest>,
    possible: BTreeMap<(Uuid, String), Plan>,
    impossible: HashSet<(Uuid, String)>,
}

impl Site {
    /// How even the load is, and what would make it so.
    ///
    /// # Errors
    /// [`ClusterError::NotIn`], [`ClusterError::Store`]: nobody can tell without a majority.
    pub async fn balance(&self) -> Result<Balance, ClusterError> {
        let member = self.require_member()?;
        if !self.store.settled(Duration::ZERO).await {
            return Err(StoreError::NoMajority.into());
        }
        let mut survey = self.survey(member).await?;
        let mut refused = Vec::new();
        let mut asked = 0;
        loop {
            let impossible = &survey.impossible;
            let (mut moves, nodes) = balance(&survey.nodes, &survey.guests, |guest, node| {
                !impossible.contains(&(guest, node.to_owned()))
            });
            let key = |one: &Suggestion| (one.uuid, one.to.clone());
            let mut unsure = moves.iter();
            let unsure = unsure.position(|one| !survey.possible.contains_key(&key(one)));
            let Some(unsure) = unsure else {
                return Ok(survey.answer(moves, nodes, refused));
            };
            if asked == MOST_ASKED {
                moves.truncate(unsure);
                let kept: HashSet<_> = moves.iter().map(key).collect();
                let (moves, nodes) = balance(&survey.nodes, &survey.guests, |guest, node| {
                    kept.contains(&(guest, node.to_owned()))
                });
                return Ok(survey.answer(moves, nodes, refused));
            }
            asked += 1;
            let one = &moves[unsure];
            match self
                .ask_for_plan(member, &survey.records[&one.uuid], &one.to)
                .await
            {
                Ok(plan) => {
                    survey.possible.insert(key(one), plan);
                }
                Err(reason) => {
                    refused.push(format!("{} to {}: {reason}", one.guest, one.to));
                    survey.impossible.insert(key(one));
                }
            }
        }
    }

    /// The preflight of the guest's own node.
    async fn ask_for_plan(&self, member: &Member, guest: &Guest, to: &str) -> Result<Plan, String> {
        if guest.node == member.membership.node {
            let request = MoveRequest {
                to: Some(to.to_owned()),
                ..MoveRequest::default()
            };
            let plan = self.guests.plan_move(guest, &request).await;
            return plan.map_err(|error| chain(&error));
        }
        let path = format!("/guests/{}/migrate?to={to}", guest.uuid);
        let asked = member
            .peers
            .ask(&guest.node, Method::GET, &path, None::<&()>);
        asked.await.map_err(|error| chain(&error))
    }

    async fn survey(&self, member: &Member) -> Result<Survey, ClusterError> {
        let mut said = BTreeMap::new();
        let mut nodes = Vec::new();
        let drained = self.guests.drained_nodes().await?;
        let statuses = Collection::<NodeStatus>::new(self.store.clone());
        for record in member.peers.all().await? {
            // One that has not said how it does has no load, and takes none.
            let Some(status) = statuses.get(&record.name).await? else {
                continue;
            };
            let status = status.value;
            if status.kvm && !record.witness && !drained.contains(&record.name) {
                nodes.push(NodeLoad {
                    name: record.name.clone(),
                    memory_mib: status.memory_for_guests_mib(),
                    cpus: status.cpus,
                });
            }
            said.insert(record.name, status.guests_usage);
        }
        let (mut guests, mut records) = (Vec::new(), BTreeMap::new());
        for (guest, state) in self.guests_with_process().await? {
            let usage = said.get(&guest.node).and_then(|of| of.get(&guest.uuid));
            guests.push(self.load(&guest, state, usage).await);
            records.insert(guest.uuid, guest);
        }
        Ok(Survey {
            nodes,
            guests,
            records,
            possible: BTreeMap::new(),
            impossible: HashSet::new(),
        })
    }

    async fn guests_with_process(&self) -> Result<Vec<(Guest, GuestState)>, StoreError> {
        let statuses = Collection::<GuestStatus>::new(self.store.clone());
        let statuses = statuses.all().await?.into_iter();
        let statuses: BTreeMap<Uuid, GuestStatus> = statuses
            .map(|stored| (stored.value.uuid, stored.value))
            .collect();
        let guests = Collection::<Guest>::new(self.store.clone());
        let guests = guests.all().await?.into_iter().map(|stored| stored.value);
        let with_process = guests.filter_map(|guest| {
            let status = statuses.get(&guest.uuid)?;
            let state = status.status.state;
            let runs = status.node == guest.node && state.has_process();
            runs.then_some((guest, state))
        });
        Ok(with_process.collect())
    }

    async fn load(
        &self,
        guest: &Guest,
        state: GuestState,
        usage: Option<&GuestUsage>,
    ) -> GuestLoad {
        // One that has just started, or come, is not measured yet.
        let measured = usage.and_then(|usage| {
            let resident_mib = usage.memory_resident_mib?;
            Some((resident_mib, usage.cpu_percent?))
        });
        let (resident_mib, cpu_percent) = measured.unwrap_or((guest.memory_mib, 0.0));
        let may_move = measured.is_some()
            && [GuestState::Running, GuestState::Paused].contains(&state)
            && guest.moving_to.is_none()
            && guest.interfaces.iter().all(|one| !one.network.is_of_node());
        GuestLoad {
            uuid: guest.uuid,
            name: guest.name.to_string(),
            node: guest.node.clone(),
            promised_mib: promised_mib(guest),
            resident_mib,
            cpu_percent,
            movable: may_move && self.guests.require_portable(guest).await.is_ok(),
        }
    }
}

impl Survey {
    fn answer(
        &mut self,
        moves: Vec<Suggestion>,
        nodes: Vec<NodeBalance>,
        refused: Vec<String>,
    ) -> Balance {
        let moves = moves.into_iter().map(|suggestion| {
            let key = (suggestion.uuid, suggestion.to.clone());
            SuggestedMove {
                forecast: self.possible.remove(&key).and_then(|plan| plan.forecast),
                command: format!(
                    "pindah guest migrate {} --to {}",
                    suggestion.guest, suggestion.to
                ),
                suggestion,
            }
        });
        let moves = moves.collect();
        Balance {
            nodes,
            moves,
            refused,
        }
    }
}
