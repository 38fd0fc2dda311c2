//! How a network is doing on this node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::links::Links;
use super::{NetworkError, Networks, NodeNetworkState};
use crate::causes::chain;
use crate::domain::{Network, NetworkName};

/// How a network is doing on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// The network.
    pub network: NetworkName,
    /// The bridge that guests are connected to.
    pub bridge: String,
    /// How it leaves the node.
    pub uplink: String,
    /// Whether it works.
    pub state: NetworkState,
    /// Why not, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether its bridge keeps VLANs apart.
    pub vlans: bool,
}

/// Whether a network works on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkState {
    /// It does.
    Ready,
    /// Its guests see each other, and nothing else: its uplink has no link.
    NoCarrier,
    /// It is not set up.
    Failed,
}

impl std::fmt::Display for NetworkState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Ready => "ready",
            Self::NoCarrier => "no carrier",
            Self::Failed => "failed",
        })
    }
}

impl Networks {
    /// How all networks are doing here.
    pub async fn statuses(&self) -> Vec<NetworkStatus> {
        let mut statuses: Vec<NetworkStatus> = self.status_of_node().into_iter().collect();
        if !self.inner.runs_guests {
            return statuses;
        }
        match self.records().all().await {
            Ok(records) => {
                for record in records {
                    statuses.push(self.status(&record.value).await);
                }
            }
            Err(error) => tracing::debug!("how networks are doing: {error}"),
        }
        statuses
    }

    fn status_of_node(&self) -> Option<NetworkStatus> {
        let (bridge, state, problem) = match &self.inner.node_network {
            NodeNetworkState::Off => return None,
            NodeNetworkState::Failed { bridge, reason } => {
                (bridge.as_str(), NetworkState::Failed, Some(reason.clone()))
            }
            NodeNetworkState::Up(network) => (network.bridge(), NetworkState::Ready, None),
        };
        Some(NetworkStatus {
            network: NetworkName::of_node(),
            bridge: bridge.to_owned(),
            uplink: "NAT".to_owned(),
            state,
            problem,
            vlans: false,
        })
    }

    async fn status(&self, network: &Network) -> NetworkStatus {
        let uplink = network.uplink_on(&self.inner.node);
        let bridge = network.bridge_on(&self.inner.node).unwrap_or_default();
        let mut status = NetworkStatus {
            network: network.name.clone(),
            bridge: bridge.clone(),
            uplink: uplink.to_string(),
            state: NetworkState::Ready,
            problem: None,
            vlans: false,
        };
        if let Some(reason) = self.failure(&network.name) {
            status.state = NetworkState::Failed;
            status.problem = Some(reason);
            return status;
        }
        let port = network.uplink_port_on(&self.inner.node);
        match look(&self.inner.links, &bridge, port.as_deref()).await {
            Ok((vlans, None)) => status.vlans = vlans,
            Ok((vlans, Some(problem))) => {
                status.vlans = vlans;
                status.state = NetworkState::NoCarrier;
                status.problem = Some(problem);
            }
            Err(error) => {
                status.state = NetworkState::Failed;
                status.problem = Some(chain(&error));
            }
        }
        status
    }
}

/// Whether the bridge keeps VLANs apart, and what is the matter with its uplink.
async fn look(
    links: &Links,
    bridge: &str,
    port: Option<&str>,
) -> Result<(bool, Option<String>), NetworkError> {
    let bridge = links.get(bridge).await?;
    let vlans = bridge.filters_vlans();
    let Some(port) = port else {
        return Ok((vlans, None));
    };
    let port = links.get(port).await?;
    let problem = if port.controller != Some(bridge.index) {
        format!("{} is no port of {} any more", port.name, bridge.name)
    } else if !port.up {
        format!("{} was switched off", port.name)
    } else if !port.carrier {
        format!("{} has no link; is its cable plugged in?", port.name)
    } else {
        return Ok((vlans, None));
    };
    Ok((vlans, Some(problem)))
}
