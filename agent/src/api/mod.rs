//! The REST API: HTTPS, JSON, `/api/v1`.
//!
//! An answer has one of three envelopes: `{"data": …}` for what is known at once (a list has `next`
//! too), `{"task": …}` with status 202 for what lasts, `{"error": {"code", "message"}}` for what is
//! refused. `agent/api/openapi.json` describes all of it.

mod accounts;
mod auth;
mod cluster;
mod console;
mod detached;
mod disks;
mod envelope;
mod error;
mod etag;
mod events;
mod extract;
mod grants;
mod guests;
mod history;
mod idempotency;
mod images;
mod interfaces;
mod lasting;
mod memory;
mod metrics;
mod migration;
mod networks;
mod nodes;
mod objects;
mod openapi;
mod permit;
mod pieces;
mod pools;
mod power;
mod proxy;
mod refusals;
mod report;
mod server;
mod session;
mod tasks;
mod unique;
mod updates;
mod view;
mod visible;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;

pub use accounts::{Login, LoginAnswer, TokenCreated};
pub use cluster::{JoinTokenCreated, NewJoinToken};
pub use disks::{DiskGrowth, DiskMove};
pub use envelope::{Accepted, Data, Listing};
pub use error::{ApiError, ErrorBody, ErrorCode, ErrorInfo};
pub use grants::RoleGrant;
pub use guests::GuestEdited;
pub use history::{HistoryView, Series};
pub use memory::MemoryTarget;
pub use metrics::{GuestMetrics, MetricsView};
pub use networks::NetworkView;
pub use nodes::{NodeHealth, NodeView};
pub use openapi::document;
pub use pools::{PoolOnNode, PoolView, VolumeView};
pub use proxy::NODE;
pub use report::ReportFormat;
pub use server::{Running, ServeError, Server};
pub use session::SessionView;
pub use view::GuestView;

use crate::cluster::Site;
use crate::events::Events;
use crate::guests::Guests;
use crate::metrics::history::History;
use crate::peer::Peers;
use crate::security::{Accounts, AuditLog, LoginLimit};
use crate::storage::Pools;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::update::Updates;
use crate::web;

/// Largest JSON body, in bytes.
const BODY_MAX: usize = 1 << 20;

/// What requests work on.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Parts>,
}

/// What the API is made of.
pub struct Parts {
    /// The node's name.
    pub node: String,
    /// Its guests.
    pub guests: Guests,
    /// Its tasks.
    pub tasks: Tasks,
    /// Its events.
    pub events: Events,
    /// Its pools.
    pub pools: Pools,
    /// What guests and the node took.
    pub history: History,
    /// Users and tokens.
    pub accounts: Accounts,
    /// Who guesses passwords.
    pub login_limit: LoginLimit,
    /// Who did what.
    pub audit: AuditLog,
    /// For what belongs to the API alone.
    pub store: Arc<dyn Store>,
    /// The node, alone or in a cluster.
    pub site: Site,
    /// Its updates.
    pub updates: Updates,
}

impl Api {
    /// An API on these parts.
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(parts),
        }
    }

    /// The other nodes, if there are any.
    fn peers(&self) -> Option<&Peers> {
        self.site.member.as_ref().map(|member| &member.peers)
    }

    /// All paths, for nodes that pass on what they were asked.
    pub fn router_for_nodes(self) -> Router {
        self.paths().layer(axum::Extension(auth::FromNode))
    }

    /// All paths, and the web page.
    pub fn router(self) -> Router {
        self.paths().layer(axum::middleware::from_fn(web::serve))
    }

    fn paths(self) -> Router {
        let (router, _) = openapi::routes().split_for_parts();
        router
            .route("/api/v1/openapi.json", axum::routing::get(openapi::serve))
            .fallback(error::no_such_path)
            .method_not_allowed_fallback(error::no_such_method)
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .layer(axum::middleware::from_fn(detached::detach))
            .layer(axum::middleware::from_fn_with_state(
                self.clone(),
                proxy::route,
            ))
            .layer(axum::middleware::from_fn_with_state(
                self.clone(),
                auth::authenticate,
            ))
            .with_state(self)
    }
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.inner
    }
}
