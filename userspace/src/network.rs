//! A network of its own for an instance: a pair of virtual interfaces (veth), one end on the host,
//! the other in the instance's network namespace, each with an address.
//!
//! The pair ends with the namespace, so nothing has to be undone. Packets of the instance reach the
//! host only: to let them go further is left to the host's administrator.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{InfoData, InfoVeth},
    },
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{listener::Listener, tree::HostPid};

/// What the names of the ends on the host begin with; a number follows.
const PREFIX: &str = "warmimg";

/// The end in the instance.
const INSIDE: &str = "eth0";

/// How many instances can have a network: as many as there are subnets of four addresses.
const NETWORKS: u16 = 1 << 14;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot enter the network namespace of the instance")]
    Enter(#[source] io::Error),
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    #[error("cannot {step}")]
    Netlink {
        step: &'static str,
        source: Box<rtnetlink::Error>,
    },
    #[error("all {NETWORKS} networks for instances are taken")]
    Exhausted,
}

/// Which network an instance is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// That of the host
    #[default]
    Host,
    /// One of its own, with an address that the host reaches it at
    Private,
}

/// The addresses of an instance in its own network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    /// None where the kernel has no IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// One of the networks, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet(u16);

impl Subnet {
    /// The host's end: the first address of four in 10.229.0.0/16.
    fn host_v4(self) -> Ipv4Addr {
        let base = u32::from(Ipv4Addr::new(10, 229, 0, 0));
        Ipv4Addr::from(base + u32::from(self.0) * 4 + 1)
    }

    fn inside_v4(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.host_v4()) + 1)
    }

    /// The host's end: in a subnet of a prefix for local use (RFC 4193).
    fn host_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0x6172, 0x6d69, self.0, 0, 0, 0, 1)
    }

    fn inside_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0x6172, 0x6d69, self.0, 0, 0, 0, 2)
    }

    /// Whether an address of the host is in it, or beside it in the same subnet.
    fn has(self, address: Ipv4Addr) -> bool {
        u32::from(address) / 4 == u32::from(self.host_v4()) / 4
    }
}

/// Where a listener of an image is in a network of its own: one on the loopback is on all
/// addresses there, or the host could not reach it.
pub fn opened(listener: &Listener) -> Listener {
    match listener {
        Listener::Tcp { address } if address.ip().is_loopback() => {
            let any = match address.ip() {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let address = SocketAddr::new(any, address.port());
            Listener::Tcp { address }
        }
        other => other.clone(),
    }
}

impl Addresses {
    /// Where the host reaches a listener of the instance.
    pub fn reach(&self, listener: &Listener) -> Listener {
        match listener {
            Listener::Tcp { address } if address.ip().is_unspecified() => {
                let ip = match (address.ip(), self.v6) {
                    (IpAddr::V6(_), Some(v6)) => v6.into(),
                    _ => self.v4.into(),
                };
                let address = SocketAddr::new(ip, address.port());
                Listener::Tcp { address }
            }
            other => other.clone(),
        }
    }
}

/// Connects the network namespace of a process with ours; returns its addresses.
///
/// # Errors
/// See [`NetworkError`].
pub async fn connect(process: HostPid) -> Result<Addresses, NetworkError> {
    let host = Netlink::open()?;
    let inside = Netlink::open_in(process)?;
    let has_v6 = Path::new("/proc/net/if_inet6").exists();
    let subnet = host.add_pair(process).await?;
    let name = format!("{PREFIX}{}", subnet.0);
    let v6 = |address: Ipv6Addr| has_v6.then_some(address);
    host.set_up(&name, Some(subnet.host_v4()), v6(subnet.host_v6()))
        .await?;
    inside.set_up("lo", None, None).await?;
    let addresses = Addresses {
        v4: subnet.inside_v4(),
        v6: v6(subnet.inside_v6()),
    };
    inside
        .set_up(INSIDE, Some(addresses.v4), addresses.v6)
        .await?;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().gateway(subnet.host_v4());
    inside.add_route(v4.build()).await?;
    if has_v6 {
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().gateway(subnet.host_v6());
        inside.add_route(v6.build()).await?;
    }
    Ok(addresses)
}

/// A netlink socket, and what drives it.
struct Netlink {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }

    /// Opens one in the network namespace of a process: a socket stays where it was made.
    fn open_in(process: HostPid) -> Result<Self, NetworkError> {
        let open = |path: String| fs::File::open(path).map_err(NetworkError::Enter);
        let own = open("/proc/self/ns/net".to_owned())?;
        let theirs = open(format!("/proc/{process}/ns/net"))?;
        let enter = |namespace: &fs::File| {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NetworkError::Enter(errno.into()))
        };
        enter(&theirs)?;
        let opened = Self::open();
        enter(&own)?;
        opened
    }

    /// Makes a pair with one end in the network namespace of a process, in the first subnet that is
    /// free.
    async fn add_pair(&self, process: HostPid) -> Result<Subnet, NetworkError> {
        let taken = self.addresses().await?;
        let is_free = |subnet: &Subnet| !taken.iter().any(|&address| subnet.has(address));
        for subnet in (0..NETWORKS).map(Subnet).filter(is_free) {
            let inside = LinkUnspec::new_with_name(INSIDE);
            let inside = inside.setns_by_pid(process.0 as u32).build();
            let name = format!("{PREFIX}{}", subnet.0);
            let pair = LinkVeth::new(&name, INSIDE);
            let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(inside)));
            match self.handle.link().add(pair.build()).execute().await {
                Ok(()) => return Ok(subnet),
                // Another was faster.
                Err(error) if errno(&error) == Some(libc::EEXIST) => {}
                Err(error) => return Err(failed("make a pair of interfaces")(error)),
            }
        }
        Err(NetworkError::Exhausted)
    }

    /// The addresses of version 4 of all interfaces.
    async fn addresses(&self) -> Result<Vec<Ipv4Addr>, NetworkError> {
        let found = self.handle.address().get().execute();
        let found = found.try_collect::<Vec<_>>().await;
        let messages = found.map_err(failed("list the addresses of this host"))?;
        let attributes = messages.into_iter().flat_map(|message| message.attributes);
        let addresses = attributes.filter_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V4(address))
            | AddressAttribute::Local(IpAddr::V4(address)) => Some(address),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Gives an interface its addresses, and brings it up.
    async fn set_up(
        &self,
        name: &str,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    ) -> Result<(), NetworkError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        let found = std::pin::pin!(found).try_next().await;
        let link = found.map_err(failed("find the interface"))?;
        let index = link.map_or(0, |link| link.header.index);
        let addresses = [v4.map(|ip| (ip.into(), 30)), v6.map(|ip| (ip.into(), 64))];
        for (address, prefix) in addresses.into_iter().flatten() {
            let address: IpAddr = address;
            let mut request = self.handle.address().add(index, address, prefix);
            // Nobody else can have it, and it takes a second to make sure.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            if address.is_ipv6() {
                request.message_mut().attributes.push(flags);
            }
            request.execute().await.map_err(failed("set an address"))?;
        }
        let up = LinkUnspec::new_with_index(index).up();
        let changed = self.handle.link().set(up.build()).execute().await;
        changed.map_err(failed("bring an interface up"))
    }

    async fn add_route(
        &self,
        route: rtnetlink::packet_route::route::RouteMessage,
    ) -> Result<(), NetworkError> {
        let added = self.handle.route().add(route).execute().await;
        added.map_err(failed("add the route to the host"))
    }
}

fn failed(step: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink {
        step,
        source: Box::new(source),
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.code?.get()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_four_addresses_of_its_own() {
        let (first, last) = (Subnet(0), Subnet(NETWORKS - 1));
        assert_eq!(first.host_v4(), Ipv4Addr::new(10, 229, 0, 1));
        assert_eq!(last.inside_v4(), Ipv4Addr::new(10, 229, 255, 254));
        assert!(first.has(Ipv4Addr::new(10, 229, 0, 3)));
        assert!(!first.has(Subnet(1).host_v4()) && !Subnet(1).has(first.inside_v4()));
    }

    #[test]
    fn listeners_on_the_loopback_are_reached_by_the_address_of_the_instance() {
        let addresses = Addresses {
            v4: Subnet(1).inside_v4(),
            v6: Some(Subnet(1).inside_v6()),
        };
        let reached = |text: &str| {
            let address = text.parse().unwrap();
            addresses
                .reach(&opened(&Listener::Tcp { address }))
                .to_string()
        };
        assert_eq!(reached("127.0.0.1:80"), "tcp:10.229.0.6:80");
        assert_eq!(reached("0.0.0.0:80"), "tcp:10.229.0.6:80");
        assert_eq!(reached("[::1]:80"), "tcp:[fd77:6172:6d69:1::2]:80");
        assert_eq!(reached("192.0.2.1:80"), "tcp:192.0.2.1:80");
    }
}
