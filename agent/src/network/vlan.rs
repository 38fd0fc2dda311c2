//! Which VLANs a port of a bridge carries.

use rtnetlink::LinkBridgeVlan;
use rtnetlink::packet_route::link::BridgeVlanInfoFlags;

use super::NetworkError;
use super::links::{Links, failed};

/// The VLAN of untagged frames, unless something else is said (Linux: `default_pvid` of a bridge).
pub(super) const UNTAGGED: u16 = 1;
/// The largest VLAN (IEEE 802.1Q, table 9-2).
const LAST: u16 = 4094;

/// The port carries all VLANs, tagged but for [`UNTAGGED`]: an uplink.
pub(super) async fn carry_all(links: &Links, port: &str) -> Result<(), NetworkError> {
    let index = links.get(port).await?.index;
    let tagged = BridgeVlanInfoFlags::empty();
    let untagged = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    let message = LinkBridgeVlan::new(index)
        .vlan(UNTAGGED, untagged)
        .vlan_range_start(UNTAGGED + 1, tagged)
        .vlan_range_end(LAST, tagged)
        .build();
    let set = links.handle().link().set(message).execute().await;
    set.map_err(|source| failed("set the VLANs of", port, source))
}
