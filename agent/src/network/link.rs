//! What the kernel says of an interface.

use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

/// An interface of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Free text, by which we know what is ours.
    pub(super) alias: Option<String>,
    /// The bridge or bond that it is a port of.
    pub(super) controller: Option<u32>,
    pub(super) up: bool,
    pub(super) loopback: bool,
    /// Whether something is at its other end.
    pub(super) carrier: bool,
    kind: Option<InfoKind>,
    bridge: Vec<InfoBridge>,
}

impl Link {
    pub(super) fn of(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Controller(index) if *index != 0 => link.controller = Some(*index),
                LinkAttribute::OperState(state) => {
                    link.carrier = matches!(state, State::Up | State::Unknown);
                }
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.note(info)),
                _ => {}
            }
        }
        link
    }

    fn note(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.clone()),
            LinkInfo::Data(InfoData::Bridge(bridge)) => {
                self.bridge.clone_from(bridge);
            }
            _ => {}
        }
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.kind == Some(InfoKind::Bridge)
    }

    /// The VLAN that a bridge gives to untagged frames of a new port, if it does.
    pub(super) fn default_pvid(&self) -> Option<u16> {
        let mut options = self.bridge.iter();
        options.find_map(|option| match option {
            InfoBridge::VlanDefaultPvid(id) if *id != 0 => Some(*id),
            _ => None,
        })
    }

    /// Whether it is a bridge that looks at VLANs.
    pub(super) fn filters_vlans(&self) -> bool {
        self.bridge.contains(&InfoBridge::VlanFiltering(true))
    }
}
