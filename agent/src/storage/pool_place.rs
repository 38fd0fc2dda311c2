//! From a pool's record to what its storage is on this node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::Directory;
use super::iscsi::IscsiTarget;
use super::iscsi_mark;
use super::mark::Mark;
use super::nfs::{self, NfsExport, NfsMount};
use super::pool::Place;
use super::store_lock::StoreLock;
use super::volume_group::VolumeGroup;
use super::{Pool, Pools};
use crate::domain::{PoolRecord, PoolSource};

impl Pools {
    /// Touches nothing yet.
    pub(super) fn make(&self, record: PoolRecord) -> Pool {
        let place = match record.source.clone() {
            PoolSource::Dir { path, .. } => Place::Files {
                directory: Arc::new(self.directory(&record, path)),
                mount: None,
            },
            PoolSource::Nfs {
                server,
                export,
                options,
                read_only,
                version,
            } => {
                let target = self.of_node(&record, nfs::directory);
                let export = NfsExport {
                    server,
                    export,
                    options,
                    read_only,
                    version,
                };
                let mut directory = self.directory(&record, target.clone());
                directory.is_media = read_only;
                Place::Files {
                    directory: Arc::new(directory),
                    mount: Some(NfsMount::new(export, target)),
                }
            }
            PoolSource::Iscsi {
                portals,
                target,
                lun,
                volume_group,
                chap_user,
            } => {
                let target = IscsiTarget {
                    portals,
                    target,
                    lun,
                    chap: chap_user.zip(record.chap_password.clone()),
                    mine: self.of_node(&record, iscsi_mark::directory),
                };
                Place::Volumes(Arc::new(self.volume_group(&record, volume_group, target)))
            }
        };
        Pool::new(record, place)
    }

    /// Where this node has what the agent knows of a pool.
    fn of_node(&self, record: &PoolRecord, part: impl Fn(&Path) -> PathBuf) -> PathBuf {
        part(&self.inner.config.state_dir).join(record.id.to_string())
    }

    fn directory(&self, record: &PoolRecord, root: PathBuf) -> Directory {
        let mark = Mark {
            pool: record.name.clone(),
            id: record.id,
        };
        let node = self.inner.config.node.clone();
        let mut directory = Directory::new(record.name.clone(), root, node, Some(mark));
        if !record.source.is_shared() {
            let known = |state_dir: &Path| state_dir.join("pools");
            directory.known = Some(self.of_node(record, known));
        }
        directory
    }

    fn volume_group(&self, record: &PoolRecord, name: String, target: IscsiTarget) -> VolumeGroup {
        let config = &self.inner.config;
        let store = Arc::clone(&config.store);
        let place = (target.target.as_str(), record.name.clone());
        let lock = StoreLock::new(store, place, &config.node);
        let id = (record.id, record.name.clone());
        VolumeGroup::new(id, config.node.clone(), name, target, lock)
    }
}
