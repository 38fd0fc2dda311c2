//! All records in one file, and a cluster made of such a file: for the loss of the majority.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ClusterError, ClusterView, Membership, Site, address};
use crate::domain::is_label;
use crate::security::Authority;
use crate::store::{Entry, Revision, Store};

/// Version of the format.
const FORMAT: u32 = 1;
/// What is true only while its node is alive, or only for a short time.
const PASSING: [&str; 5] = [
    "nodes-alive/",
    "nodes-status/",
    "guests-status/",
    "idempotency/",
    "join-tokens/",
];

/// A backup. Whoever has it has the cluster's authority: it is as secret as that.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backup {
    format: u32,
    cluster: Uuid,
    authority: String,
    authority_key: String,
    records: Vec<BackupRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupRecord {
    key: String,
    value: serde_json::Value,
}

/// Whether a record is to be kept for ever.
fn lasts(entry: &Entry) -> bool {
    let passing = PASSING.iter().any(|prefix| entry.key.starts_with(prefix));
    let login = entry.key.starts_with("tokens/")
        && String::from_utf8_lossy(&entry.value).contains("\"name\":\"user:");
    !(passing || login)
}

impl Site {
    /// All records, as a file.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn backup(&self) -> Result<Vec<u8>, ClusterError> {
        let member = self.require_member()?;
        let authority = Authority::open(&self.private())?;
        let bad = |error: serde_json::Error| ClusterError::Backup(error.to_string());
        let page = self.store.list("", None, usize::MAX).await?;
        let records = page.entries.into_iter().filter(lasts).map(|entry| {
            Ok(BackupRecord {
                value: serde_json::from_slice(&entry.value).map_err(bad)?,
                key: entry.key,
            })
        });
        let backup = Backup {
            format: FORMAT,
            cluster: member.membership.cluster,
            authority: authority.pem().to_owned(),
            authority_key: authority.key_pem().to_owned(),
            records: records.collect::<Result<_, ClusterError>>()?,
        };
        serde_json::to_vec(&backup).map_err(bad)
    }

    /// Makes this node the only one of its cluster, with the records of `backup`, or those that it
    /// has seen last. The others join again. The node begins anew.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn recover(&self, backup: Option<&[u8]>) -> Result<ClusterView, ClusterError> {
        let _change = self.begin_change()?;
        if let Some(member) = &self.member
            && member.store.settled(std::time::Duration::ZERO).await
        {
            let text = "the cluster has its majority; there is nothing to recover";
            return Err(ClusterError::NodeState(text.to_owned()));
        }
        let backup = backup.map(read).transpose()?;
        let (cluster, entries) = match (&backup, &self.member) {
            (Some((backup, entries)), _) => (backup.cluster, entries.clone()),
            (None, Some(member)) => {
                let page = self.store.list("", None, usize::MAX).await?;
                let entries = page.entries.into_iter().filter(lasts).collect();
                (member.membership.cluster, entries)
            }
            (None, None) => return Err(ClusterError::NotIn),
        };
        if let Some(member) = &self.member {
            member.wipe_etcd().await?;
        } else if !self.guests.statuses().is_empty() {
            let hint = "only an empty node, or one of the cluster, recovers it";
            return Err(ClusterError::HasGuests(self.guests.statuses().len(), hint));
        }
        if let Some((backup, _)) = backup {
            let authority = Authority::from_pem(backup.authority, backup.authority_key)?;
            authority.install(&self.private())?;
        }
        let address = match &self.member {
            Some(member) => member.membership.address,
            None => address::choose(&self.config, None).await?,
        };
        let membership = Membership {
            cluster,
            node: self.config.node.clone(),
            address,
            witness: self
                .member
                .as_ref()
                .is_some_and(|member| member.membership.witness),
        };
        self.found(&membership, entries).await?;
        self.restart();
        Ok(ClusterView {
            id: cluster,
            node: membership.node,
            majority: true,
            members: Vec::new(),
            warnings: vec![
                "this node is the cluster's only one now; let the others join again".to_owned(),
            ],
        })
    }
}

fn read(bytes: &[u8]) -> Result<(Backup, Vec<Entry>), ClusterError> {
    let backup: Backup =
        serde_json::from_slice(bytes).map_err(|error| ClusterError::Backup(error.to_string()))?;
    if backup.format != FORMAT {
        let text = format!(
            "its format is {}, and this version knows {FORMAT}",
            backup.format
        );
        return Err(ClusterError::Backup(text));
    }
    let mut entries = Vec::with_capacity(backup.records.len());
    for record in &backup.records {
        let kind = record.key.split('/').next().unwrap_or_default();
        if !(is_label(kind) && record.key.len() < 512) {
            let text = format!("{:?} is no key", record.key);
            return Err(ClusterError::Backup(text));
        }
        entries.push(Entry {
            key: record.key.clone(),
            value: record.value.to_string().into_bytes(),
            revision: Revision(0),
        });
    }
    Ok((backup, entries))
}
