//! Where each site of a configuration is to listen: a pure function of it and the images.

use std::{
    collections::BTreeMap,
    mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    config::{self, Config, Metrics},
    error::GatewayError,
};
use crate::{
    edit::{self, SocketTraits},
    listener::{Listener, Publish, Wanted, choose},
    store::Store,
};

/// What the socket for metrics is called beside the names of sites.
pub const METRICS: &str = "metrics";

/// Where a site listens, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The listener of the image.
    pub old: Listener,
    /// Port 0 if the kernel is to choose one.
    pub new: Listener,
    pub traits: SocketTraits,
}

/// Where the sites of a configuration are to listen.
pub fn places(store: &Store, config: &Config) -> Result<BTreeMap<String, Place>, GatewayError> {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for (name, site) in &config.sites {
        let place = place(store, name, site)?;
        let clashes = |(_, other): &(&String, &Place)| {
            !is_any_port(&place.new) && other.new.clashes_with(&place.new)
        };
        if let Some((other, _)) = places.iter().find(clashes) {
            return Err(GatewayError::Clash {
                first: other.clone(),
                second: name.clone(),
                listener: place.new,
            });
        }
        places.insert(name.clone(), place);
    }
    if let Some(listener) = config.metrics.as_ref().map(Metrics::listener)
        && let Some((name, _)) = places
            .iter()
            .find(|(_, place)| place.new.clashes_with(&listener))
    {
        return Err(GatewayError::Clash {
            first: name.clone(),
            second: METRICS.to_owned(),
            listener,
        });
    }
    Ok(places)
}

fn place(store: &Store, name: &str, site: &config::Site) -> Result<Place, GatewayError> {
    let image = store.find(Some(site.image(name)));
    let image = image.map_err(|source| GatewayError::Image {
        site: name.to_owned(),
        source,
    })?;
    let listeners = &image.manifest.listeners;
    let no_listener = || GatewayError::NoListener {
        site: name.to_owned(),
        wanted: site.listener.clone(),
        listeners: listeners.clone(),
    };
    let old = choose(listeners, site.listener.as_ref()).ok_or_else(no_listener)?;
    let new = match (&site.listen, old) {
        (Some(listen), _) => elsewhere(name, old, listen)?,
        // Only the proxy is to reach it.
        (None, Listener::Tcp { address }) => Listener::Tcp {
            address: match address {
                SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
            },
        },
        (None, Listener::Unix { .. }) => {
            return Err(GatewayError::NoPlace {
                site: name.to_owned(),
                old: old.clone(),
            });
        }
    };
    let traits = edit::socket_traits(&image.criu_folder(), old);
    let traits = traits.map_err(|source| GatewayError::Edit {
        site: name.to_owned(),
        source,
    })?;
    Ok(Place {
        old: old.clone(),
        new,
        traits: traits.ok_or_else(no_listener)?,
    })
}

/// Where a listener is to be instead.
fn elsewhere(site: &str, old: &Listener, new: &Wanted) -> Result<Listener, GatewayError> {
    let publish = Publish {
        new: new.clone(),
        old: Wanted::Exactly(old.clone()),
    };
    let is_alike = |new: &Listener| mem::discriminant(new) == mem::discriminant(old);
    let moved = publish.moves(old).filter(is_alike);
    moved.ok_or_else(|| GatewayError::OtherKind {
        site: site.to_owned(),
        old: old.clone(),
        new: new.clone(),
    })
}

/// Whether the kernel is to choose the port.
pub fn is_any_port(listener: &Listener) -> bool {
    matches!(listener, Listener::Tcp { address } if address.port() == 0)
}
