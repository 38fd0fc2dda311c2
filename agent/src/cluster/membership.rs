//! What makes this node one of a cluster: a file in its state directory. From when it is written the
//! node's etcd may begin, which is the moment in which the node joins; when it is removed the node
//! has left.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files;

const FILE: &str = "cluster.json";

/// A node's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster.
    pub cluster: Uuid,
    /// The node's name, whatever its host is called later.
    pub node: String,
    /// Where other nodes find it.
    pub address: IpAddr,
    /// It votes and runs no guests.
    pub witness: bool,
}

/// A node's ports: four in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The REST API, for everybody.
    pub api: u16,
    /// The REST API, for nodes.
    pub nodes: u16,
    /// Its etcd, for itself.
    pub etcd: u16,
    /// Its etcd, for other etcds.
    pub etcd_peers: u16,
}

impl Ports {
    /// Those of a node whose API listens on `api`; `None` if there is no room for four.
    pub fn from_api(api: u16) -> Option<Self> {
        let etcd_peers = api.checked_add(3).filter(|_| api != 0)?;
        Some(Self {
            api,
            nodes: api + 1,
            etcd: api + 2,
            etcd_peers,
        })
    }

    /// Where etcds find the one at `address`.
    pub fn etcd_peer_url(self, address: IpAddr) -> String {
        format!("https://{}", SocketAddr::new(address, self.etcd_peers))
    }
}

impl Membership {
    /// That of the node with this state directory, if it is in a cluster.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(state_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(path(state_dir)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it, all or nothing, and not only into the host's memory.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        files::replace_by_json_durably(&path(state_dir), self)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// The disk's.
    pub fn remove(state_dir: &Path) -> io::Result<()> {
        match fs::remove_file(path(state_dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::File::open(state_dir)?.sync_all(),
        }
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_is_read_as_it_was_written_and_gone_when_removed() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Membership::load(directory.path()).unwrap(), None);
        let membership = Membership {
            cluster: Uuid::new_v4(),
            node: "node1".to_owned(),
            address: [10, 0, 0, 1].into(),
            witness: false,
        };
        membership.save(directory.path()).unwrap();
        let loaded = Membership::load(directory.path()).unwrap();
        assert_eq!(loaded, Some(membership));
        Membership::remove(directory.path()).unwrap();
        Membership::remove(directory.path()).unwrap();
        assert_eq!(Membership::load(directory.path()).unwrap(), None);
    }

    #[test]
    fn ports_follow_the_api() {
        assert_eq!(Ports::from_api(7480).unwrap().etcd_peers, 7483);
        assert_eq!(Ports::from_api(0), None);
        assert_eq!(Ports::from_api(65_533), None);
        let ports = Ports::from_api(7480).unwrap();
        let url = ports.etcd_peer_url("fd00::1".parse().unwrap());
        assert_eq!(url, "https://[fd00::1]:7483");
    }
}
