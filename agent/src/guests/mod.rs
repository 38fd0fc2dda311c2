//! The node's guests: from intent in the store to a process, and back from its end to intent.
//!
//! ```text
//!            start                     API answers
//! stopped ─────────► starting ─────────────────────► running ◄────► paused
//!    ▲ ▲                │ failed                        │ │
//!    │ └────────────────┘                stop, delete   │ │ process ended
//!    │                    ended                         ▼ ▼
//!    └──────────────────────────────────────────── stopping · crashed ──► starting, by policy
//! ```
//!
//! A guest that moves is here until its record says that it is elsewhere; at its destination it is
//! `arriving` until then. See [`migration`].
//!
//! One operation at a time changes a guest: whoever holds its [`Machine`]'s lock. The store's
//! record says what is wanted; what is, is known here only, and found again after a restart by
//! looking at the processes.

mod backoff;
mod balloon;
mod clone;
mod console_log;
mod create;
mod delete;
mod disk_failure;
mod disk_record;
mod ending;
mod error;
mod export;
mod host_shutdown;
mod intent;
mod interface;
mod limit_disk;
mod limits;
mod lookup;
mod machine;
mod memory;
mod migration;
mod move_disk;
mod pool;
mod recover;
mod resize_disk;
mod seed;
mod start;
mod stop;
mod template;
mod usage;
mod vm_config;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

pub use create::Created;
pub use error::GuestError;
pub use export::Export;
pub use machine::{GuestState, Status};
pub use memory::{HostMemory, promised_mib};
pub use migration::{
    Arrival, ArrivalOrder, MigrationLinks, MoveRequest, Offer, Plan, Receiver, Settlement,
};
pub use stop::StopRequest;

use crate::cluster::Presence;
use crate::domain::Guest;
use crate::events::{EventKind, Events};
use crate::metrics::Metrics;
use crate::network::Networks;
use crate::storage::Pools;
use crate::store::{Collection, Store};
use crate::supervisor::{Containment, Direct};
use crate::tasks::Tasks;
use crate::vmm_client::VmmClient;
use machine::Machine;

/// What the node gives to its guests.
pub struct Resources {
    /// The node's name.
    pub node: String,
    /// A directory for each guest's process.
    pub directory: PathBuf,
    /// How long a guest has for its shutdown if nothing else is said.
    pub stop_deadline: Duration,
    /// Memory that guests may not take, in MiB.
    pub reserved_memory_mib: u64,
    /// Where records are kept.
    pub store: Arc<dyn Store>,
    /// The node's lease, in a cluster.
    pub presence: Option<Presence>,
    /// How guests move to other nodes, in a cluster.
    pub migration: Option<MigrationLinks>,
    /// The node runs no guests: it is a cluster's witness.
    pub witness: bool,
    /// What starts processes.
    pub supervisor: Direct,
    /// What keeps each guest's process in a group of its own.
    pub containment: Arc<dyn Containment>,
    /// Where images and disks are kept.
    pub pools: Pools,
    /// What guests are connected to.
    pub networks: Networks,
    /// Where tasks run.
    pub tasks: Tasks,
    /// Where events are told.
    pub events: Events,
    /// What guests take.
    pub metrics: Metrics,
}

/// The guests of this node.
#[derive(Clone)]
pub struct Guests {
    inner: Arc<Inner>,
}

struct Inner {
    resources: Resources,
    records: Collection<Guest>,
    machines: Mutex<HashMap<Uuid, Arc<Machine>>>,
}

impl Guests {
    /// None is started yet: see [`Guests::recover`].
    pub fn new(resources: Resources) -> Self {
        let records = Collection::new(Arc::clone(&resources.store));
        Self {
            inner: Arc::new(Inner {
                resources,
                records,
                machines: Mutex::default(),
            }),
        }
    }

    fn resources(&self) -> &Resources {
        &self.inner.resources
    }

    fn records(&self) -> &Collection<Guest> {
        &self.inner.records
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Machine>>> {
        let machines = self.inner.machines.lock();
        machines.unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's runtime side.
    fn machine(&self, uuid: Uuid) -> Arc<Machine> {
        let mut machines = self.machines();
        Arc::clone(machines.entry(uuid).or_default())
    }

    /// How a guest is doing.
    pub fn status(&self, uuid: Uuid) -> Status {
        let machine = self.machines().get(&uuid).cloned();
        machine.map(|machine| machine.status()).unwrap_or_default()
    }

    /// How those guests are doing that this agent has had to do with.
    pub fn statuses(&self) -> Vec<(Uuid, Status)> {
        let machines = self.machines();
        let statuses = machines.iter();
        statuses
            .map(|(&uuid, machine)| (uuid, machine.status()))
            .collect()
    }

    /// Addresses that a guest got by DHCP.
    pub fn addresses(&self, guest: &Guest) -> Vec<std::net::Ipv4Addr> {
        self.resources().networks.addresses(guest)
    }

    /// What guests are connected to.
    pub fn networks(&self) -> &Networks {
        &self.resources().networks
    }

    /// Where the guest's process has its files.
    fn directory(&self, uuid: Uuid) -> PathBuf {
        self.resources().directory.join(uuid.to_string())
    }

    fn client(&self, uuid: Uuid) -> VmmClient {
        VmmClient::new(&Direct::api_socket(&self.directory(uuid)))
    }

    /// Sets what a guest does, and tells who listens.
    fn set_state(&self, guest: &Guest, machine: &Machine, state: GuestState, reason: Option<&str>) {
        if machine.set(state, reason) {
            self.resources().events.tell(EventKind::GuestState {
                uuid: guest.uuid,
                name: guest.name.to_string(),
                state,
                reason: reason.map(str::to_owned),
            });
        }
    }

    fn tell_changed(&self, guest: &Guest) {
        self.resources().events.tell(EventKind::GuestChanged {
            uuid: guest.uuid,
            name: guest.name.to_string(),
        });
    }
}
