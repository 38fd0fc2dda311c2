//! Disks of a new guest, as the pools that they go to hold them.

use super::{Guest, GuestSpec, Invalid, PoolRecord, format_name};

impl GuestSpec {
    /// Makes the planned disks as their pools hold them. A pool that has no record holds all.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn fit_disks(&self, guest: &mut Guest, pools: &[PoolRecord]) -> Result<(), Invalid> {
        for (index, (disk, spec)) in guest.disks.iter_mut().zip(&self.disks).enumerate() {
            let pool = &disk.volume.pool;
            let Some(source) = pools.iter().find(|record| record.name == *pool) else {
                continue;
            };
            let source = &source.source;
            if !source.holds_disks() {
                let must = "must be a pool for disks: this one holds images, and is read-only";
                return Err(Invalid::text(
                    format!("disks[{index}].pool"),
                    pool.as_str(),
                    must,
                ));
            }
            let only = source.disk_format();
            if let (Some(only), Some(wanted)) = (only, spec.format)
                && only != wanted
            {
                let must = format!("must be {} in pool {pool}", format_name(only));
                let field = format!("disks[{index}].format");
                return Err(Invalid::text(field, format_name(wanted), must));
            }
            if let Some(only) = only {
                *disk = disk.in_format(only);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::PoolName;

    #[test]
    fn disk_is_made_as_its_pool_holds_it() {
        let pool = |name: &str, source: serde_json::Value| -> PoolRecord {
            let record = json!({ "id": Uuid::nil(), "name": name, "source": source,
                "created_unix_ms": 0 });
            serde_json::from_value(record).unwrap()
        };
        let iscsi = json!({ "kind": "iscsi", "portals": ["p"], "target": "t", "volume_group": "g",
            "lun": 1 });
        let iso = json!({ "kind": "nfs", "server": "s", "export": "/", "read_only": true });
        let pools = [pool("san", iscsi), pool("iso", iso)];
        let fit = |disk: serde_json::Value| {
            let body = json!({ "name": "web", "memory_mib": 512, "disks": [disk] });
            let spec: GuestSpec = serde_json::from_value(body).unwrap();
            let plan = spec.plan(Uuid::nil(), "n", &PoolName::local(), 0);
            let mut guest = plan.unwrap().guest;
            let fitted = spec.fit_disks(&mut guest, &pools);
            fitted.map(|()| guest.disks[0].volume.file.to_string())
        };
        let of = |disk| fit(disk).unwrap();
        assert_eq!(of(json!({ "size_mib": 1 })), "disk0.qcow2");
        assert_eq!(of(json!({ "size_mib": 1, "pool": "san" })), "disk0.raw");
        let raw = json!({ "size_mib": 1, "pool": "san", "format": "raw" });
        assert_eq!(of(raw), "disk0.raw");
        for (disk, expected) in [
            (
                json!({ "size_mib": 1, "pool": "san", "format": "qcow2" }),
                "disks[0].format = \"qcow2\": must be raw in pool san",
            ),
            (
                json!({ "size_mib": 1, "pool": "iso" }),
                "disks[0].pool = \"iso\": must be a pool for disks",
            ),
        ] {
            let error = fit(disk).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
