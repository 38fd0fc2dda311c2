//! The engine of a cluster: etcd's own semantics, under one prefix.
//!
//! Every call ends within [`DEADLINE`]. etcd answers nothing that needs a majority when there is
//! none; such a call fails with [`StoreError::NoMajority`]. Reads are repeated until then: an
//! election, or the start of the member that we talk to, is waited for. A change is repeated only
//! when it certainly was not made.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions,
    Identity, KvClient, PutOptions, SortOrder, SortTarget, TlsOptions, Txn, TxnOp, WatchOptions,
    WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{
    Change, Entry, LeaseId, Outcome, Page, Revision, Store, StoreError, Transaction, VALUE_MAX,
    Watch, Write,
};

/// How long a call may take: an election on a slow disk fits in.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long the member may take to be connected to. It is on this host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long a try that failed waits for the next.
const RETRY: Duration = Duration::from_millis(200);
/// Changes that a watcher may lag behind.
const WATCHER_LAG: usize = 4_096;
/// Largest answer, in bytes: all records at once.
const ANSWER_MAX: usize = 512 << 20;

/// Where a member is, and how both sides prove themselves.
#[derive(Clone, Debug)]
pub struct EtcdAccess {
    /// `https://HOST:PORT`.
    pub endpoint: String,
    /// The cluster's authority, as PEM.
    pub authority: String,
    /// Our certificate, as PEM.
    pub certificate: String,
    /// Its key, as PEM.
    pub key: String,
}

/// A store in etcd.
#[derive(Clone)]
pub struct EtcdStore {
    client: Client,
    prefix: String,
}

impl EtcdStore {
    /// Uses the member at `access` for keys under `prefix`. It need not answer yet.
    ///
    /// # Errors
    /// [`StoreError::Engine`]: certificate or address cannot be used.
    pub async fn connect(access: &EtcdAccess, prefix: &str) -> Result<Self, StoreError> {
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&access.authority))
            .identity(Identity::from_pem(&access.certificate, &access.key));
        let options = ConnectOptions::new()
            .with_tls(tls)
            .with_connect_timeout(CONNECT_DEADLINE)
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(5));
        let client = Client::connect([access.endpoint.as_str()], Some(options)).await;
        Ok(Self {
            client: client.map_err(|error| StoreError::Engine(text(&error)))?,
            prefix: prefix.to_owned(),
        })
    }

    /// For what only etcd has: members, snapshots.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn kv(&self) -> KvClient {
        let kv = self.client.kv_client();
        kv.max_decoding_message_size(ANSWER_MAX)
    }

    /// Whether a majority answers within `patience`.
    pub async fn has_majority(&self, patience: Duration) -> bool {
        let options = GetOptions::new().with_count_only();
        let mut kv = self.kv();
        let read = kv.get(self.key("none"), Some(options));
        matches!(tokio::time::timeout(patience, read).await, Ok(Ok(_)))
    }

    fn entry(&self, kv: &etcd_client::KeyValue) -> Result<Entry, StoreError> {
        Ok(Entry {
            key: self.strip(kv.key())?,
            value: kv.value().to_vec(),
            revision: Revision(kv.mod_revision() as u64),
        })
    }

    fn strip(&self, key: &[u8]) -> Result<String, StoreError> {
        let key = std::str::from_utf8(key).ok();
        let key = key.and_then(|key| key.strip_prefix(&self.prefix));
        let foreign = || StoreError::Engine("etcd has a key that is not ours".to_owned());
        key.map(str::to_owned).ok_or_else(foreign)
    }

    fn compare(&self, condition: &super::Condition) -> Compare {
        let revision = condition.revision.map_or(0, |revision| revision.0 as i64);
        Compare::mod_revision(self.key(&condition.key), CompareOp::Equal, revision)
    }

    fn operation(&self, write: &Write) -> TxnOp {
        match write {
            Write::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.key(key), value.clone(), options)
            }
            Write::Delete { key } => TxnOp::delete(self.key(key), None),
        }
    }
}

/// An error with its causes, which etcd-client does not repeat.
fn text(error: &Error) -> String {
    match error {
        Error::TransportError(error) => crate::causes::chain(error),
        Error::GRpcStatus(status) => status.message().to_owned(),
        error => error.to_string(),
    }
}

/// What is to be done about an error.
enum Remedy {
    /// The call was not carried out; the same may go well later.
    Retry,
    /// It may have been carried out.
    Unsure,
    /// It fails for good.
    Fail(StoreError),
}

/// gRPC's numbers (`google.rpc.Code`).
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;

/// etcd's own words tell most (its `api/v3rpc/rpctypes/error.go`).
fn remedy(error: &Error) -> Remedy {
    let message = text(error);
    let says = |words: &str| message.contains(words);
    if says("lease not found") {
        return Remedy::Fail(StoreError::LeaseGone(LeaseId(0)));
    }
    if says("no leader") || says("leader changed") || says("not ready") || says("not started") {
        return Remedy::Retry;
    }
    match error {
        Error::GRpcStatus(status) => match i32::from(status.code()) {
            UNAVAILABLE | UNKNOWN | CANCELLED if never_sent(status) => Remedy::Retry,
            UNAVAILABLE | UNKNOWN | CANCELLED | DEADLINE_EXCEEDED => Remedy::Unsure,
            _ => Remedy::Fail(StoreError::Engine(message)),
        },
        Error::TransportError(_) | Error::IoError(_) => Remedy::Unsure,
        _ => Remedy::Fail(StoreError::Engine(message)),
    }
}

/// Whether there was no connection by which it could have been sent.
fn never_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let refused = error.downcast_ref::<std::io::Error>();
        if refused.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Calls until it goes well, fails for good, or [`DEADLINE`] is over.
async fn call<T, F: Future<Output = Result<T, Error>>>(
    repeatable: bool,
    call: impl Fn() -> F,
) -> Result<T, StoreError> {
    let end = Instant::now() + DEADLINE;
    loop {
        let Ok(answer) = tokio::time::timeout_at(end, call()).await else {
            return Err(StoreError::NoMajority);
        };
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match remedy(&error) {
            Remedy::Fail(error) => return Err(error),
            Remedy::Unsure if !repeatable => {
                tracing::warn!("etcd: {}", text(&error));
                return Err(StoreError::NoMajority);
            }
            Remedy::Retry | Remedy::Unsure if Instant::now() + RETRY >= end => {
                tracing::warn!("etcd: {}", text(&error));
                return Err(StoreError::NoMajority);
            }
            Remedy::Retry | Remedy::Unsure => tokio::time::sleep(RETRY).await,
        }
    }
}

/// The lease that an error speaks of.
fn of_lease(error: StoreError, lease: LeaseId) -> StoreError {
    match error {
        StoreError::LeaseGone(_) => StoreError::LeaseGone(lease),
        error => error,
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = self.key(key);
        let answer = call(true, || {
            let (mut kv, key) = (self.kv(), key.clone());
            async move { kv.get(key, None).await }
        });
        let answer = answer.await?;
        answer.kvs().first().map(|kv| self.entry(kv)).transpose()
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let prefix = self.key(prefix);
        // The first key that is greater than `after`.
        let from = after.map_or_else(|| prefix.clone(), |after| self.key(after) + "\0");
        let from = from.max(prefix.clone());
        let options = GetOptions::new()
            .with_range(range_end(&prefix))
            .with_sort(SortTarget::Key, SortOrder::Ascend)
            .with_limit(i64::try_from(limit).unwrap_or(0));
        let answer = call(true, || {
            let (mut kv, from, options) = (self.kv(), from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        });
        let answer = answer.await?;
        let entries = answer.kvs().iter().map(|kv| self.entry(kv));
        Ok(Page {
            entries: entries.collect::<Result<_, _>>()?,
            revision: revision(answer.header()),
            more: answer.more(),
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let mut lease = LeaseId(0);
        for write in &transaction.writes {
            if let Write::Put {
                key,
                value,
                lease: of,
            } = write
            {
                lease = of.unwrap_or(lease);
                if value.len() > VALUE_MAX {
                    return Err(StoreError::TooLarge {
                        key: key.clone(),
                        bytes: value.len(),
                    });
                }
            }
        }
        let conditions = transaction.conditions.iter();
        let conditions: Vec<_> = conditions.map(|one| self.compare(one)).collect();
        let writes = transaction.writes.iter().map(|one| self.operation(one));
        let swap = Txn::new()
            .when(conditions)
            .and_then(writes.collect::<Vec<_>>());
        let answer = call(false, || {
            let (mut kv, swap) = (self.kv(), swap.clone());
            async move { kv.txn(swap).await }
        });
        let answer = answer.await.map_err(|error| of_lease(error, lease))?;
        if answer.succeeded() {
            Ok(Outcome::Committed(revision(answer.header())))
        } else {
            Ok(Outcome::Conflict)
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let prefix = self.key(prefix);
        let options = WatchOptions::new()
            .with_range(range_end(&prefix))
            .with_start_revision(after.0 as i64 + 1);
        let mut stream = call(true, || {
            let client = self.client.watch_client();
            let mut client = client.max_decoding_message_size(ANSWER_MAX);
            let (prefix, options) = (prefix.clone(), options.clone());
            async move { client.watch(prefix, Some(options)).await }
        })
        .await?;
        let (sender, changes) = mpsc::channel(WATCHER_LAG);
        // A compacted start is told by the first answer, all else by its changes.
        let first = stream.message();
        let Ok(Ok(first)) = tokio::time::timeout(DEADLINE, first).await else {
            return Err(StoreError::NoMajority);
        };
        if first.as_ref().is_none_or(WatchResponse::canceled) {
            return Err(StoreError::Compacted(after));
        }
        let store = self.clone();
        tokio::spawn(async move {
            let mut next = first;
            while let Some(response) = next {
                if response.canceled() || !store.pass_on(&response, &sender).await {
                    return;
                }
                next = tokio::select! {
                    message = stream.message() => message.ok().flatten(),
                    () = sender.closed() => return,
                };
            }
        });
        Ok(Watch { changes })
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs().max(1) as i64;
        let answer = call(true, || {
            let mut client = self.client.lease_client();
            async move { client.grant(seconds, None).await }
        });
        Ok(LeaseId(answer.await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let kept = call(true, || {
            let mut client = self.client.lease_client();
            async move { client.keep_alive(lease.0).await }
        });
        kept.await.map_err(|error| of_lease(error, lease))?;
        Ok(())
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoked = call(true, || {
            let mut client = self.client.lease_client();
            async move { client.revoke(lease.0).await }
        });
        match revoked.await {
            Ok(_) | Err(StoreError::LeaseGone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl EtcdStore {
    /// Whether the reader still wants more.
    async fn pass_on(&self, response: &WatchResponse, sender: &mpsc::Sender<Change>) -> bool {
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let Ok(key) = self.strip(kv.key()) else {
                continue;
            };
            let change = Change {
                key,
                value: (event.event_type() == EventType::Put).then(|| kv.value().to_vec()),
                revision: Revision(kv.mod_revision() as u64),
            };
            if sender.send(change).await.is_err() {
                return false;
            }
        }
        true
    }
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision() as u64))
}

/// The first key after all that begin with `prefix`, which is not empty.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // No key has a byte of 0xff: they are UTF-8.
        *last += 1;
    }
    end
}
