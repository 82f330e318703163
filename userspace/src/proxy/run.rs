//! The proxy's own life: it gives up its rights, starts its workers, does what the gateway says, and ends
//! when it says so, or is gone.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::rustls::crypto::ring;

use super::{
    accept::{self, Door},
    client::{Active, Entrance, Worker, milliseconds},
    control::{Control, ControlError},
    plan::{self, Notice, Order, Plan, State, Stats},
    privileges,
    routes::{ByHost, Routes},
    site::{Live, Site},
    tls::{Tickets, Tls, TlsError},
};
use crate::{files, report::access::Log};

/// Why the proxy ends.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("descriptor 3 is no control socket")]
    NoControl(#[source] io::Error),
    #[error("cannot give up the rights of the proxy")]
    Privileges(#[source] io::Error),
    #[error("cannot start a worker of the proxy")]
    Worker(#[source] io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot heed signals")]
    Signals(#[source] io::Error),
    #[error("there are no random numbers")]
    Random,
}

/// Why a plan is refused.
#[derive(Debug, thiserror::Error)]
enum PlanError {
    #[error("there is no socket {0}")]
    NoSocket(u32),
    #[error("there is no site {0:?}")]
    NoSite(String),
    #[error("a route begins with {0:?}, which is no path")]
    Path(String),
    #[error("listener {socket}: {source}")]
    Tls { socket: u32, source: TlsError },
    #[error("cannot listen on socket {socket}: {source}")]
    Listen { socket: u32, source: io::Error },
    #[error("cannot start the access log: {0}")]
    Log(io::Error),
}

/// Descriptors that are not of connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// Runs the proxy, with its end of the control socket, until it has drained.
///
/// # Errors
/// See [`ProxyError`].
pub async fn run(control: OwnedFd) -> Result<(), ProxyError> {
    privileges::drop_all().map_err(ProxyError::Privileges)?;
    let mut control = Control::new(control).map_err(ControlError::from)?;
    let mut proxy = Proxy::start()?;
    let mut signals = Signals::new().map_err(ProxyError::Signals)?;
    let limit = loop {
        tokio::select! {
            // A terminal or a service manager sends it to all processes: the gateway drains as well.
            () = signals.next() => break milliseconds(proxy.plan.limits.drain_ms),
            order = control.receive() => match order? {
                None => break milliseconds(proxy.plan.limits.drain_ms),
                Some(Order::Drain { limit_ms }) => break milliseconds(limit_ms),
                Some(Order::Sockets { numbers }) => {
                    for number in numbers {
                        if let Some(socket) = control.next_descriptor() {
                            proxy.sockets.insert(number, socket);
                        }
                    }
                }
                Some(Order::Plan(plan)) => {
                    let notice = match proxy.adopt(*plan) {
                        Ok(()) => Notice::Ready,
                        Err(error) => Notice::Refused { reason: error.to_string() },
                    };
                    control.send(&notice, &[]).await?;
                }
                Some(Order::State { site, state }) => proxy.set_state(site, state),
                Some(Order::Stats) => {
                    control.send(&Notice::Stats(Box::new(proxy.stats())), &[]).await?;
                }
            },
        }
    };
    proxy.drain(limit).await;
    Ok(())
}

/// The running proxy.
struct Proxy {
    plan: Plan,
    sites: BTreeMap<String, Arc<Site>>,
    /// By their numbers: those that are listened on, and those that wait for a plan.
    sockets: HashMap<u32, OwnedFd>,
    doors: HashMap<u32, Door>,
    workers: Arc<[Arc<Worker>]>,
    places: Arc<Semaphore>,
    /// How many places there are, taken or not.
    most_places: usize,
    tickets: Tickets,
    log: Option<Arc<Log>>,
}

impl Proxy {
    fn start() -> Result<Self, ProxyError> {
        let plan = Plan::default();
        let active = Arc::new(Active {
            routes: Routes::new([]),
            limits: plan.limits.clone(),
            log: None,
        });
        let count = thread::available_parallelism().map_or(1, usize::from);
        let workers: Result<Vec<_>, ProxyError> = (0..count)
            .map(|number| start_worker(number, &active))
            .collect();
        Ok(Self {
            plan,
            sites: BTreeMap::new(),
            sockets: HashMap::new(),
            doors: HashMap::new(),
            workers: workers?.into(),
            places: Arc::new(Semaphore::new(0)),
            most_places: 0,
            tickets: Tickets::new()?,
            log: None,
        })
    }

    /// Puts a plan into force, as a whole or not at all.
    fn adopt(&mut self, plan: Plan) -> Result<(), PlanError> {
        let sites = self.sites(&plan);
        let find = |name: &String| match sites.get(name) {
            Some(site) => Ok(site.clone()),
            None => Err(PlanError::NoSite(name.clone())),
        };
        let mut routes = Vec::new();
        for route in &plan.routes {
            if !route.path.starts_with('/') {
                return Err(PlanError::Path(route.path.clone()));
            }
            routes.push((route, find(&route.site)?));
        }
        let mut entrances = Vec::new();
        for listener in &plan.listeners {
            entrances.push((listener.socket, self.entrance(listener, find)?));
        }
        let log = match (plan.access_log, &self.log) {
            (false, _) => None,
            (true, Some(log)) => Some(log.clone()),
            (true, None) => Some(Arc::new(Log::start().map_err(PlanError::Log)?)),
        };
        let mut doors = Vec::new();
        for (number, entrance) in entrances {
            doors.push((number, self.door(number, entrance)?));
        }
        // From here on nothing can fail.
        let active = Arc::new(Active {
            routes: Routes::new(routes),
            limits: plan.limits.clone(),
            log: log.clone(),
        });
        for worker in self.workers.iter() {
            worker.set_active(active.clone());
        }
        let mut old = std::mem::take(&mut self.doors);
        for (number, door) in doors {
            match door {
                Opened::New(door) => drop(self.doors.insert(number, door)),
                Opened::Same(entrance) => {
                    if let Some(door) = old.remove(&number) {
                        *door.entrance.lock().unwrap_or_else(PoisonError::into_inner) =
                            Arc::new(entrance);
                        self.doors.insert(number, door);
                    }
                }
            }
        }
        drop(old);
        self.sockets
            .retain(|number, _| self.doors.contains_key(number));
        self.set_places(plan.limits.connections);
        (self.plan, self.sites, self.log) = (plan, sites, log);
        Ok(())
    }

    /// The sites of a plan; those that are where they were go on with what they have.
    fn sites(&self, plan: &Plan) -> BTreeMap<String, Arc<Site>> {
        let site = |(name, settings): (&String, &plan::Site)| {
            let old = self.sites.get(name);
            let same = old.filter(|old| old.settings.upstream == settings.upstream);
            let live = match same {
                Some(old) => old.live.clone(),
                None => Arc::new(Live::new(self.workers.len())),
            };
            let site = Site {
                name: name.clone(),
                settings: settings.clone(),
                live,
            };
            (name.clone(), Arc::new(site))
        };
        plan.sites.iter().map(site).collect()
    }

    fn entrance(
        &self,
        listener: &plan::Listener,
        find: impl Fn(&String) -> Result<Arc<Site>, PlanError>,
    ) -> Result<Entrance, PlanError> {
        let socket = listener.socket;
        let tls = match listener.tls.is_empty() {
            true => None,
            false => Some(
                Tls::new(&listener.tls, &self.tickets)
                    .map_err(|source| PlanError::Tls { socket, source })?,
            ),
        };
        let mut by_host = ByHost::<Option<Arc<Site>>>::default();
        for route in &listener.pass_through {
            let site = find(&route.site)?;
            if route.hosts.is_empty() {
                by_host.any().get_or_insert(site.clone());
            }
            for host in &route.hosts {
                by_host.entry(host).get_or_insert(site.clone());
            }
        }
        let pass_through = (!listener.pass_through.is_empty()).then_some(by_host);
        Ok(Entrance { tls, pass_through })
    }

    fn door(&self, number: u32, entrance: Entrance) -> Result<Opened, PlanError> {
        if self.doors.contains_key(&number) {
            return Ok(Opened::Same(entrance));
        }
        let socket = self
            .sockets
            .get(&number)
            .ok_or(PlanError::NoSocket(number))?;
        let failed = |source| PlanError::Listen {
            socket: number,
            source,
        };
        let socket = socket.try_clone().map_err(failed)?;
        let (places, workers) = (self.places.clone(), self.workers.clone());
        Door::open(socket, entrance, places, workers)
            .map(Opened::New)
            .map_err(failed)
    }

    /// Changes how many connections there may be. Each may need a descriptor of its own and one to a site.
    fn set_places(&mut self, wanted: usize) {
        let files = files::raise().saturating_sub(OTHER_DESCRIPTORS) / 2;
        let wanted = wanted
            .min(usize::try_from(files).unwrap_or(usize::MAX))
            .max(1);
        let wanted = wanted.min(Semaphore::MAX_PERMITS);
        match wanted.checked_sub(self.most_places) {
            Some(more) => {
                self.places.add_permits(more);
                self.most_places = wanted;
            }
            // Those that are taken stay; the next plan may find them free.
            None => self.most_places -= self.places.forget_permits(self.most_places - wanted),
        }
    }

    fn set_state(&self, site: String, state: State) {
        // The gateway may speak of one that the plan has no more.
        if let Some(site) = self.sites.get(&site) {
            site.live.set(state);
        }
    }

    fn connections(&self) -> usize {
        let workers = self.workers.iter();
        workers.map(|worker| worker.connections.load(Relaxed)).sum()
    }

    fn stats(&self) -> Stats {
        let sites = self.sites.iter();
        Stats {
            connections: self.connections() as u64,
            log_lines_lost: self.log.as_ref().map_or(0, |log| log.lost()),
            sites: sites
                .map(|(name, site)| (name.clone(), site.live.stats()))
                .collect(),
        }
    }

    /// Accepts no more, and waits until nothing is in flight, or the time is over.
    async fn drain(&mut self, limit: Duration) {
        const LOOK: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + limit;
        self.doors.clear();
        while self.connections() > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The signals that ask for the end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

enum Opened {
    New(Door),
    Same(Entrance),
}

/// Starts a thread with a runtime of its own.
fn start_worker(number: usize, active: &Arc<Active>) -> Result<Arc<Worker>, ProxyError> {
    let mut seed = [0; 8];
    let random = ring::default_provider().secure_random;
    random.fill(&mut seed).map_err(|_| ProxyError::Random)?;
    let (sender, accepted) = mpsc::unbounded_channel();
    let worker = Worker::new(number, active.clone(), sender, u64::from_le_bytes(seed));
    let worker = Arc::new(worker);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(ProxyError::Worker)?;
    let serve = accept::serve(worker.clone(), accepted);
    let thread = thread::Builder::new().name(format!("proxy-{number}"));
    thread
        .spawn(move || runtime.block_on(serve))
        .map_err(ProxyError::Worker)?;
    Ok(worker)
}
