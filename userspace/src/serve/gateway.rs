//! All sites together: what they share, and who tells them what to do.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    task::JoinHandle,
};

use super::{
    activation::Passed,
    admin::{self, Admin},
    config::{self, Config, Metrics, Proxy},
    error::GatewayError,
    fleet::Fleet,
    front::Front,
    journal::{Event, What},
    keeper::{Keeper, Kept},
    metrics,
    overview::Overview,
    places::{METRICS, Place, places},
    shared::Shared,
    site::{Order, Site},
    socket::Socket,
};
use crate::{
    criu::Program,
    doctor::chain,
    edit::SocketTraits,
    files,
    instance::{self, Running, State},
    listener::Listener,
    private,
    proxy::plan::{Plan, State as SiteState, Stats},
    store::Store,
    sys::bpf,
    watch::{
        connections::{Counter, Told},
        interruptions::Held,
    },
};

/// What the proxy is called beside the names of sites.
const PROXY: &str = "proxy";

/// The proxy's own listening sockets.
const DOOR: SocketTraits = SocketTraits {
    nonblocking: true,
    backlog: 4096,
    keepalive: None,
    nodelay: true,
};

/// How long after its end the proxy is started again.
const FRONT_PAUSE: Duration = Duration::from_millis(200);

struct Handle {
    place: Place,
    number: Option<u32>,
    /// The same that the site has.
    socket: Rc<Socket>,
    orders: UnboundedSender<Order>,
    task: JoinHandle<()>,
}

impl Handle {
    /// Ends the site.
    async fn leave(self, shared: &Shared, keep: bool) {
        let _ = self.orders.send(Order::Leave { keep });
        let _ = self.task.await;
        if let (Listener::Tcp { address }, Some(number)) = (&self.socket.listener, self.number)
            && let Err(error) = shared.counter.borrow_mut().forget(*address, number)
        {
            tracing::debug!("{}", chain(&error));
        }
    }
}

/// Sites that are served.
pub struct Gateway {
    shared: Rc<Shared>,
    told: Told,
    sites: BTreeMap<String, Handle>,
    keeper: Option<Keeper>,
    /// The proxy, if there is one, its listening sockets, and what it was told last.
    front: Option<Front>,
    doors: Vec<Rc<Socket>>,
    plan: Plan,
    admin: Admin,
    states: UnboundedReceiver<(String, SiteState)>,
    /// Who asks for the figures of the proxy.
    asking: UnboundedSender<oneshot::Sender<Stats>>,
    asked: UnboundedReceiver<oneshot::Sender<Stats>>,
    /// Where metrics are read, if they are.
    metrics: Option<metrics::Door>,
    folder: PathBuf,
    /// No restore waits for the end of the one before.
    _tracepoint: Option<Held>,
    /// Only one gateway serves from a store.
    _lock: fs::File,
}

impl Gateway {
    /// Serves the sites of a configuration, from within a set of local tasks. What was restored for
    /// them by a gateway that is gone goes on; what was passed to this process is taken in place of
    /// sockets of its own.
    ///
    /// # Errors
    /// See [`GatewayError`]; nothing is served then.
    pub async fn start(
        store: Store,
        criu: Program,
        config: &Config,
        passed: Passed,
        journal: Box<dyn Fn(&Event)>,
    ) -> Result<Self, GatewayError> {
        let places = places(&store, config)?;
        // Each site has two descriptors.
        files::raise();
        let folder = folder(store.root());
        let lock = lock(&folder)?;
        let admin = Admin::listen(&folder).map_err(|source| GatewayError::Folder {
            path: folder.clone(),
            source,
        })?;
        let (counter, told) = Counter::attach()?;
        let held = Held::hold();
        let held = held.inspect_err(|error| tracing::debug!("restores may wait: {error}"));
        // Rings are of no use to instances, which are forked from this process.
        if let Err(error) = bpf::keep_maps_from_children() {
            tracing::debug!("forks copy the ring: {error}");
        }
        let (states_sender, states) = unbounded_channel();
        let (asking, asked) = unbounded_channel();
        let shared = Rc::new(Shared::new(store, criu, counter, states_sender, journal));
        let mut gateway = Self {
            shared,
            told,
            sites: BTreeMap::new(),
            keeper: None,
            front: None,
            doors: vec![],
            plan: Plan::default(),
            admin,
            states,
            asking,
            asked,
            metrics: None,
            folder,
            _tracepoint: held.ok(),
            _lock: lock,
        };
        // Those that were passed come first.
        let mut kept = passed.sockets;
        kept.extend(Keeper::take_over(&gateway.folder));
        gateway.serve(config, places, &mut kept).await?;
        let unused = kept.iter().filter(|kept| kept.is_passed);
        let unused = unused.map(|kept| (&kept.name, Some(&kept.listener)));
        let unfit = passed.unfit.iter().map(|name| (name, None));
        for (name, listener) in unused.chain(unfit) {
            gateway.shared.tell(
                name,
                What::Unused {
                    listener: listener.cloned(),
                },
            );
        }
        Ok(gateway)
    }

    /// Looks whether a configuration can be served.
    ///
    /// # Errors
    /// See [`GatewayError`].
    pub fn check(store: &Store, config: &Config) -> Result<(), GatewayError> {
        let places = places(store, config)?;
        let listeners = places.into_iter().map(|(name, place)| (name, place.new));
        plan(config, &listeners.collect()).map(drop)
    }

    /// Serves the sites of another configuration from now on. A site that is in both goes on.
    ///
    /// # Errors
    /// See [`GatewayError`]; all goes on as before then.
    pub async fn configure(&mut self, config: &Config) -> Result<(), GatewayError> {
        let places = places(&self.shared.store, config)?;
        self.serve(config, places, &mut vec![]).await
    }

    async fn serve(
        &mut self,
        config: &Config,
        places: BTreeMap<String, Place>,
        kept: &mut Vec<Kept>,
    ) -> Result<(), GatewayError> {
        let held_before: Vec<_> = self.held().cloned().collect();
        // First what can fail.
        let mut sockets = BTreeMap::new();
        for (name, place) in &places {
            let goes_on = |site: &Handle| site.place == *place;
            if !self.sites.get(name).is_some_and(goes_on) {
                let kept = Kept::take(kept, &place.new, Some(name));
                let socket = self.socket(name, &place.new, &place.traits, kept)?;
                sockets.insert(name.clone(), socket);
            }
        }
        let mut doors = vec![];
        for address in config.proxy.iter().flat_map(Proxy::doors) {
            let listener = Listener::Tcp { address };
            let mut open = self.doors.iter();
            let open = open.find(|door| door.listener == listener);
            let door = match open {
                Some(door) => door.clone(),
                // They are all called the same.
                None => self.socket(PROXY, &listener, &DOOR, Kept::take(kept, &listener, None))?,
            };
            doors.push(door);
        }
        let metrics = self.metrics_door(config, kept)?;
        let is_gone = |name: &String| !places.contains_key(name) || sockets.contains_key(name);
        let stays = self.sites.iter().filter(|(name, _)| !is_gone(name));
        let stays = stays.map(|(name, site)| (name.clone(), site.socket.clone()));
        let all: BTreeMap<String, Rc<Socket>> = stays.chain(sockets.clone()).collect();
        self.set_up_front(config, &doors, &all).await?;
        let of_proxy = doors.iter().map(|door| (PROXY.to_owned(), door.clone()));
        let all: Vec<_> = all.into_iter().chain(of_proxy).collect();
        let keeper = Keeper::start(&self.folder, &all).map_err(GatewayError::Keeper)?;
        self.keeper = Some(keeper);
        self.doors = doors;
        self.metrics = metrics;

        let gone: Vec<String> = self
            .sites
            .keys()
            .filter(|name| is_gone(name))
            .cloned()
            .collect();
        for site in gone.iter().filter_map(|name| self.sites.remove(name)) {
            site.leave(&self.shared, false).await;
        }
        let mut before = self.instances().await?;
        let new: Vec<SocketAddr> = sockets.values().filter_map(|new| address(new)).collect();
        let numbers = self.shared.counter.borrow_mut().count(&new)?;
        let numbers: BTreeMap<SocketAddr, u32> = new.into_iter().zip(numbers).collect();
        for (name, place) in places {
            let site = &config.sites[&name];
            match (sockets.remove(&name), self.sites.get_mut(&name)) {
                (Some(socket), _) => {
                    let meant =
                        |running: &mut Running| running.record().site.as_ref() == Some(&name);
                    let adopted = before.extract_if(.., meant).collect();
                    let number = address(&socket).and_then(|address| numbers.get(&address));
                    self.add(&name, site, place, socket, number.copied(), adopted);
                }
                (None, Some(handle)) => {
                    let _ = handle.orders.send(Order::Configure(Box::new(site.clone())));
                }
                (None, None) => {}
            }
        }
        for socket in held_before {
            if !self.held().any(|held| held.listener == socket.listener) {
                socket.remove();
            }
        }
        for running in before {
            // Nobody can reach it any more.
            running.stop(Duration::ZERO).await?;
        }
        Ok(())
    }

    /// All sockets that this gateway listens on.
    fn held(&self) -> impl Iterator<Item = &Rc<Socket>> {
        let sites = self.sites.values().map(|site| &site.socket);
        let metrics = self.metrics.iter().map(|door| &door.socket);
        sites.chain(&self.doors).chain(metrics)
    }

    /// A socket that listens there: one that another site gives up, one that was kept, or a new one.
    fn socket(
        &self,
        name: &str,
        listener: &Listener,
        traits: &SocketTraits,
        kept: Option<Kept>,
    ) -> Result<Rc<Socket>, GatewayError> {
        let held = self.held().find(|socket| socket.listener == *listener);
        let socket = match (held, kept) {
            (Some(held), _) => held.again(traits),
            (None, Some(kept)) => Socket::kept(kept, traits),
            (None, None) => Socket::bind(listener, traits),
        };
        socket.map(Rc::new).map_err(|source| GatewayError::Listen {
            site: name.to_owned(),
            listener: listener.clone(),
            source,
        })
    }

    /// Where metrics are to be read: where they are, or anew.
    fn metrics_door(
        &self,
        config: &Config,
        kept: &mut Vec<Kept>,
    ) -> Result<Option<metrics::Door>, GatewayError> {
        let Some(listener) = config.metrics.as_ref().map(Metrics::listener) else {
            return Ok(None);
        };
        let open = self.metrics.as_ref().map(|door| door.socket.clone());
        let socket = match open.filter(|socket| socket.listener == listener) {
            Some(socket) => socket,
            None => self.socket(METRICS, &listener, &DOOR, Kept::take(kept, &listener, None))?,
        };
        let door = metrics::Door::open(socket);
        let door = door.map_err(|source| GatewayError::Listen {
            site: METRICS.to_owned(),
            listener,
            source,
        })?;
        Ok(Some(door))
    }

    /// Has the proxy stand before these sites, if there is to be one.
    async fn set_up_front(
        &mut self,
        config: &Config,
        doors: &[Rc<Socket>],
        sites: &BTreeMap<String, Rc<Socket>>,
    ) -> Result<(), GatewayError> {
        let listeners = sites
            .iter()
            .map(|(name, site)| (name.clone(), site.listener.clone()));
        let Some(plan) = plan(config, &listeners.collect())? else {
            if let Some(front) = self.front.take() {
                front.leave().await;
            }
            return Ok(());
        };
        let mut front = match self.front.take() {
            Some(front) => front,
            None => Front::start()?,
        };
        let configured = front.configure(plan.clone(), doors).await;
        self.front = Some(front);
        configured?;
        self.plan = plan;
        Ok(())
    }

    /// Starts the proxy again, after it has ended by itself.
    async fn restart_front(&mut self) -> Result<(), GatewayError> {
        self.front = None;
        tokio::time::sleep(FRONT_PAUSE).await;
        let mut front = Front::start()?;
        front.configure(self.plan.clone(), &self.doors).await?;
        self.front = Some(front);
        Ok(())
    }

    /// The instances that serve a site that this gateway does not serve. What is left of those that have
    /// ended is removed.
    async fn instances(&self) -> Result<Vec<Running>, GatewayError> {
        let folder = self.shared.store.instances();
        let mut found = vec![];
        for instance in instance::list(&folder) {
            match (&instance.record.site, instance.state) {
                // What has ended is removed by the site; another may have got its name by then.
                (Some(site), _) if self.sites.contains_key(site) => {}
                (Some(_), State::Running) => {
                    found.extend(Running::follow(&folder, &instance.record.id));
                }
                (Some(_), State::Ended { .. }) => drop(instance.stop(Duration::ZERO).await?),
                _ => {}
            }
        }
        Ok(found)
    }

    fn add(
        &mut self,
        name: &str,
        config: &config::Site,
        place: Place,
        socket: Rc<Socket>,
        number: Option<u32>,
        adopted: Vec<Running>,
    ) {
        self.shared.tell(
            name,
            What::Listening {
                listener: socket.listener.clone(),
            },
        );
        let (orders, receiver) = unbounded_channel();
        let shared = self.shared.clone();
        let mut fleet = Fleet::new(
            name,
            config,
            shared,
            socket.clone(),
            place.old.clone(),
            number,
        );
        adopted.into_iter().for_each(|running| fleet.adopt(running));
        let site = Site::new(fleet, receiver);
        let handle = Handle {
            place,
            number,
            socket,
            orders,
            task: tokio::task::spawn_local(site.run()),
        };
        self.sites.insert(name.to_owned(), handle);
    }

    /// Passes on what the kernel tells, and answers those who ask, until that fails. Can be cancelled.
    pub async fn pass_on(&mut self) -> GatewayError {
        loop {
            let front_ended = async {
                match &mut self.front {
                    Some(front) => front.ended().await,
                    None => std::future::pending().await,
                }
            };
            let reader = async {
                match &self.metrics {
                    Some(door) => door.accept().await,
                    None => std::future::pending().await,
                }
            };
            let left = tokio::select! {
                left = self.told.next() => match left {
                    Ok(left) => left,
                    Err(error) => return error.into(),
                },
                Some((site, state)) = self.states.recv() => {
                    self.tell_front(site, state).await;
                    continue;
                }
                () = front_ended => {
                    self.shared.tell(PROXY, What::Warned {
                        text: "the proxy has ended, and is started again".to_owned(),
                    });
                    if let Err(error) = self.restart_front().await {
                        return error;
                    }
                    continue;
                }
                Some(answer) = self.asked.recv() => {
                    if let Some(front) = &mut self.front {
                        let _ = front.ask(answer).await;
                    }
                    continue;
                }
                reader = reader => {
                    tokio::task::spawn_local(metrics::answer(reader, self.overview()));
                    continue;
                }
                stream = self.admin.accept() => {
                    tokio::task::spawn_local(admin::answer(stream, self.overview()));
                    continue;
                }
            };
            let meant = |site: &&Handle| site.number == Some(left.number);
            if let Some(site) = self.sites.values().find(meant) {
                let _ = site.orders.send(Order::Counted);
            }
        }
    }

    fn overview(&self) -> Overview {
        let sites = self.sites.iter();
        let sites = sites.map(|(name, site)| (name.clone(), site.orders.clone()));
        Overview {
            shared: self.shared.clone(),
            sites: sites.collect(),
            stats: self.asking.clone(),
        }
    }

    async fn tell_front(&mut self, site: String, state: SiteState) {
        if let Some(front) = &self.front
            && self.plan.sites.contains_key(&site)
            && let Err(error) = front.tell(site, state).await
        {
            tracing::debug!("{}", chain(&error));
        }
    }

    /// Ends all sites; their instances and sockets too, unless they are to be kept for another
    /// gateway.
    pub async fn leave(mut self, keep: bool) {
        // While it finishes, sites still come up.
        if let Some(front) = self.front.take() {
            front.leave().await;
        }
        match keep {
            // Another gateway listens anew for metrics.
            true => self.metrics.iter().for_each(|door| door.socket.remove()),
            // Nothing comes any more; what waits is told so by the end of the socket.
            false => self.held().for_each(|socket| socket.remove()),
        }
        let leaving = self
            .sites
            .into_values()
            .map(|site| site.leave(&self.shared, keep));
        futures_util::future::join_all(leaving).await;
        match self.keeper {
            Some(keeper) if keep => keeper.leave(),
            _ => {}
        }
    }
}

/// What the proxy is to do, if there is to be one.
fn plan(
    config: &Config,
    listeners: &BTreeMap<String, Listener>,
) -> Result<Option<Plan>, GatewayError> {
    let plan = |proxy| config::plan(proxy, &config.sites, listeners);
    let plan = config.proxy.as_ref().map(plan).transpose();
    plan.map_err(|(path, source)| GatewayError::Certificate { path, source })
}

/// Where a socket listens by TCP.
fn address(socket: &Socket) -> Option<SocketAddr> {
    match socket.listener {
        Listener::Tcp { address } => Some(address),
        Listener::Unix { .. } => None,
    }
}

/// The folder of the gateway of a store.
pub fn folder(store: &Path) -> PathBuf {
    store.join("serve")
}

/// Makes sure that there is one gateway only.
fn lock(folder: &Path) -> Result<fs::File, GatewayError> {
    let fail = |source| GatewayError::Folder {
        path: folder.into(),
        source,
    };
    private::make_folders(folder).map_err(fail)?;
    let lock = fs::File::open(folder).map_err(fail)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(GatewayError::Runs(folder.into())),
        locked => locked.map(|()| lock).map_err(|errno| fail(errno.into())),
    }
}
