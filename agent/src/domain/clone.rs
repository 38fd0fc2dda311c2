//! A copy of a guest, which is somebody else.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::mac::derived_mac;
use super::spec::tap_name;
use super::{Guest, GuestName, PoolName, Wanted};

/// A copy of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneSpec {
    /// Its name: unique.
    pub name: GuestName,
    /// The pool that its disks go to; absent: the ones that the original's are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The node that it is to be on, if its disks go to shared pools; absent: the original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl CloneSpec {
    /// The copy's record, incomplete: all settings are the original's; UUID, and with it the MAC
    /// addresses and what cloud-init takes for a new machine, are its own.
    pub fn plan(&self, original: &Guest, uuid: Uuid, now_unix_ms: u64) -> Guest {
        let mut clone = original.clone();
        clone.uuid = uuid;
        clone.name = self.name.clone();
        for (index, interface) in clone.interfaces.iter_mut().enumerate() {
            interface.mac = derived_mac(uuid, index);
            interface.tap = tap_name(uuid, index);
        }
        for disk in &mut clone.disks {
            (disk.spare, disk.spare_format) = (None, None);
            disk.growing_to_mib = None;
            if let Some(pool) = &self.pool {
                disk.volume.pool = pool.clone();
            }
        }
        clone.wanted = Wanted::Stopped;
        clone.moving_to = None;
        clone.epoch = 0;
        clone.incomplete = true;
        clone.template = false;
        clone.created_unix_ms = now_unix_ms;
        clone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::GuestSpec;

    #[test]
    fn clone_has_the_settings_and_an_identity_of_its_own() {
        let spec: GuestSpec = serde_json::from_str(
            r#"{"name": "web", "memory_mib": 512, "notes": "n", "disks": [{"size_mib": 1}],
                "interfaces": [{"mac": "52:54:00:00:00:09"}, {}]}"#,
        )
        .unwrap();
        let local = PoolName::local();
        let mut original = spec
            .plan(Uuid::from_u128(1 << 100), "a", &local, 0)
            .unwrap()
            .guest;
        original.incomplete = false;
        original.template = true;
        original.wanted = Wanted::Running;
        original.epoch = 7;
        original.disks[0].spare = Some(local);
        original.disks[0].limits.iops = Some(500);
        let spec: CloneSpec = serde_json::from_str(r#"{"name": "web2", "pool": "nas"}"#).unwrap();
        let clone = spec.plan(&original, Uuid::from_u128(u128::MAX), 9);

        assert_eq!((clone.name.as_str(), clone.node.as_str()), ("web2", "a"));
        assert_eq!((clone.memory_mib, clone.notes.as_str()), (512, "n"));
        let disk = &clone.disks[0];
        assert_eq!((disk.volume.pool.as_str(), &disk.spare), ("nas", &None));
        assert_eq!(disk.limits.iops, Some(500));
        assert_eq!((clone.wanted, clone.epoch), (Wanted::Stopped, 0));
        assert!(clone.incomplete && !clone.template);
        for (one, other) in clone.interfaces.iter().zip(&original.interfaces) {
            assert_ne!(one.mac, other.mac);
            assert_ne!(one.tap, other.tap);
        }
    }
}
