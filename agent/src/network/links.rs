//! Interfaces found, made, changed and removed, over rtnetlink(7) and the tun driver.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use super::NetworkError;
use super::link::Link;
use crate::config::NetworkConfig;
use crate::domain::Subnet;

/// `EEXIST`, `ENODEV` and `EOPNOTSUPP`, as netlink gives them.
const EXISTS: i32 = -17;
const NO_DEVICE: i32 = -19;
const NOT_SUPPORTED: i32 = -95;

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

    /// The interface with this name, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        match request.execute().try_next().await {
            Ok(link) => Ok(link.as_ref().map(Link::of)),
            Err(error) if code(&error) == Some(NO_DEVICE) => Ok(None),
            Err(source) => Err(failed("find", name, source)),
        }
    }

    /// All interfaces.
    pub(super) async fn all(&self) -> Result<Vec<Link>, NetworkError> {
        let links = self.handle.link().get().execute();
        let links: Result<Vec<LinkMessage>, _> = links.try_collect().await;
        let links =
            links.map_err(|source| failed("list the interfaces of", "this host", source))?;
        Ok(links.iter().map(Link::of).collect())
    }

    /// The interface with this name.
    pub(super) async fn get(&self, name: &str) -> Result<Link, NetworkError> {
        let link = self.find(name).await?;
        link.ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
    }

    async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        Ok(self.get(name).await?.index)
    }

    /// All addresses of all interfaces, or of one of them, with the lengths of their prefixes.
    pub(super) async fn addresses(
        &self,
        of: Option<&Link>,
    ) -> Result<Vec<(IpAddr, u8)>, NetworkError> {
        let mut request = self.handle.address().get();
        if let Some(link) = of {
            request = request.set_link_index_filter(link.index);
        }
        let mut messages = request.execute();
        let mut found = Vec::new();
        let failed = |source| failed("list the addresses of", "this host", source);
        while let Some(message) = messages.try_next().await.map_err(failed)? {
            let prefix = message.header.prefix_len;
            let mut attributes = message.attributes.into_iter();
            let address = attributes.find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(address),
                _ => None,
            });
            found.extend(address.map(|address| (address, prefix)));
        }
        Ok(found)
    }

    /// The bridge, up and with its address.
    pub(super) async fn ensure_bridge(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let name = &config.bridge;
        match self.find(name).await? {
            Some(link) if !link.is_bridge() => return Err(NetworkError::NoBridge(name.clone())),
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
        self.add_address(name, index, config.subnet).await
    }

    async fn add_address(
        &self,
        name: &str,
        index: u32,
        subnet: Subnet,
    ) -> Result<(), NetworkError> {
        let address = IpAddr::V4(subnet.address());
        let request = self.handle.address().add(index, address, subnet.prefix());
        match request.execute().await {
            Err(error) if code(&error) != Some(EXISTS) => {
                Err(failed("give its address to", name, error))
            }
            _ => Ok(()),
        }
    }

    /// Has an interface that is ours have this IPv4 address and no other, or none.
    pub(super) async fn set_address(
        &self,
        name: &str,
        wanted: Option<Subnet>,
    ) -> Result<(), NetworkError> {
        let index = self.index(name).await?;
        let mut messages = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        let unknown = |source| failed("list the addresses of", name, source);
        let mut old = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(unknown)? {
            let is_wanted = |subnet: Subnet| {
                let address = AddressAttribute::Address(subnet.address().into());
                message.header.prefix_len == subnet.prefix()
                    && message.attributes.contains(&address)
            };
            let is_ipv4 = message.header.family == AddressFamily::Inet;
            if is_ipv4 && !wanted.is_some_and(is_wanted) {
                old.push(message);
            }
        }
        for message in old {
            let removed = self.handle.address().del(message).execute().await;
            removed.map_err(|source| failed("take an address from", name, source))?;
        }
        match wanted {
            Some(subnet) => self.add_address(name, index, subnet).await,
            None => Ok(()),
        }
    }

    /// A tap; whether it was not there yet. One that is there is kept, with who has it open.
    pub(super) async fn ensure_tap(&self, tap: &str) -> Result<bool, NetworkError> {
        if self.find(tap).await?.is_some() {
            return Ok(false);
        }
        create_tap(tap)?;
        Ok(true)
    }

    /// The interface, up and a port of the bridge or bond; whether it was not that yet. One that is
    /// stays as it is: somebody may have switched it off.
    pub(super) async fn connect(&self, port: &str, to: &str) -> Result<bool, NetworkError> {
        let controller = self.index(to).await?;
        let now = self.get(port).await?;
        if now.controller == Some(controller) {
            return Ok(false);
        }
        let link = || LinkUnspec::new_with_index(now.index);
        // One after the other: before Linux 6.2 a message that says both brings the interface up
        // first, and a bond takes only what is down.
        for message in [link().controller(controller).build(), link().up().build()] {
            let changed = self.handle.link().change(message).execute().await;
            changed.map_err(|source| failed("connect", port, source))?;
        }
        Ok(true)
    }

    /// Makes an interface, of a kind that a kernel without `option` does not know.
    pub(super) async fn add(
        &self,
        name: &str,
        message: LinkMessage,
        option: &'static str,
    ) -> Result<(), NetworkError> {
        match self.handle.link().add(message).execute().await {
            Err(error) if code(&error) == Some(NOT_SUPPORTED) => Err(NetworkError::KernelLacks {
                interface: name.to_owned(),
                option,
            }),
            added => added.map_err(|source| failed("create", name, source)),
        }
    }

    /// Changes an interface.
    pub(super) async fn change(
        &self,
        name: &str,
        message: LinkMessage,
    ) -> Result<(), NetworkError> {
        let changed = self.handle.link().change(message).execute().await;
        changed.map_err(|source| failed("change", name, source))
    }

    /// Sets an interface's alias.
    pub(super) async fn set_alias(&self, name: &str, alias: String) -> Result<(), NetworkError> {
        let link = self.get(name).await?;
        if link.alias.as_ref() == Some(&alias) {
            return Ok(());
        }
        let message = LinkUnspec::new_with_index(link.index);
        let message = message.append_extra_attribute(LinkAttribute::IfAlias(alias));
        self.change(name, message.build()).await
    }

    /// Changes an interface by what the kernel may lack; whether it has it.
    pub(super) async fn try_change(
        &self,
        name: &str,
        message: LinkMessage,
    ) -> Result<bool, NetworkError> {
        match self.handle.link().change(message).execute().await {
            Ok(()) => Ok(true),
            Err(error) if code(&error) == Some(NOT_SUPPORTED) => Ok(false),
            Err(source) => Err(failed("change", name, source)),
        }
    }

    /// The kernel's routing socket, for what is not here.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Removes an interface, if it is there.
    pub(super) async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.find(name).await? else {
            return Ok(());
        };
        let removed = self.handle.link().del(link.index).execute().await;
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

pub(super) fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(std::num::NonZero::get),
        _ => None,
    }
}

pub(super) fn failed(
    action: &'static str,
    interface: &str,
    source: rtnetlink::Error,
) -> NetworkError {
    NetworkError::Netlink {
        action,
        interface: interface.to_owned(),
        source,
    }
}
