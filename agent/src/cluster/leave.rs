//! A node goes: by itself, or because it is dead.

use super::member::mirror_path;
use super::{
    ClusterError, GuestStatus, Membership, NodeAlive, NodeCpu, NodeRecord, NodeStatus, Site,
};
use crate::domain::Guest;
use crate::security::Authority;
use crate::store::{Collection, Transaction};

impl Site {
    async fn guests_of(&self, node: &str) -> Result<usize, ClusterError> {
        let guests = Collection::<Guest>::new(self.store.clone()).all().await?;
        let here = guests.iter().filter(|stored| stored.value.node == node);
        Ok(here.count())
    }

    /// Takes this node out of its cluster. It begins anew, alone and empty.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn leave(&self) -> Result<(), ClusterError> {
        let _change = self.begin_change()?;
        let member = self.require_member()?;
        self.require_idle()?;
        let node = &member.membership.node;
        let guests = self.guests_of(node).await?;
        if guests > 0 {
            let hint = "move them to other nodes, or delete them";
            return Err(ClusterError::HasGuests(guests, hint));
        }
        let members = member.members();
        if members.list().await?.len() < 2 {
            let text = "this node is the cluster's only one; it cannot leave itself";
            return Err(ClusterError::NodeState(text.to_owned()));
        }
        // Our etcd takes no records once it is out, so they go first, and come back if it stays in.
        let record = self.nodes().get(node).await?;
        self.remove_records(node).await?;
        let url = member.etcd.ports.etcd_peer_url(member.etcd.address);
        if let Err(error) = members.remove(node, &url).await {
            if let Some(record) = record {
                self.nodes().create(node, &record.value).await?;
            }
            return Err(error);
        }
        let state_dir = &self.config.state_dir;
        Membership::remove(state_dir).map_err(|source| self.io(source))?;
        member.wipe_etcd().await?;
        Authority::remove(&self.private())?;
        for store in [mirror_path(state_dir), self.private().join("store.db")] {
            for suffix in ["", "-wal", "-shm"] {
                let mut path = store.clone().into_os_string();
                path.push(suffix);
                // Not all of them are there.
                let _ = std::fs::remove_file(path);
            }
        }
        self.restart();
        Ok(())
    }

    async fn remove_records(&self, node: &str) -> Result<(), ClusterError> {
        let mut remove = Transaction::new()
            .delete(Collection::<NodeRecord>::key(node))
            .delete(Collection::<NodeStatus>::key(node))
            .delete(Collection::<NodeCpu>::key(node))
            .delete(Collection::<NodeAlive>::key(node));
        let statuses = Collection::<GuestStatus>::new(self.store.clone());
        for status in statuses.all().await? {
            if status.value.node == node && remove.writes.len() < 100 {
                let key = Collection::<GuestStatus>::key(&status.value.uuid.to_string());
                remove = remove.delete(key);
            }
        }
        self.store.commit(remove).await?;
        Ok(())
    }

    /// Takes a dead node out of the cluster. Its guests' records stay: who deletes one by force
    /// gives it up.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn remove_node(&self, node: &str, force: bool) -> Result<(), ClusterError> {
        let _change = self.begin_change()?;
        let member = self.require_member()?;
        let refuse = |text: String| Err(ClusterError::NodeState(text));
        if node == member.membership.node {
            let text = "a node does not remove itself; `pindah cluster leave` takes it out";
            return refuse(text.to_owned());
        }
        let record = if crate::domain::is_label(node) {
            self.nodes().get(node).await?
        } else {
            None
        };
        let no_node = || ClusterError::NoNode(node.chars().take(64).collect());
        let record = record.ok_or_else(no_node)?.value;
        if member.peers.is_alive(node).await? {
            let text = "is alive; `pindah cluster leave` there takes it out";
            return refuse(format!("node {node} {text}"));
        }
        if !force {
            let guests = self.guests_of(node).await?;
            return refuse(format!(
                "node {node} has not been heard of; remove it by force only if it never comes \
                 back: the {guests} guests on its own disks are lost then"
            ));
        }
        let url = record.etcd_url().unwrap_or_default();
        member.members().remove(node, &url).await?;
        self.remove_records(node).await?;
        Ok(self.tasks.fail_those_of(node).await?)
    }
}
