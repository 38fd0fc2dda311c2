//! A node, put together: from its configuration to an API that serves.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use crate::api::{self, Api, Parts, Running, ServeError};
use crate::causes::chain;
use crate::client::Context;
use crate::config::Config;
use crate::events::Events;
use crate::guests::{GuestError, Guests, Resources};
use crate::metrics::{Collector, Metrics};
use crate::network::{self, Network};
use crate::security::{
    AccountError, Accounts, AuditLog, Authority, AuthorityError, LoginLimit, NewToken, Role,
};
use crate::storage::{DirPool, StorageError};
use crate::store::{SqliteStore, Store, StoreError};
use crate::supervisor::Direct;
use crate::tasks::Tasks;

/// Who root is on its own node: what `pindah` uses if nothing else is said.
pub const ADMIN_CONTEXT: &str = "admin.json";

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
    /// Held as long as we live.
    _lock: fs::File,
}

/// The state directory's parts, and who may look into them.
struct State {
    root: PathBuf,
}

impl State {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The root is open for dnsmasq, which reads its own part without being root.
    fn open(root: &Path) -> Result<(Self, fs::File), StartError> {
        make_directory(root, 0o755)?;
        let state = Self {
            root: root.to_owned(),
        };
        for name in ["private", "guests", "tasks"] {
            make_directory(&state.path(name), 0o700)?;
        }
        let lock = state.lock()?;
        Ok((state, lock))
    }

    fn lock(&self) -> Result<fs::File, StartError> {
        let path = self.path("lock");
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = opened.open(&path).map_err(file_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse(self.root.clone())),
            Err(error) => Err(file_error("lock", &path)(error.into())),
        }
    }

    /// Whether the host has started since an agent last ran here.
    fn host_restarted(&self) -> Result<bool, StartError> {
        let source = Path::new("/proc/sys/kernel/random/boot_id");
        let now = fs::read_to_string(source).map_err(file_error("read", source))?;
        let path = self.path("boot_id");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, &now).map_err(file_error("write", &path))?;
        Ok(before != now)
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), StartError> {
    let mut builder = fs::DirBuilder::new();
    let created = builder.recursive(true).mode(mode).create(path);
    created.map_err(file_error("create", path))
}

fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::File {
        action,
        path,
        source,
    }
}

impl Node {
    /// Starts a node: finds its guests, starts those that should run, serves its API.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let (state, lock) = State::open(&config.state_dir)?;
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&state.path("private/store.db"))?);
        let events = Events::new(&config.node);
        let tasks = Tasks::new(
            &config.node,
            state.path("tasks"),
            Arc::clone(&store),
            events.clone(),
        );
        tasks.recover().await?;
        let pool = DirPool::open(&state.path("pool"))?;
        let guests = Guests::new(Resources {
            node: config.node.clone(),
            directory: state.path("guests"),
            stop_deadline: config.stop_deadline,
            reserved_memory_mib: config.reserved_memory_mib,
            store: Arc::clone(&store),
            supervisor: Direct::new(config.vmm.clone()),
            pool: pool.clone(),
            network: apply_network(config, &state).await,
            tasks: tasks.clone(),
            events: events.clone(),
            metrics: Metrics::default(),
        });
        guests.recover(state.host_restarted()?).await?;
        tokio::spawn(guests.clone().keep_console_logs_short());
        tokio::spawn(tasks.clone().keep_few());
        let metrics = guests.metrics().clone();
        let interval = config.metrics_interval;
        tokio::spawn(Collector::new(metrics, guests.clone(), pool.clone(), interval).run());

        let authority = Authority::open(&state.path("private"))?;
        let accounts = Accounts::new(Arc::clone(&store));
        let audit_path = state.path("audit.log");
        let audit = AuditLog::open(&audit_path).map_err(file_error("open", &audit_path))?;
        let api = Api::new(Parts {
            node: config.node.clone(),
            guests,
            tasks,
            events,
            pool,
            accounts: accounts.clone(),
            login_limit: LoginLimit::default(),
            audit,
            store,
        });
        let names = names(config).await;
        let running = api::serve(api, config.listen, &authority, &names)?;
        write_admin_context(&state, &accounts, &authority, running.address()).await?;
        tracing::info!("node {} serves on {}", config.node, running.address());
        Ok(Self {
            running,
            _lock: lock,
        })
    }

    /// Serves until `end` does. Guests run on.
    ///
    /// # Errors
    /// [`ServeError::Ended`].
    pub async fn until(self, end: impl Future<Output = ()>) -> Result<(), ServeError> {
        self.running.until(end).await
    }
}

/// A node without its network still runs and stops guests: the reason is in the log.
async fn apply_network(config: &Config, state: &State) -> Option<Network> {
    let network = config.network.as_ref()?;
    match Network::apply(network, &state.path("network")).await {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::error!("the node's own network cannot be set up: {}", chain(&error));
            None
        }
    }
}

/// What clients may call this node.
async fn names(config: &Config) -> Vec<String> {
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    if config.listen.ip().is_unspecified() {
        match network::host_addresses().await {
            Ok(found) => addresses.extend(found),
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    } else {
        addresses.push(config.listen.ip());
    }
    let mut names = vec![config.node.clone(), "localhost".to_owned()];
    names.extend(addresses.iter().map(ToString::to_string));
    names.sort();
    names.dedup();
    names
}

/// So that root on this node need not log in. A token that is good stays.
async fn write_admin_context(
    state: &State,
    accounts: &Accounts,
    authority: &Authority,
    address: SocketAddr,
) -> Result<(), StartError> {
    let path = state.path(ADMIN_CONTEXT);
    let before = Context::load(&path).ok();
    let mut token = before.map(|context| context.token);
    if let Some(text) = &token
        && accounts.authenticate(text).await.is_err()
    {
        token = None;
    }
    let token = if let Some(token) = token {
        token
    } else {
        let new = NewToken {
            name: "root".to_owned(),
            role: Role::Admin,
        };
        accounts.create_token(&new).await?.1
    };
    let ip = if address.ip().is_unspecified() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        address.ip()
    };
    let context = Context {
        server: format!("https://{}", SocketAddr::new(ip, address.port())),
        authority: authority.pem().to_owned(),
        token,
    };
    let bytes = serde_json::to_vec_pretty(&context)
        .map_err(|error| file_error("write", &path)(error.into()))?;
    let new = state.path("admin.json.new");
    let _ = fs::remove_file(&new);
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(&new);
    opened
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(file_error("write", &path))
}
