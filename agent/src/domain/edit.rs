//! A change to a guest.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{check_cpus, check_memory, check_texts};
use super::{Autostart, CpuLimits, CrashPolicy, Guest, GuestName, Invalid};

/// What is to change; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuestEdit {
    /// A new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<GuestName>,
    /// Virtual CPUs: from the next start on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub cpus: Option<u8>,
    /// What it may take of its node's processors, all of it: at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limits: Option<CpuLimits>,
    /// RAM in MiB: from the next start on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 1_048_576)]
    pub memory_mib: Option<u64>,
    /// Whether and when it starts with its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostart: Option<Autostart>,
    /// What becomes of it when it crashes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_crash: Option<CrashPolicy>,
    /// Free labels, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeSet<String>>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

impl GuestEdit {
    /// The guest as it is then, and whether a running one must start anew for it.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn apply(&self, guest: &Guest) -> Result<(Guest, bool), Invalid> {
        let mut edited = guest.clone();
        let Self {
            name,
            cpus,
            cpu_limits,
            memory_mib,
            autostart,
            on_crash,
            tags,
            notes,
        } = self.clone();
        set(&mut edited.name, name);
        set(&mut edited.cpus, cpus);
        set(&mut edited.cpu_limits, cpu_limits);
        set(&mut edited.memory_mib, memory_mib);
        set(&mut edited.autostart, autostart);
        set(&mut edited.on_crash, on_crash);
        set(&mut edited.tags, tags);
        set(&mut edited.notes, notes);
        check_cpus(edited.cpus)?;
        edited.cpu_limits.check()?;
        check_memory(edited.memory_mib)?;
        check_texts(&edited.tags, &edited.notes)?;
        let restart = edited.cpus != guest.cpus || edited.memory_mib != guest.memory_mib;
        Ok((edited, restart))
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::GuestSpec;

    #[test]
    fn edit_changes_what_it_names_and_says_when_a_restart_is_needed() {
        let spec: GuestSpec = serde_json::from_str(
            r#"{"name":"web","memory_mib":512,"disks":[{"size_mib":1}],"notes":"old"}"#,
        )
        .unwrap();
        let guest = spec
            .plan(uuid::Uuid::nil(), "n", &crate::domain::PoolName::local(), 0)
            .unwrap()
            .guest;
        let edit = |json: &str| {
            serde_json::from_str::<GuestEdit>(json)
                .unwrap()
                .apply(&guest)
        };

        let (edited, restart) = edit(r#"{"notes":"new"}"#).unwrap();
        assert_eq!((edited.notes.as_str(), restart), ("new", false));
        assert_eq!(edited.memory_mib, 512);
        let (edited, restart) = edit(r#"{"memory_mib":1024}"#).unwrap();
        assert_eq!((edited.memory_mib, restart), (1024, true));
        assert_eq!(edited.notes, "old");
        let (edited, restart) = edit(r#"{"cpu_limits":{"weight":50}}"#).unwrap();
        assert_eq!((edited.cpu_limits.weight, restart), (Some(50), false));
        assert_eq!(edit("{}").unwrap(), (guest.clone(), false));
        for (limits, must) in [
            (r#"{"weight":0}"#, "cpu_limits.weight = 0"),
            (r#"{"weight":10001}"#, "1 to 10000"),
            (r#"{"limit_percent":4}"#, "cpu_limits.limit_percent = 4"),
            (r#"{"limit_percent":6401}"#, "5 to 6400"),
        ] {
            let refused = edit(&format!(r#"{{"cpu_limits":{limits}}}"#)).unwrap_err();
            assert!(refused.to_string().contains(must), "{refused}");
        }
        assert!(edit(r#"{"cpus":65}"#).is_err());
    }
}
