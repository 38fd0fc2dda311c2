//! Bridge and taps, over rtnetlink(7) and the tun driver.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use super::NetworkError;
use crate::config::NetworkConfig;

/// `EEXIST` and `ENODEV`, as netlink gives them.
const EXISTS: i32 = -17;
const NO_DEVICE: i32 = -19;

/// The kernel's links.
pub(super) struct Links {
    handle: Handle,
}

impl Links {
    /// Must be called inside a tokio runtime.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        match request.execute().try_next().await {
            Ok(link) => Ok(link),
            Err(error) if code(&error) == Some(NO_DEVICE) => Ok(None),
            Err(source) => Err(failed("find", name, source)),
        }
    }

    async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let link = self.find(name).await?;
        link.map(|link| link.header.index)
            .ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
    }

    /// All addresses of all interfaces.
    pub(super) async fn addresses(&self) -> Result<Vec<IpAddr>, NetworkError> {
        let mut messages = self.handle.address().get().execute();
        let mut found = Vec::new();
        let failed = |source| failed("list the addresses of", "this host", source);
        while let Some(message) = messages.try_next().await.map_err(failed)? {
            found.extend(
                message
                    .attributes
                    .into_iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(address),
                        _ => None,
                    }),
            );
        }
        Ok(found)
    }

    /// The bridge, up and with its address.
    pub(super) async fn ensure_bridge(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let name = &config.bridge;
        match self.find(name).await? {
            Some(link) if !is_bridge(&link) => return Err(NetworkError::NoBridge(name.clone())),
            Some(_) => {}
            None => {
                let bridge = LinkBridge::new(name).build();
                let added = self.handle.link().add(bridge).execute().await;
                added.map_err(|source| failed("create bridge", name, source))?;
            }
        }
        let index = self.index(name).await?;
        let up = LinkUnspec::new_with_index(index).up().build();
        let changed = self.handle.link().change(up).execute().await;
        changed.map_err(|source| failed("bring up", name, source))?;
        let address = IpAddr::V4(config.address);
        let request = self.handle.address().add(index, address, config.prefix);
        match request.execute().await {
            Err(error) if code(&error) != Some(EXISTS) => {
                Err(failed("give its address to", name, error))
            }
            _ => Ok(()),
        }
    }

    /// A tap, up and at the bridge. One that is there already is kept, with who has it open.
    pub(super) async fn ensure_tap(&self, tap: &str, bridge: &str) -> Result<(), NetworkError> {
        if self.find(tap).await?.is_none() {
            create_tap(tap)?;
        }
        let controller = self.index(bridge).await?;
        let index = self.index(tap).await?;
        let link = LinkUnspec::new_with_index(index)
            .controller(controller)
            .up()
            .build();
        let changed = self.handle.link().change(link).execute().await;
        changed.map_err(|source| failed("connect", tap, source))
    }

    /// Removes an interface, if it is there.
    pub(super) async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.find(name).await? else {
            return Ok(());
        };
        let removed = self.handle.link().del(link.header.index).execute().await;
        removed.map_err(|source| failed("remove", name, source))
    }
}

/// It stays when the descriptor is closed: the VMM opens it by name.
fn create_tap(tap: &str) -> Result<(), NetworkError> {
    let built = tokio_tun::TunBuilder::new()
        .name(tap)
        .tap()
        .persist()
        .build();
    built.map(drop).map_err(|source| NetworkError::Tap {
        tap: tap.to_owned(),
        source,
    })
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    })
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(std::num::NonZero::get),
        _ => None,
    }
}

fn failed(action: &'static str, interface: &str, source: rtnetlink::Error) -> NetworkError {
    NetworkError::Netlink {
        action,
        interface: interface.to_owned(),
        source,
    }
}
