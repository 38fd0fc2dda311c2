//! A guest's network interface, and changes to it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::mac::parse_mac;
use super::{Firewall, Guest, Invalid, NetworkName, RateLimit, SpoofGuard, Vlan};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interface {
    /// Its name in the guest's configuration: `net0`, …
    pub id: String,
    /// The network that it is connected to.
    pub network: NetworkName,
    /// MAC address, `52:54:00:12:34:56`.
    pub mac: String,
    /// The tap on the node that runs it.
    pub tap: String,
    /// Its VLANs.
    #[serde(default)]
    pub vlan: Vlan,
    /// How fast it may be.
    #[serde(default)]
    pub rate_limit: RateLimit,
    /// Whose addresses it may send from.
    #[serde(default)]
    pub spoof_guard: SpoofGuard,
    /// What may pass.
    #[serde(default)]
    pub firewall: Firewall,
}

/// An interface of a new guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InterfaceSpec {
    /// The network that it is connected to; absent: the node's own.
    pub network: NetworkName,
    /// MAC address; absent: made from the guest's UUID.
    pub mac: Option<String>,
    /// Its VLANs; absent: what is untagged on the network.
    pub vlan: Vlan,
    /// How fast it may be.
    pub rate_limit: RateLimit,
    /// Whose addresses it may send from.
    pub spoof_guard: SpoofGuard,
    /// What may pass.
    pub firewall: Firewall,
}

/// What is to change of an interface; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InterfaceEdit {
    /// The network that it is connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// MAC address; only of a guest that is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its VLANs, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// How fast it may be, both directions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Whose addresses it may send from, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoof_guard: Option<SpoofGuard>,
    /// What may pass, all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall: Option<Firewall>,
}

impl Interface {
    /// Refuses what cannot be; `field` is what a request calls it.
    pub(super) fn check(&self, field: &str) -> Result<(), Invalid> {
        self.vlan.check(&format!("{field}.vlan"))?;
        self.rate_limit.check(&format!("{field}.rate_limit"))?;
        self.spoof_guard.check(&format!("{field}.spoof_guard"))?;
        self.firewall.check(&format!("{field}.firewall"))?;
        if self.network.is_of_node() && self.vlan != Vlan::default() {
            let must = "must be empty on the node's own network, which has no VLANs";
            let vlan = self.vlan.to_string();
            return Err(Invalid::text(format!("{field}.vlan"), &vlan, must));
        }
        Ok(())
    }
}

impl InterfaceEdit {
    /// The guest as it is then. `None`: it has no such interface.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn apply(&self, guest: &Guest, id: &str) -> Result<Option<Guest>, Invalid> {
        let mut edited = guest.clone();
        let mut interfaces = edited.interfaces.iter_mut();
        let Some(interface) = interfaces.find(|interface| interface.id == id) else {
            return Ok(None);
        };
        let Self {
            network,
            mac,
            vlan,
            rate_limit,
            spoof_guard,
            firewall,
        } = self.clone();
        if let Some(mac) = mac {
            interface.mac = parse_mac("mac", &mac)?;
        }
        set(&mut interface.network, network);
        set(&mut interface.vlan, vlan);
        set(&mut interface.rate_limit, rate_limit);
        set(&mut interface.spoof_guard, spoof_guard);
        set(&mut interface.firewall, firewall);
        interface.check(id)?;
        Ok(Some(edited))
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
    use crate::domain::PoolName;

    #[test]
    fn edit_changes_what_it_names_of_one_interface() {
        let spec: GuestSpec = serde_json::from_str(
            r#"{"name":"web","memory_mib":512,"disks":[{"size_mib":1}],
                "interfaces":[{},{"network":"lan","vlan":{"access":20}}]}"#,
        )
        .unwrap();
        let guest = spec
            .plan(uuid::Uuid::nil(), "n", &PoolName::local(), 0)
            .unwrap()
            .guest;
        let edit = |id: &str, json: &str| {
            let edit: InterfaceEdit = serde_json::from_str(json).unwrap();
            edit.apply(&guest, id).map_err(|error| error.to_string())
        };
        let edited = edit("net1", r#"{"rate_limit":{"rx_kbit_per_s":1000}}"#);
        let edited = edited.unwrap().unwrap();
        assert_eq!(edited.interfaces[0], guest.interfaces[0]);
        assert_eq!(edited.interfaces[1].vlan.access, Some(20));
        assert_eq!(edited.interfaces[1].rate_limit.rx_kbit_per_s, Some(1000));
        assert_eq!(edit("net2", "{}").unwrap(), None);
        for (id, json, expected) in [
            (
                "net0",
                r#"{"vlan":{"access":20}}"#,
                "net0.vlan = \"VLAN 20\"",
            ),
            ("net1", r#"{"network":"node"}"#, "which has no VLANs"),
            ("net1", r#"{"mac":"01:00:00:00:00:01"}"#, "unicast"),
            (
                "net1",
                r#"{"rate_limit":{"tx_kbit_per_s":1}}"#,
                "net1.rate_limit.tx_kbit_per_s = 1: must be 64 to",
            ),
            (
                "net1",
                r#"{"spoof_guard":{"enabled":false,"addresses":["10.0.0.1"]}}"#,
                "must be empty when the guard is off",
            ),
            (
                "net1",
                r#"{"spoof_guard":{"addresses":["224.0.0.1"]}}"#,
                "must be addresses of one machine",
            ),
        ] {
            let message = edit(id, json).unwrap_err();
            assert!(message.contains(expected), "{json} gives {message}");
        }
    }
}
