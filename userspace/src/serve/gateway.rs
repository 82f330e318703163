//! All sites together: what they share, and who tells them what to do.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use super::{
    config::{self, Config},
    journal::{Event, What},
    site::{Order, Site},
    socket::Socket,
};
use crate::{
    criu::Program,
    edit::{self, EditError, SocketTraits},
    host::Clocks,
    instance::InstanceError,
    listener::{Listener, Publish, Wanted, choose},
    store::{Store, StoreError},
    sys::bpf,
    watch::{
        WatchError,
        connections::{Bounds, Connections, Counter, Told},
    },
};

/// Why sites cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the site {site} has no image")]
    Image { site: String, source: StoreError },
    #[error("the image of {site} does not listen on {}", .wanted.as_ref().map_or("anything".to_owned(), ToString::to_string))]
    NoListener {
        site: String,
        wanted: Option<Wanted>,
        listeners: Vec<Listener>,
    },
    #[error("the image of {site} listens on {old}, which cannot become {new}")]
    OtherKind {
        site: String,
        old: Listener,
        new: Wanted,
    },
    #[error("{first} and {second} both listen on {listener}")]
    Clash {
        first: String,
        second: String,
        listener: Listener,
    },
    #[error("cannot listen on {listener} for {site}")]
    Listen {
        site: String,
        listener: Listener,
        source: io::Error,
    },
    #[error("cannot read the image of {site}")]
    Edit { site: String, source: EditError },
    #[error("connections cannot be counted")]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
}

/// What all sites need.
pub struct Shared {
    pub store: Store,
    pub criu: Program,
    counter: RefCell<Counter>,
    journal: Box<dyn Fn(&Event)>,
    /// The same moment by both clocks.
    began: (Instant, u64),
}

impl Shared {
    /// Tells that something has happened.
    pub fn tell(&self, event: &Event) {
        (self.journal)(event);
    }

    /// The connections of a listener, of which the kernel tells once when they leave these bounds.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn bound(&self, number: u32, bounds: Bounds) -> Result<Connections, WatchError> {
        self.counter.borrow_mut().bound(number, bounds)
    }

    /// A time of the kernel's monotonic clock.
    pub fn instant(&self, ns: u64) -> Instant {
        let (began, began_ns) = self.began;
        let since = Duration::from_nanos(ns.abs_diff(began_ns));
        let before = || began.checked_sub(since).unwrap_or(began);
        if ns > began_ns { began + since } else { before() }
    }
}

/// Where a site listens, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    old: Listener,
    new: Listener,
    traits: SocketTraits,
}

struct Handle {
    config: config::Site,
    place: Place,
    number: Option<u32>,
    orders: UnboundedSender<Order>,
    task: JoinHandle<()>,
}

/// Sites that are served.
pub struct Gateway {
    shared: Rc<Shared>,
    told: Told,
    sites: BTreeMap<String, Handle>,
}

impl Gateway {
    /// Serves the sites of a configuration, from within a set of local tasks. What was restored for
    /// them by a gateway that is gone goes on.
    ///
    /// # Errors
    /// See [`GatewayError`]; nothing is served then.
    pub fn start(
        store: Store,
        criu: Program,
        config: &Config,
        journal: Box<dyn Fn(&Event)>,
    ) -> Result<Self, GatewayError> {
        let places = places(&store, config)?;
        let (counter, told) = Counter::attach()?;
        // Rings are of no use to instances, which are forked from this process.
        if let Err(error) = bpf::keep_maps_from_children() {
            tracing::debug!("forks copy the ring: {error}");
        }
        let shared = Rc::new(Shared {
            store,
            criu,
            counter: RefCell::new(counter),
            journal,
            began: (Instant::now(), Clocks::now().monotonic_ns),
        });
        let mut gateway = Self {
            shared,
            told,
            sites: BTreeMap::new(),
        };
        for (name, place) in places {
            gateway.add(&name, &config.sites[&name], place)?;
        }
        Ok(gateway)
    }

    /// Looks whether a configuration can be served.
    ///
    /// # Errors
    /// See [`GatewayError`].
    pub fn check(store: &Store, config: &Config) -> Result<(), GatewayError> {
        places(store, config).map(drop)
    }

    fn add(
        &mut self,
        name: &str,
        config: &config::Site,
        place: Place,
    ) -> Result<(), GatewayError> {
        let socket = Socket::bind(&place.new, &place.traits).map_err(|source| {
            GatewayError::Listen {
                site: name.to_owned(),
                listener: place.new.clone(),
                source,
            }
        })?;
        let number = match &place.new {
            Listener::Tcp { address } => Some(self.shared.counter.borrow_mut().count(*address)?),
            Listener::Unix { .. } => None,
        };
        self.shared.tell(&Event {
            site: name.to_owned(),
            what: What::Listening {
                listener: place.new.clone(),
            },
        });
        let (orders, receiver) = unbounded_channel();
        let site = Site {
            name: name.to_owned(),
            config: config.clone(),
            shared: self.shared.clone(),
            socket,
            old: place.old.clone(),
            number,
            running: vec![],
            orders: receiver,
            failures: 0,
            seen: Cell::new(None),
        };
        let handle = Handle {
            config: config.clone(),
            place,
            number,
            orders,
            task: tokio::task::spawn_local(site.run()),
        };
        self.sites.insert(name.to_owned(), handle);
        Ok(())
    }

    /// Passes on what the kernel tells, for ever. Can be cancelled.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn pass_on(&mut self) -> Result<(), GatewayError> {
        loop {
            let left = self.told.next().await?;
            let meant = |site: &&Handle| site.number == Some(left.number);
            if let Some(site) = self.sites.values().find(meant) {
                let _ = site.orders.send(Order::Counted(left));
            }
        }
    }

    /// Ends all sites; their instances too, unless they are to be kept for another gateway.
    pub async fn leave(self, keep: bool) {
        for site in self.sites.values() {
            let _ = site.orders.send(Order::Leave { keep });
        }
        for (_, site) in self.sites {
            let _ = site.task.await;
        }
    }
}

/// Where the sites of a configuration are to listen.
fn places(store: &Store, config: &Config) -> Result<BTreeMap<String, Place>, GatewayError> {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for (name, site) in &config.sites {
        let place = place(store, name, site)?;
        let clashes = |(_, other): &(&String, &Place)| other.new.clashes_with(&place.new);
        if let Some((other, _)) = places.iter().find(clashes) {
            return Err(GatewayError::Clash {
                first: other.clone(),
                second: name.clone(),
                listener: place.new,
            });
        }
        places.insert(name.clone(), place);
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
    let publish = Publish {
        new: site.listen.clone(),
        old: Wanted::Exactly(old.clone()),
    };
    let new = publish.moves(old).filter(|new| {
        matches!(
            (old, new),
            (Listener::Tcp { .. }, Listener::Tcp { .. }) | (Listener::Unix { .. }, Listener::Unix { .. })
        )
    });
    let new = new.ok_or_else(|| GatewayError::OtherKind {
        site: name.to_owned(),
        old: old.clone(),
        new: site.listen.clone(),
    })?;
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
