//! Which VLANs a port of a bridge carries.

use rtnetlink::packet_route::link::{BridgeVlanInfoFlags, LinkMessage};
use rtnetlink::{LinkBridgeVlan, LinkMessageBuilder};

use super::NetworkError;
use super::link::Link;
use super::links::{Links, failed};
use crate::domain::{Vlan, VlanRange};

/// The largest VLAN (IEEE 802.1Q, table 9-2).
const LAST: u16 = 4094;

/// VLANs in a row, and how their frames leave the port.
type Carried = (VlanRange, BridgeVlanInfoFlags);

/// The port, an uplink, carries these too, with their tags. It carries only what guests of this node
/// have: some network cards cannot be told of all VLANs that there are. What is untagged stays so.
pub(super) async fn admit(
    links: &Links,
    port: &str,
    bridge: &Link,
    vlan: &Vlan,
) -> Result<(), NetworkError> {
    let index = links.get(port).await?.index;
    for carried in admitted(vlan, bridge.default_pvid()) {
        let set = links.handle().link().set(message(index, &[carried]));
        let set = set.execute().await;
        set.map_err(|source| failed("set the VLANs of", port, source))?;
    }
    Ok(())
}

fn admitted(vlan: &Vlan, default: Option<u16>) -> Vec<Carried> {
    let access = vlan.access.filter(|id| Some(*id) != default);
    let access = access.map(|id| VlanRange {
        first: id,
        last: id,
    });
    let trunk = vlan.trunk.iter().copied();
    // What has no tag out there has none in a trunk either, but must not lose its place.
    let trunk = trunk.flat_map(|range| without(range, default));
    trunk
        .chain(access)
        .map(|range| (range, BridgeVlanInfoFlags::empty()))
        .collect()
}

fn without(range: VlanRange, id: Option<u16>) -> Vec<VlanRange> {
    let Some(id) = id.filter(|id| (range.first..=range.last).contains(id)) else {
        return vec![range];
    };
    let mut parts = Vec::new();
    if range.first < id {
        let (first, last) = (range.first, id - 1);
        parts.push(VlanRange { first, last });
    }
    if id < range.last {
        let (first, last) = (id + 1, range.last);
        parts.push(VlanRange { first, last });
    }
    parts
}

/// The port carries these and no others: a tap.
pub(super) async fn set(
    links: &Links,
    port: &str,
    bridge: &Link,
    vlan: &Vlan,
) -> Result<(), NetworkError> {
    carry(links, port, &carried(vlan, bridge.default_pvid())).await
}

fn untagged(id: u16) -> Carried {
    let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    (
        VlanRange {
            first: id,
            last: id,
        },
        flags,
    )
}

fn carried(vlan: &Vlan, default: Option<u16>) -> Vec<Carried> {
    let mut carried: Vec<Carried> = vlan
        .trunk
        .iter()
        .map(|&range| (range, BridgeVlanInfoFlags::empty()))
        .collect();
    let access = if vlan.trunk.is_empty() {
        vlan.access.or(default)
    } else {
        vlan.access
    };
    carried.extend(access.map(untagged));
    carried.sort_by_key(|(range, _)| range.first);
    carried
}

/// First added, then taken away: what stays is never interrupted.
async fn carry(links: &Links, port: &str, carried: &[Carried]) -> Result<(), NetworkError> {
    let index = links.get(port).await?.index;
    let failed = |source| failed("set the VLANs of", port, source);
    if !carried.is_empty() {
        let set = links.handle().link().set(message(index, carried));
        set.execute().await.map_err(failed)?;
    }
    let others = others(carried);
    if !others.is_empty() {
        let delete = links.handle().link();
        let delete = delete.del_with_message(message(index, &others));
        delete.execute().await.map_err(failed)?;
    }
    Ok(())
}

/// All VLANs that are not `carried`, which is in order.
fn others(carried: &[Carried]) -> Vec<Carried> {
    let mut others = Vec::new();
    let mut next = 1;
    for (range, _) in carried {
        if next < range.first {
            let last = range.first - 1;
            others.push((
                VlanRange { first: next, last },
                BridgeVlanInfoFlags::empty(),
            ));
        }
        next = range.last + 1;
    }
    if next <= LAST {
        let range = VlanRange {
            first: next,
            last: LAST,
        };
        others.push((range, BridgeVlanInfoFlags::empty()));
    }
    others
}

fn message(index: u32, carried: &[Carried]) -> LinkMessage {
    let port = LinkBridgeVlan::new(index);
    let add = |port: LinkMessageBuilder<LinkBridgeVlan>, (range, flags): &Carried| {
        if range.first == range.last {
            port.vlan(range.first, *flags)
        } else {
            port.vlan_range_start(range.first, *flags)
                .vlan_range_end(range.last, *flags)
        }
    };
    carried.iter().fold(port, add).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(carried: &[Carried]) -> Vec<String> {
        carried.iter().map(|(range, _)| range.to_string()).collect()
    }

    #[test]
    fn port_carries_what_its_interface_has_and_loses_the_rest() {
        for (vlan, keeps, loses) in [
            ("{}", vec!["1"], vec!["2-4094"]),
            (r#"{"access":20}"#, vec!["20"], vec!["1-19", "21-4094"]),
            (
                r#"{"access":4094,"trunk":["1","30-40"]}"#,
                vec!["1", "30-40", "4094"],
                vec!["2-29", "41-4093"],
            ),
            (r#"{"trunk":["1-4094"]}"#, vec!["1-4094"], vec![]),
        ] {
            let vlan: Vlan = serde_json::from_str(vlan).unwrap();
            let carried = carried(&vlan, Some(1));
            assert_eq!(ids(&carried), keeps);
            assert_eq!(ids(&others(&carried)), loses);
        }
        let vlan = Vlan::default();
        assert_eq!(ids(&carried(&vlan, None)), Vec::<String>::new());
    }

    #[test]
    fn uplink_carries_what_guests_have_and_keeps_what_is_untagged() {
        for (vlan, expected) in [
            ("{}", vec![]),
            (r#"{"access":1}"#, vec![]),
            (r#"{"access":20,"trunk":["30-40"]}"#, vec!["30-40", "20"]),
            (r#"{"trunk":["1-9"]}"#, vec!["2-9"]),
        ] {
            let vlan: Vlan = serde_json::from_str(vlan).unwrap();
            assert_eq!(ids(&admitted(&vlan, Some(1))), expected);
        }
        let range = VlanRange { first: 3, last: 9 };
        let parts = without(range, Some(5));
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        assert_eq!(parts, ["3-4", "6-9"]);
    }
}
