//! A node, put together: from its configuration to an API that serves.

mod admin_context;
mod renewal;
mod state;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Semaphore;

use crate::api::{Api, Parts, Running, ServeError, Server};
use crate::causes::chain;
use crate::cluster::{
    ClusterError, Member, Membership, Reporter, Site, SiteParts, current_address, features_of_host,
    own_names, ports, settle_entry, tell_features,
};
use crate::config::Config;
use crate::events::Events;
use crate::guests::{GuestError, Guests, MigrationLinks, Resources};
use crate::metrics::history::History;
use crate::metrics::{Collector, Metrics};
use crate::network::{NetworkError, Networks};
use crate::security::{
    AccountError, Accounts, AuditLog, Authority, AuthorityError, LoginLimit, NodeCertificate,
};
use crate::storage::{Pools, PoolsConfig, StorageError};
use crate::store::{SqliteStore, Store, StoreError};
use crate::supervisor::{Direct, VmmUserError, containment, host_goes_down, vmm_user};
use crate::tasks::Tasks;
use crate::update::{UpdateError, UpdateParts, Updates, unfinished};
use admin_context::AdminContext;
use renewal::Renewal;
use state::{State, file_error};

/// Who root is on its own node: what `pindah` uses if nothing else is said.
pub const ADMIN_CONTEXT: &str = "admin.json";

/// How long a node's start waits for its cluster's majority.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(5);
/// How long what needs the majority waits for the next try.
const RETRY: Duration = Duration::from_secs(2);

/// How long pools that nobody uses may take to be unmounted when the agent ends.
const LEAVE_DEADLINE: Duration = Duration::from_secs(3);

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A file or directory.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another agent has the state directory.
    #[error("another pindahd has {0}; give this one its own --state-dir")]
    InUse(PathBuf),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The guests.
    #[error(transparent)]
    Guests(#[from] GuestError),
    /// The first token.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The user that VMMs run as.
    #[error(transparent)]
    VmmUser(#[from] VmmUserError),
    /// The networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The updates.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The API.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// A node that serves.
pub struct Node {
    running: Running,
    /// The API for nodes: it goes when this does.
    _for_nodes: Option<Running>,
    site: Site,
    pools: Pools,
    history: History,
    /// Held as long as we live.
    _lock: fs::File,
}

/// What comes after a node's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    End,
    /// The same node, which has entered or left a cluster.
    BeginAnew,
}

impl Node {
    /// Starts a node: finds its guests, starts those that should run, serves its API.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let vmm_user = vmm_user(config.vmm_user.as_deref())?;
        let (state, lock) = State::open(&config.state_dir)?;
        let mut config = config.clone();
        let membership = cluster_place(&mut config).await?;
        let authority = Authority::open(&state.path("private"))?;
        let address = membership.as_ref().map(|membership| membership.address);
        let names = own_names(&config, address).await;
        let certificate = authority.issue(&names)?;
        let records = Records::open(&config, &state, membership, &certificate).await?;
        let store = Arc::clone(&records.store);
        let events = Events::new(&config.node);
        let tasks = Tasks::new(
            &config.node,
            state.path("tasks"),
            Arc::clone(&store),
            events.clone(),
        );
        recover_tasks(&config, &tasks, &store).await?;
        let pools = Pools::open(PoolsConfig {
            node: config.node.clone(),
            state_dir: config.state_dir.clone(),
            default_pool: config.default_pool.clone(),
            store: Arc::clone(&store),
        });
        let pools = pools.await?;
        let member = records.member.as_ref();
        let witness = member.is_some_and(|member| member.membership.witness);
        let networks = Networks::open(
            &config.node,
            &config.state_dir,
            config.network.as_ref(),
            Arc::clone(&store),
            !witness,
        );
        let networks = networks.await?;
        tokio::spawn(networks.clone().keep());
        let guests = Guests::new(Resources {
            node: config.node.clone(),
            directory: state.path("guests"),
            stop_deadline: config.stop_deadline,
            reserved_memory_mib: config.reserved_memory_mib,
            store: Arc::clone(&store),
            presence: member.map(|member| member.presence.clone()),
            migration: member.map(|member| MigrationLinks {
                peers: member.peers.clone(),
                address: config
                    .migration_address
                    .unwrap_or(member.membership.address),
                ports: config.arrival_ports.clone(),
                keys: member.etcd.directory.clone(),
                turns: Arc::new(Semaphore::new(config.migrations_at_once)),
            }),
            witness,
            supervisor: Direct::new(config.vmm.clone()).as_user(vmm_user),
            containment: containment(),
            pools: pools.clone(),
            networks,
            tasks: tasks.clone(),
            events: events.clone(),
            metrics: Metrics::default(),
        });
        guests.recover(state.host_restarted()?).await?;
        tokio::spawn(guests.clone().resume_drain());
        tokio::spawn(guests.clone().keep_console_logs_short());
        tokio::spawn(tasks.clone().keep_few());
        let history = History::new(&state.path("private/history.db"));
        let told = (guests.metrics().clone(), history.clone(), events.clone());
        let interval = config.metrics_interval;
        tokio::spawn(Collector::new(told, guests.clone(), pools.clone(), interval).run());
        let updates = Updates::open(UpdateParts {
            node: config.node.clone(),
            state_dir: config.state_dir.clone(),
            store: Arc::clone(&store),
            tasks: tasks.clone(),
            guests: guests.clone(),
            peers: member.map(|member| member.peers.clone()),
            witness,
        })?;
        if let Some(member) = member {
            if !member.membership.witness {
                let (vmm, store) = (config.vmm.clone(), Arc::clone(&store));
                let node = config.node.clone();
                tokio::spawn(async move {
                    if let Some(features) = features_of_host(&vmm).await {
                        tell_features(store, node, features).await;
                    }
                });
            }
            let reporter = Reporter {
                node: config.node.clone(),
                presence: member.presence.clone(),
                store: Arc::clone(&store),
                guests: guests.clone(),
                pools: pools.clone(),
                updates: updates.clone(),
                events: events.clone(),
            };
            tokio::spawn(reporter.run());
        }
        let site = Site::new(SiteParts {
            config: config.clone(),
            store: Arc::clone(&store),
            sqlite: records.sqlite,
            member: records.member,
            guests: guests.clone(),
            tasks: tasks.clone(),
        });
        let accounts = Accounts::new(Arc::clone(&store));
        let audit_path = state.path("audit.log");
        let audit = AuditLog::open(&audit_path).map_err(file_error("open", &audit_path))?;
        let api = Api::new(Parts {
            node: config.node.clone(),
            guests,
            tasks,
            events,
            pools: pools.clone(),
            history: history.clone(),
            accounts: accounts.clone(),
            login_limit: LoginLimit::default(),
            audit,
            store,
            site: site.clone(),
            updates: updates.clone(),
        });
        let (running, for_nodes) = serve(&config, api, &site, &authority, &certificate, names)?;
        let context = AdminContext {
            path: state.path(ADMIN_CONTEXT),
            accounts,
            authority: authority.pem().to_owned(),
            address: running.address(),
        };
        context.write_soon(site.member.is_some()).await?;
        tracing::info!("node {} serves on {}", config.node, running.address());
        tokio::spawn(updates.resume());
        Ok(Self {
            running,
            _for_nodes: for_nodes,
            site,
            pools,
            history,
            _lock: lock,
        })
    }

    /// Serves until `end` does, or until the node must begin anew. Guests run on, unless the host goes
    /// down.
    ///
    /// # Errors
    /// [`ServeError::Ended`].
    pub async fn until(self, end: impl Future<Output = ()>) -> Result<Next, ServeError> {
        let mut next = Next::End;
        let ended = async {
            tokio::select! {
                () = end => {}
                () = self.site.restarted() => next = Next::BeginAnew,
            }
        };
        self.running.until(ended).await?;
        self.history.close().await;
        if next == Next::End {
            if host_goes_down().await {
                self.site.guests.shut_down_with_host().await;
            } else {
                tracing::info!("ending; guests run on");
            }
        }
        let leave = async {
            match self.site.guests.pools_in_use().await {
                Ok(used) => self.pools.leave(&used).await,
                Err(error) => tracing::warn!("pools stay mounted: {}", chain(&error)),
            }
        };
        // What is not unmounted by then is found by the next agent.
        let _ = tokio::time::timeout(LEAVE_DEADLINE, leave).await;
        Ok(next)
    }
}

/// The node's place in its cluster, if it is in one; its name and address are then what they were
/// there.
async fn cluster_place(config: &mut Config) -> Result<Option<Membership>, StartError> {
    let Some(mut membership) = settle_entry(config).await? else {
        return Ok(None);
    };
    config.node.clone_from(&membership.node);
    let address = current_address(config, membership.address).await;
    if address != membership.address {
        tracing::warn!(
            "this node was at {} and is at {address} now",
            membership.address
        );
        membership.address = address;
        let state_dir = &config.state_dir;
        let saved = membership.save(state_dir);
        saved.map_err(file_error("write", state_dir))?;
    }
    Ok(Some(membership))
}

/// Where the node's records are.
struct Records {
    store: Arc<dyn Store>,
    sqlite: Option<SqliteStore>,
    member: Option<Member>,
}

impl Records {
    async fn open(
        config: &Config,
        state: &State,
        membership: Option<Membership>,
        certificate: &NodeCertificate,
    ) -> Result<Self, StartError> {
        let Some(membership) = membership else {
            let sqlite = SqliteStore::open(&state.path("private/store.db"))?;
            return Ok(Self {
                store: Arc::new(sqlite.clone()),
                sqlite: Some(sqlite),
                member: None,
            });
        };
        let member = Member::start(config, membership, certificate).await?;
        member.store.settled(MAJORITY_PATIENCE).await;
        Ok(Self {
            store: Arc::new(member.store.clone()),
            sqlite: None,
            member: Some(member),
        })
    }
}

/// Without a majority it is done when there is one again.
async fn recover_tasks(
    config: &Config,
    tasks: &Tasks,
    store: &Arc<dyn Store>,
) -> Result<(), StartError> {
    let (config, tasks, store) = (config.clone(), tasks.clone(), Arc::clone(store));
    let recover = async move || {
        let unfinished = unfinished(&config.node, &config.state_dir, &store).await?;
        tasks.recover(&unfinished).await
    };
    match recover().await {
        Err(StoreError::NoMajority) => {
            tokio::spawn(async move {
                while recover().await.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            });
            Ok(())
        }
        recovered => Ok(recovered?),
    }
}

/// The API for everybody and, in a cluster, that for nodes; their certificates renew themselves.
fn serve(
    config: &Config,
    api: Api,
    site: &Site,
    authority: &Authority,
    certificate: &NodeCertificate,
    names: Vec<String>,
) -> Result<(Running, Option<Running>), StartError> {
    let server = Server::listen(config.listen, certificate.server()?)?;
    let mut renewal = Renewal {
        config: config.clone(),
        site: site.clone(),
        authority: Authority::from_pem(authority.pem().to_owned(), authority.key_pem().to_owned())?,
        names,
        everybody: server.tls(),
        nodes: None,
    };
    let mut for_nodes = None;
    if site.member.is_some() {
        let mut listen = config.listen;
        listen.set_port(ports(config)?.nodes);
        let server = Server::listen(listen, certificate.server_for_nodes()?)?;
        renewal.nodes = Some(server.tls());
        for_nodes = Some(server.serve(api.clone().router_for_nodes())?);
    }
    let running = server.serve(api.router())?;
    tokio::spawn(renewal.run());
    Ok((running, for_nodes))
}
