//! What this node tells the others: how it does, and how its guests do. All of it goes with the
//! node's lease, so what is read is what somebody alive has said.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::presence::{Held, Presence};
use super::records::{GuestStatus, NodeStatus};
use crate::clock::now_unix_ms;
use crate::domain::Guest;
use crate::events::Events;
use crate::guests::{GuestError, Guests, HostMemory, Status};
use crate::storage::Pools;
use crate::store::{Collection, Store, StoreError, Transaction, encode};
use crate::update::{Updates, installed_version};

/// How often the node says how it does.
const PERIOD: Duration = Duration::from_secs(10);
/// How long events are gathered before they are told.
const GATHER: Duration = Duration::from_millis(50);
/// How long after its start a guest may get its address.
const ADDRESS_MS: u64 = 120_000;

/// Tells it for ever.
pub struct Reporter {
    /// The node.
    pub node: String,
    /// Its lease.
    pub presence: Presence,
    /// Where it is told.
    pub store: Arc<dyn Store>,
    /// Its guests.
    pub guests: Guests,
    /// Its pools.
    pub pools: Pools,
    /// Its updates.
    pub updates: Updates,
    /// When there is something to tell.
    pub events: Events,
}

/// How a node does now.
///
/// # Errors
/// [`GuestError::Store`].
pub async fn node_status(
    guests: &Guests,
    pools: &Pools,
    updates: &Updates,
) -> Result<NodeStatus, GuestError> {
    let memory = HostMemory::read();
    let statuses = guests.statuses();
    let running = statuses
        .iter()
        .filter(|(_, status)| status.state.has_process());
    Ok(NodeStatus {
        time_unix_ms: now_unix_ms(),
        version: installed_version().to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: memory.total_mib,
        memory_available_mib: memory.available_mib,
        memory_guests_mib: guests.used_memory_mib().await?,
        memory_reserved_mib: guests.reserved_memory_mib(),
        guests_running: running.count(),
        kvm: std::path::Path::new("/dev/kvm").exists(),
        pools: pools.statuses(),
        networks: guests.networks().statuses().await,
        usage: guests.metrics().node(),
        guests_usage: statuses
            .iter()
            .filter(|(_, status)| status.state.has_process())
            .map(|(uuid, _)| (*uuid, guests.usage(*uuid)))
            .collect(),
        slots: updates.slots(),
        last_update: updates.last(),
    })
}

impl Reporter {
    /// Ends never.
    pub async fn run(self) {
        let mut leases = self.presence.subscribe();
        let mut events = self.events.listen();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = HashMap::new();
        let mut told_under = None;
        loop {
            let mut node = false;
            tokio::select! {
                _ = tick.tick() => node = true,
                _ = leases.changed() => node = true,
                _ = events.recv() => {
                    tokio::time::sleep(GATHER).await;
                    events = self.events.listen();
                }
            }
            let held = *leases.borrow_and_update();
            let Some(held) = held else { continue };
            if told_under != Some(held) {
                told.clear();
                told_under = Some(held);
            }
            if let Err(error) = self.tell(held, node, &mut told).await
                && !matches!(
                    error,
                    GuestError::Store(StoreError::NoMajority | StoreError::LeaseGone(_))
                )
            {
                tracing::warn!("what this node tells the others: {error}");
            }
        }
    }

    async fn tell(
        &self,
        held: Held,
        node: bool,
        told: &mut HashMap<Uuid, Status>,
    ) -> Result<(), GuestError> {
        let statuses: HashMap<Uuid, Status> = self.guests.statuses().into_iter().collect();
        let recent = now_unix_ms().saturating_sub(ADDRESS_MS);
        for (&uuid, status) in &statuses {
            let fresh = node && status.state.has_process() && status.since_unix_ms > recent;
            if told.get(&uuid) != Some(status) || fresh {
                self.tell_guest(held, uuid, status).await?;
                told.insert(uuid, status.clone());
            }
        }
        let gone: Vec<Uuid> = told.keys().copied().collect();
        for uuid in gone.into_iter().filter(|uuid| !statuses.contains_key(uuid)) {
            self.take_back(uuid).await?;
            told.remove(&uuid);
        }
        if node {
            let status = node_status(&self.guests, &self.pools, &self.updates).await?;
            let key = Collection::<NodeStatus>::key(&self.node);
            let value = encode(&key, &status)?;
            let put = Transaction::new().put_leased(&key, value, held.lease);
            self.store.commit(put).await?;
        }
        Ok(())
    }

    /// Of a guest that has moved its new node tells.
    async fn take_back(&self, uuid: Uuid) -> Result<(), StoreError> {
        let id = uuid.to_string();
        let statuses = Collection::<GuestStatus>::new(Arc::clone(&self.store));
        let Some(told) = statuses.get(&id).await? else {
            return Ok(());
        };
        if told.value.node == self.node {
            let key = Collection::<GuestStatus>::key(&id);
            let delete = Transaction::new().if_unchanged(&key, told.revision);
            self.store.commit(delete.delete(key)).await?;
        }
        Ok(())
    }

    async fn tell_guest(&self, held: Held, uuid: Uuid, status: &Status) -> Result<(), StoreError> {
        let records = Collection::<Guest>::new(Arc::clone(&self.store));
        let Some(guest) = records.get(&uuid.to_string()).await? else {
            return Ok(());
        };
        if guest.value.node != self.node {
            return Ok(());
        }
        let addresses = self.guests.addresses(&guest.value);
        let value = GuestStatus {
            uuid,
            node: self.node.clone(),
            status: status.clone(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let key = Collection::<GuestStatus>::key(&uuid.to_string());
        let value = encode(&key, &value)?;
        let put = Transaction::new().put_leased(&key, value, held.lease);
        self.store.commit(put).await?;
        Ok(())
    }
}
