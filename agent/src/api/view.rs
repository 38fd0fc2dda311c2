//! A guest as the API shows it: its record, and how it is doing.

use std::collections::{BTreeSet, HashMap};

use pindah_vmm_api::Baseline;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Api, ApiError};
use crate::cluster::{GuestStatus, NodeStatus};
use crate::domain::{
    Autostart, Boot, CpuLimits, CrashPolicy, Disk, Guest, GuestName, Interface, Wanted,
};
use crate::guests::{GuestState, Status};
use crate::metrics::GuestUsage;
use crate::storage::{PoolState, PoolStatus};
use crate::store::Collection;

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[allow(clippy::struct_excessive_bools)]
pub struct GuestView {
    /// Never changes.
    pub uuid: Uuid,
    /// Its name.
    pub name: GuestName,
    /// What it does.
    pub state: GuestState,
    /// Why, if there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when, in milliseconds since the Unix epoch; 0: since before the agent started.
    pub since_unix_ms: u64,
    /// What it should be doing.
    pub wanted: Wanted,
    /// The node that runs it.
    pub node: String,
    /// The node that it is on its way to, while it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<String>,
    /// Its process on that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often it has crashed since somebody started it.
    pub crashes: u32,
    /// Its disks are still being made.
    pub incomplete: bool,
    /// It is what others are copied from, and does not start.
    #[serde(default)]
    pub template: bool,
    /// Virtual CPUs.
    pub cpus: u8,
    /// What it may take of its node's processors.
    #[serde(default)]
    pub cpu_limits: CpuLimits,
    /// Why its node does not apply that, while it runs and it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_error: Option<String>,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// RAM that it is asked to keep to, in MiB; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_target_mib: Option<u64>,
    /// CPU features that it may see.
    #[schema(value_type = String, example = "host")]
    pub baseline: Baseline,
    /// It sees of these only what its cluster's nodes had in common when it was created.
    #[serde(default)]
    pub cluster_baseline: bool,
    /// What runs first.
    pub boot: Boot,
    /// Disks, in slot order.
    pub disks: Vec<Disk>,
    /// Network interfaces, in slot order.
    pub interfaces: Vec<Interface>,
    /// Addresses that it got by DHCP.
    pub addresses: Vec<String>,
    /// Whether it has a seed for cloud-init, which may hold secrets and is not shown.
    pub cloud_init: bool,
    /// Whether and when it starts with its node.
    pub autostart: Autostart,
    /// What becomes of it when it crashes.
    pub on_crash: CrashPolicy,
    /// Free labels.
    pub tags: BTreeSet<String>,
    /// Free text.
    pub notes: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// What it takes.
    #[serde(default)]
    pub usage: GuestUsage,
}

impl Api {
    /// The guest now, as its node says.
    pub(super) async fn view(&self, guest: Guest) -> Result<GuestView, ApiError> {
        if guest.node == self.node {
            return Ok(self.view_of_ours(guest));
        }
        let statuses = Collection::<GuestStatus>::new(self.store.clone());
        let said = statuses.get(&guest.uuid.to_string()).await?;
        let nodes = Collection::<NodeStatus>::new(self.store.clone());
        let node = nodes.get(&guest.node).await?.map(|node| node.value);
        let said = said.map(|said| said.value);
        Ok(view_of_theirs(guest, said, node.as_ref()))
    }

    /// The guests now, as their nodes say.
    pub(super) async fn views(&self, guests: Vec<Guest>) -> Result<Vec<GuestView>, ApiError> {
        let mut said = HashMap::new();
        let mut nodes = HashMap::new();
        if guests.iter().any(|guest| guest.node != self.node) {
            let statuses = Collection::<GuestStatus>::new(self.store.clone());
            let all = statuses.all().await?.into_iter();
            said.extend(all.map(|status| (status.value.uuid, status.value)));
            let statuses = Collection::<NodeStatus>::new(self.store.clone());
            for (node, status) in statuses.all_with_ids().await? {
                nodes.insert(node, status.value);
            }
        }
        let views = guests.into_iter().map(|guest| {
            if guest.node == self.node {
                self.view_of_ours(guest)
            } else {
                let said = said.remove(&guest.uuid);
                let node = nodes.get(&guest.node);
                view_of_theirs(guest, said, node)
            }
        });
        Ok(views.collect())
    }

    fn view_of_ours(&self, guest: Guest) -> GuestView {
        let mut status = self.guests.status(guest.uuid);
        explain(&guest, &mut status, &self.pools.statuses());
        let addresses = self.guests.addresses(&guest);
        let addresses = addresses.iter().map(ToString::to_string).collect();
        let usage = self.guests.usage(guest.uuid);
        GuestView::new(guest, status, addresses, usage)
    }
}

/// What a node that is not alive has said is gone with its lease.
fn view_of_theirs(guest: Guest, said: Option<GuestStatus>, node: Option<&NodeStatus>) -> GuestView {
    if let Some(mut said) = said.filter(|said| said.node == guest.node) {
        let usage = node.and_then(|node| node.guests_usage.get(&guest.uuid).cloned());
        if let Some(node) = node {
            explain(&guest, &mut said.status, &node.pools);
        }
        return GuestView::new(
            guest,
            said.status,
            said.addresses,
            usage.unwrap_or_default(),
        );
    }
    let status = Status {
        state: GuestState::Unknown,
        reason: Some(format!("node {} has not said how it does", guest.node)),
        ..Status::default()
    };
    GuestView::new(guest, status, Vec::new(), GuestUsage::default())
}

/// Why a guest that runs may hang: a pool that its disks are in.
fn explain(guest: &Guest, status: &mut Status, pools: &[PoolStatus]) {
    if status.reason.is_some() || !status.state.has_process() {
        return;
    }
    let disks = guest.disk_pools();
    let mut pools = pools.iter();
    let troubled = pools.find(|pool| disks.contains(&pool.name) && pool.state != PoolState::Ready);
    status.reason = troubled.map(|pool| {
        let reason = pool.reason.as_deref().unwrap_or_default();
        format!("its disks in pool {} may not answer: {reason}", pool.name)
    });
}

impl GuestView {
    fn new(guest: Guest, status: Status, addresses: Vec<String>, usage: GuestUsage) -> Self {
        Self {
            uuid: guest.uuid,
            name: guest.name,
            state: status.state,
            reason: status.reason,
            since_unix_ms: status.since_unix_ms,
            wanted: guest.wanted,
            node: guest.node,
            moving_to: guest.moving_to,
            pid: status.pid,
            crashes: status.crashes,
            incomplete: guest.incomplete,
            template: guest.template,
            cpus: guest.cpus,
            cpu_limits: guest.cpu_limits,
            limits_error: status.limits_error,
            memory_mib: guest.memory_mib,
            memory_target_mib: guest.memory_target_mib,
            baseline: guest.baseline,
            cluster_baseline: guest.cpu_features.is_some(),
            boot: guest.boot,
            disks: guest.disks,
            interfaces: guest.interfaces,
            addresses,
            cloud_init: guest.cloud_init.is_some(),
            autostart: guest.autostart,
            on_crash: guest.on_crash,
            tags: guest.tags,
            notes: guest.notes,
            created_unix_ms: guest.created_unix_ms,
            usage,
        }
    }
}
