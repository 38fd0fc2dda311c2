//! Networks: list, show, create, edit, delete.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::etag::{etag, is_current};
use super::extract::{Body, Path};
use super::permit::{Admin, Viewer};
use super::{Api, ApiError, Data, ErrorBody, Listing};
use crate::cluster::NodeStatus;
use crate::domain::{Network, NetworkEdit, NetworkSpec};
use crate::network::{NetworkRequestError, NetworkStatus};
use crate::store::{Collection, Stored};

/// A network, and how it is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// What it is.
    #[serde(flatten)]
    pub network: Network,
    /// Whether guests keep their addresses on it when they move, to whichever of `nodes`.
    pub follows_a_move: bool,
    /// Guests that are connected to it.
    pub guests: Vec<String>,
    /// How it is doing on each node that says so.
    pub nodes: BTreeMap<String, NetworkStatus>,
}

/// How all networks are doing on each node: on this one now, on the others as they say themselves.
async fn statuses(api: &Api) -> Result<Vec<(String, NetworkStatus)>, ApiError> {
    let ours = api.guests.networks().statuses().await;
    let mut all: Vec<(String, NetworkStatus)> = Vec::new();
    all.extend(ours.into_iter().map(|status| (api.node.clone(), status)));
    if let Some(peers) = api.peers() {
        let said = Collection::<NodeStatus>::new(api.store.clone());
        for peer in peers.all().await? {
            if peer.name != api.node
                && let Some(said) = said.get(&peer.name).await?
            {
                let theirs = said.value.networks.into_iter();
                all.extend(theirs.map(|status| (peer.name.clone(), status)));
            }
        }
    }
    Ok(all)
}

async fn view(
    api: &Api,
    network: Network,
    statuses: &[(String, NetworkStatus)],
) -> Result<NetworkView, ApiError> {
    let of_network = statuses
        .iter()
        .filter(|(_, status)| status.network == network.name);
    let nodes: BTreeMap<String, NetworkStatus> = of_network.cloned().collect();
    Ok(NetworkView {
        follows_a_move: network.follows_a_move(nodes.keys().map(String::as_str)),
        guests: api.guests.networks().guests_on(&network.name).await?,
        nodes,
        network,
    })
}

/// All networks; the first is each node's own.
#[utoipa::path(get, path = "/api/v1/networks", tag = "networks",
    responses((status = 200, body = Listing<NetworkView>)))]
pub async fn list_networks(
    State(api): State<Api>,
    _: Viewer,
) -> Result<Listing<NetworkView>, ApiError> {
    let statuses = statuses(&api).await?;
    let mut data = Vec::new();
    for network in api.guests.networks().list().await? {
        data.push(view(&api, network, &statuses).await?);
    }
    Ok(Listing { data, next: None })
}

/// Makes a network: a bridge on each node. What the node that is asked cannot set up is refused;
/// how it is doing on the others shows in `nodes`.
#[utoipa::path(post, path = "/api/v1/networks", tag = "networks", request_body = NetworkSpec,
    responses((status = 201, body = Data<NetworkView>), (status = 409, body = ErrorBody)))]
pub async fn create_network(
    State(api): State<Api>,
    _: Admin,
    Body(spec): Body<NetworkSpec>,
) -> Result<Response, ApiError> {
    let network = api.guests.networks().create(&spec).await?;
    let data = view(&api, network, &statuses(&api).await?).await?;
    Ok((StatusCode::CREATED, Data { data }).into_response())
}

/// One network. Its `ETag` is what an edit must give as `If-Match`.
#[utoipa::path(get, path = "/api/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path)),
    responses((status = 200, body = Data<NetworkView>), (status = 404, body = ErrorBody)))]
pub async fn show_network(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let stored = api.guests.networks().find(&name).await?;
    answer(&api, stored).await
}

async fn answer(api: &Api, stored: Stored<Network>) -> Result<Response, ApiError> {
    let etag = etag(stored.revision);
    let data = view(api, stored.value, &statuses(api).await?).await?;
    Ok(([(header::ETAG, etag)], Data { data }).into_response())
}

/// Changes a network; guests stay connected. `If-Match` must hold the `ETag` of what was read.
#[utoipa::path(patch, path = "/api/v1/networks/{network}", tag = "networks",
    request_body = NetworkEdit,
    params(("network" = String, Path),
        ("If-Match" = String, Header, description = "The ETag that was read")),
    responses((status = 200, body = Data<NetworkView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 412, body = ErrorBody), (status = 428, body = ErrorBody)))]
pub async fn edit_network(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(edit): Body<NetworkEdit>,
) -> Result<Response, ApiError> {
    let networks = api.guests.networks();
    let stored = networks.find(&name).await?;
    if !is_current(&headers, stored.revision)? {
        return Err(NetworkRequestError::Changed(stored.value.name).into());
    }
    let edited = networks.edit(&stored, &edit).await?;
    answer(&api, edited).await
}

/// Removes a network that no guest is connected to.
#[utoipa::path(delete, path = "/api/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn delete_network(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.guests.networks().delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
