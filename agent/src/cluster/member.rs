//! What runs on a node because it is in a cluster.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::etcd_process::{EtcdConfig, EtcdProcess};
use super::members::Members;
use super::membership::{Membership, Ports};
use super::presence::Presence;
use super::records::NodeRecord;
use super::{ClusterError, EtcdError};
use crate::config::Config;
use crate::peer::Peers;
use crate::security::NodeCertificate;
use crate::store::{
    ClusterStore, Collection, EtcdAccess, EtcdStore, Revision, Store, StoreError, Stored,
    Transaction,
};

/// What our keys in etcd begin with.
const PREFIX: &str = "pindah/";
/// How often somebody looks after nodes that enter, and our own record.
const CARE: Duration = Duration::from_secs(5);
/// How long a node that was let in may take to begin.
const ENTRY_DEADLINE: Duration = Duration::from_secs(120);

/// A node's part in a cluster.
pub struct Member {
    /// Its place.
    pub membership: Membership,
    /// The cluster's records.
    pub store: ClusterStore,
    /// Its lease.
    pub presence: Presence,
    /// The other nodes.
    pub peers: Peers,
    /// How its etcd is run.
    pub etcd: EtcdConfig,
    process: Mutex<Option<EtcdProcess>>,
}

/// The file with the copy of the cluster's records.
pub fn mirror_path(state_dir: &Path) -> PathBuf {
    state_dir.join("private/mirror.db")
}

/// How the etcd of a node with this place is run.
///
/// # Errors
/// [`ClusterError::Value`]: there is no room for its ports.
pub fn etcd_config(config: &Config, membership: &Membership) -> Result<EtcdConfig, ClusterError> {
    let listen = config.listen.ip();
    let listen = match membership.address {
        _ if !listen.is_unspecified() => listen,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Ok(EtcdConfig {
        directory: config.state_dir.join("etcd"),
        name: membership.node.clone(),
        token: membership.cluster.to_string(),
        address: membership.address,
        listen,
        ports: ports(config)?,
    })
}

/// The node's ports.
///
/// # Errors
/// [`ClusterError::Value`]: there is no room for them.
pub fn ports(config: &Config) -> Result<Ports, ClusterError> {
    Ports::from_api(config.listen.port()).ok_or_else(|| ClusterError::Value {
        field: "listen",
        value: config.listen.to_string(),
        must: "must have a fixed port with three free ones after it, for nodes and etcd",
    })
}

/// The records, by way of this node's etcd.
///
/// # Errors
/// [`StoreError`].
pub async fn connect(
    etcd: &EtcdConfig,
    certificate: &NodeCertificate,
) -> Result<EtcdStore, StoreError> {
    let access = EtcdAccess {
        endpoint: etcd.endpoint(),
        authority: certificate.authority.clone(),
        certificate: certificate.certificate.clone(),
        key: certificate.key.clone(),
    };
    EtcdStore::connect(&access, PREFIX).await
}

impl Member {
    /// Starts or adopts the node's etcd, and all that needs it.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(
        config: &Config,
        membership: Membership,
        certificate: &NodeCertificate,
    ) -> Result<Self, ClusterError> {
        let etcd = etcd_config(config, &membership)?;
        etcd.write_certificate(certificate)?;
        let process = EtcdProcess::resume(etcd.clone()).await;
        let store = connect(&etcd, certificate).await?;
        let store = ClusterStore::open(store, &mirror_path(&config.state_dir))?;
        let dynamic: Arc<dyn Store> = Arc::new(store.clone());
        let presence = Presence::new(Arc::clone(&dynamic), &membership.node);
        tokio::spawn(presence.clone().keep());
        let peers = Peers::new(&membership.node, dynamic, certificate)?;
        let member = Self {
            membership,
            store,
            presence,
            peers,
            etcd,
            process: Mutex::new(Some(process)),
        };
        tokio::spawn(care(member.caretaker()));
        Ok(member)
    }

    /// etcd's view of the cluster.
    pub fn members(&self) -> Members {
        Members::new(self.store.etcd().client())
    }

    /// Uses another certificate from now on. etcd takes it for each new connection.
    ///
    /// # Errors
    /// [`EtcdError`], [`crate::security::AuthorityError`].
    pub fn renew(&self, certificate: &NodeCertificate) -> Result<(), ClusterError> {
        self.etcd.write_certificate(certificate)?;
        Ok(self.peers.renew(certificate)?)
    }

    /// Ends the etcd for good and removes its data.
    ///
    /// # Errors
    /// [`EtcdError::File`].
    pub async fn wipe_etcd(&self) -> Result<(), EtcdError> {
        let process = self.process.lock();
        drop(process.unwrap_or_else(PoisonError::into_inner).take());
        self.etcd.wipe().await
    }

    fn caretaker(&self) -> Caretaker {
        Caretaker {
            store: self.store.clone(),
            members: self.members(),
            etcd: self.etcd.clone(),
            entering: HashMap::new(),
        }
    }
}

/// Looks after what a crash may have left half-done.
struct Caretaker {
    store: ClusterStore,
    members: Members,
    etcd: EtcdConfig,
    /// Since when we know of nodes that were let in and have not begun, by their record's revision.
    entering: HashMap<Revision, Instant>,
}

async fn care(mut caretaker: Caretaker) {
    loop {
        caretaker.store.settled(CARE).await;
        if let Err(error) = caretaker.look().await
            && !matches!(error, ClusterError::Store(StoreError::NoMajority))
        {
            tracing::debug!("looking after the members: {error}");
        }
        tokio::time::sleep(CARE).await;
    }
}

impl Caretaker {
    async fn look(&mut self) -> Result<(), ClusterError> {
        self.members.promote_learners().await?;
        self.settle_entries().await?;
        self.tell_new_address().await
    }

    fn nodes(&self) -> Collection<NodeRecord> {
        Collection::new(Arc::new(self.store.clone()))
    }

    /// A node that was let in is in once it votes. One that has not even begun after a while died on
    /// its way, and its place is free.
    async fn settle_entries(&mut self) -> Result<(), ClusterError> {
        let nodes = self.nodes().all().await?;
        let entering = nodes.into_iter().filter(|node| node.value.entering);
        let entering: Vec<_> = entering.collect();
        let mut known = std::mem::take(&mut self.entering);
        if entering.is_empty() {
            return Ok(());
        }
        let members = self.members.list().await?;
        for Stored { value, revision } in entering {
            let node = &value.name;
            match members.iter().find(|member| member.node == *node) {
                Some(member) if member.votes => {
                    let nodes = self.nodes();
                    let updated = nodes.update(node, |node| node.entering = false);
                    updated.await?;
                }
                Some(_) => {}
                None => {
                    let since = known.remove(&revision).unwrap_or_else(Instant::now);
                    if since.elapsed() < ENTRY_DEADLINE {
                        self.entering.insert(revision, since);
                        continue;
                    }
                    tracing::warn!("node {node} was let in and did not come; its place is free");
                    let url = value.etcd_url().unwrap_or_default();
                    self.members.remove_unstarted(&url).await?;
                    // Unless it was let in again this moment.
                    let key = Collection::<NodeRecord>::key(node);
                    let remove = Transaction::new().if_unchanged(&key, revision).delete(&key);
                    self.store.commit(remove).await?;
                }
            }
        }
        Ok(())
    }

    /// The node may have come up with another address than it had.
    async fn tell_new_address(&self) -> Result<(), ClusterError> {
        let url = self.etcd.ports.etcd_peer_url(self.etcd.address);
        self.members.set_url(&self.etcd.name, &url).await?;
        let records = self.nodes();
        let record = records.get(&self.etcd.name).await?;
        let (address, port) = (self.etcd.address, self.etcd.ports.api);
        if record.is_some_and(|record| record.value.address != address || record.value.port != port)
        {
            tracing::info!("this node is at {address} now");
            let updated = records.update(&self.etcd.name, |record| {
                record.address = address;
                record.port = port;
            });
            updated.await?;
        }
        Ok(())
    }
}
