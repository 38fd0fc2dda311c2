//! What the processors of a cluster have in common: what a guest may see that is to move between
//! all of them.
//!
//! Each node says what its own KVM gives. The cluster's baseline is what its first node gave, until
//! somebody takes what all have in common; it changes for new guests only. A node that comes and
//! lacks some of it says so and changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pindah_vmm_api::CpuFeatures;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use utoipa::ToSchema;

use super::{ClusterError, NodeRecord, Site};
use crate::clock::now_unix_ms;
use crate::names::some_of;
use crate::store::{Collection, Record, Store, StoreError};

/// How long the VMM may take to look at the host.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// How long a failure of the store waits for the next try.
const RETRY: Duration = Duration::from_secs(5);
/// The baseline's key: there is one.
const BASELINE: &str = "cluster";

/// What a node's KVM gives to guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCpu {
    /// The features.
    pub features: CpuFeatures,
}

impl Record for NodeCpu {
    const KIND: &'static str = "nodes-cpu";
    const SCHEMA: u32 = 1;
}

/// What new guests see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuBaseline {
    /// The features.
    pub features: CpuFeatures,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

impl Record for CpuBaseline {
    const KIND: &'static str = "cpu-baselines";
    const SCHEMA: u32 = 1;
}

/// The processors of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuView {
    /// Vendor of the processors for which the baseline is, as CPUID spells it; absent: there is no
    /// baseline yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Since when new guests see it, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// The nodes that run guests.
    pub nodes: Vec<NodeCpuView>,
}

/// A node's processor beside the baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCpuView {
    /// The node.
    pub node: String,
    /// Its processor's vendor.
    pub vendor: String,
    /// Features of the baseline that it lacks: guests that may see them cannot move to it.
    pub lacks: Vec<String>,
    /// Features that it has and the baseline does not: no new guest sees them.
    pub unused: Vec<String>,
}

/// What this host's KVM gives to guests; `None` if it runs none.
pub async fn features_of_host(vmm: &Path) -> Option<CpuFeatures> {
    #[derive(Deserialize)]
    struct Check {
        cpu_features: Option<CpuFeatures>,
    }
    let check = Command::new(vmm).args(["check", "--json"]).output();
    let output = tokio::time::timeout(CHECK_DEADLINE, check).await.ok()?;
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            tracing::warn!("{} check: {error}", vmm.display());
            return None;
        }
    };
    serde_json::from_slice::<Check>(&output.stdout)
        .ok()?
        .cpu_features
}

/// Says what the node's KVM gives, when the store takes it; the first in a cluster sets the
/// baseline.
pub async fn tell_features(store: Arc<dyn Store>, node: String, features: CpuFeatures) {
    let told = NodeCpu { features };
    while let Err(error) = tell_once(&store, &node, &told).await {
        if !matches!(error, StoreError::NoMajority) {
            tracing::warn!("this node's CPU features: {error}");
        }
        store.settled(RETRY).await;
        tokio::time::sleep(RETRY).await;
    }
}

async fn tell_once(store: &Arc<dyn Store>, node: &str, told: &NodeCpu) -> Result<(), StoreError> {
    let nodes = Collection::<NodeCpu>::new(Arc::clone(store));
    let before = nodes.get(node).await?;
    if before.as_ref().is_none_or(|before| before.value != *told) {
        nodes.put(node, told).await?;
    }
    let baseline = CpuBaseline {
        features: told.features.clone(),
        since_unix_ms: now_unix_ms(),
    };
    let baselines = Collection::<CpuBaseline>::new(Arc::clone(store));
    baselines.create(BASELINE, &baseline).await?;
    if let Some(baseline) = baselines.get(BASELINE).await? {
        let lacks = baseline.value.features.lacking_in(&told.features);
        if !lacks.is_empty() {
            tracing::warn!("{}", lacking(node, &lacks));
        }
    }
    Ok(())
}

/// What new guests of a cluster see; `None` where nobody has set it.
///
/// # Errors
/// [`StoreError`].
pub async fn cpu_baseline(store: &Arc<dyn Store>) -> Result<Option<CpuFeatures>, StoreError> {
    let baselines = Collection::<CpuBaseline>::new(Arc::clone(store));
    let baseline = baselines.get(BASELINE).await?;
    Ok(baseline.map(|baseline| baseline.value.features))
}

/// What a node's KVM gives; `None` if it has not said.
///
/// # Errors
/// [`StoreError`].
pub async fn features_of_node(
    store: &Arc<dyn Store>,
    node: &str,
) -> Result<Option<CpuFeatures>, StoreError> {
    let nodes = Collection::<NodeCpu>::new(Arc::clone(store));
    Ok(nodes.get(node).await?.map(|node| node.value.features))
}

fn lacking(node: &str, lacks: &[String]) -> String {
    format!(
        "node {node} lacks CPU features that guests of this cluster may see, which cannot move to \
         it: {}; `pindah cluster cpu --adopt` has new guests see only what all nodes have",
        some_of(lacks)
    )
}

impl Site {
    /// The nodes' processors, those of nodes that have said so.
    async fn cpus(&self) -> Result<Vec<(String, CpuFeatures)>, StoreError> {
        let records = Collection::<NodeRecord>::new(self.store.clone());
        let mut cpus = Vec::new();
        for record in records.all().await? {
            let name = record.value.name;
            if let Some(features) = features_of_node(&self.store, &name).await? {
                cpus.push((name, features));
            }
        }
        Ok(cpus)
    }

    /// The processors of the cluster.
    ///
    /// # Errors
    /// [`ClusterError::NotIn`], [`ClusterError::Store`].
    pub async fn cpu_view(&self) -> Result<CpuView, ClusterError> {
        self.require_member()?;
        let baselines = Collection::<CpuBaseline>::new(self.store.clone());
        let baseline = baselines.get(BASELINE).await?.map(|stored| stored.value);
        let against = |features: &CpuFeatures| match &baseline {
            None => (Vec::new(), Vec::new()),
            Some(baseline) => (
                baseline.features.lacking_in(features),
                features.lacking_in(&baseline.features),
            ),
        };
        let nodes = self.cpus().await?.into_iter().map(|(node, features)| {
            let (lacks, unused) = against(&features);
            NodeCpuView {
                node,
                vendor: features.vendor,
                lacks,
                unused,
            }
        });
        let nodes = nodes.collect();
        Ok(CpuView {
            since_unix_ms: baseline
                .as_ref()
                .map_or(0, |baseline| baseline.since_unix_ms),
            vendor: baseline.map(|baseline| baseline.features.vendor),
            nodes,
        })
    }

    /// From now on new guests see what all nodes have in common.
    ///
    /// # Errors
    /// [`ClusterError::NodeState`]: they have nothing in common; [`ClusterError::NotIn`],
    /// [`ClusterError::Store`].
    pub async fn adopt_common_cpu(&self) -> Result<CpuView, ClusterError> {
        self.require_member()?;
        let mut common: Option<CpuFeatures> = None;
        for (_, features) in self.cpus().await? {
            let both = match common {
                None => Ok(features),
                Some(common) => common.intersection(&features),
            };
            common = Some(both.map_err(|error| ClusterError::NodeState(error.to_string()))?);
        }
        if let Some(features) = common {
            let baseline = CpuBaseline {
                features,
                since_unix_ms: now_unix_ms(),
            };
            let baselines = Collection::<CpuBaseline>::new(self.store.clone());
            baselines.put(BASELINE, &baseline).await?;
        }
        self.cpu_view().await
    }

    /// What a person should know of the processors.
    pub(super) async fn cpu_warnings(&self) -> Vec<String> {
        let Ok(view) = self.cpu_view().await else {
            return Vec::new();
        };
        let lacking_nodes = view.nodes.iter().filter(|node| !node.lacks.is_empty());
        lacking_nodes
            .map(|node| lacking(&node.node, &node.lacks))
            .collect()
    }
}
