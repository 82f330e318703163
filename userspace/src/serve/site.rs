//! The life of one site: asleep until a connection waits, awake until it has had none for a while.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::{
    config,
    gateway::Shared,
    journal::{Cause, Event, What},
    socket::Socket,
};
use crate::{
    doctor::chain,
    error::Error,
    freeze,
    instance::Running,
    listener::{self, Listener},
    restore::{self, Handed, RestoreError},
    tree,
    watch::connections::{Bounds, Connections, LeftBounds},
};

/// How long a site that cannot be brought up is left alone, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];

/// How often it is looked at a Unix socket, at most.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// Something that a site is told to do.
#[derive(Debug)]
pub enum Order {
    Wake(UnboundedSender<Answer>),
    Sleep(UnboundedSender<Answer>),
    /// The kernel has counted.
    Counted(LeftBounds),
    /// From now on it is to be served so.
    Configure(config::Site),
    /// The gateway ends; instances go on if they are to be taken over.
    Leave { keep: bool },
}

/// What came of it.
pub type Answer = Result<String, String>;

/// A site that is served.
pub struct Site {
    pub name: String,
    pub config: config::Site,
    pub shared: Rc<Shared>,
    pub socket: Socket,
    /// The listener of the image that the socket takes the place of.
    pub old: Listener,
    /// By which the kernel counts its connections; none of a Unix socket.
    pub number: Option<u32>,
    pub running: Vec<Running>,
    pub orders: UnboundedReceiver<Order>,
    /// Restores that failed, one after the other.
    pub failures: u32,
    /// When it was last seen to have a connection.
    pub seen: Cell<Option<Instant>>,
}

/// What has happened while it is awake.
enum Seen {
    Order(Option<Order>),
    /// The instance of that number has ended.
    Exit(usize),
    Time,
}

/// What the site is to do next.
enum Next {
    Sleep(Cause),
    Wake(Cause),
    Look,
    Stay,
    Leave { keep: bool },
}

impl Site {
    /// Serves the site until it is told to leave.
    pub async fn run(mut self) {
        loop {
            let next = match self.running.is_empty() {
                true => self.asleep().await,
                false => self.awake().await,
            };
            match next {
                Next::Wake(cause) => self.wake(cause).await,
                Next::Sleep(cause) => self.sleep(cause).await,
                Next::Leave { keep } => return self.leave(keep).await,
                Next::Look | Next::Stay => {}
            }
        }
    }

    fn tell(&self, what: What) {
        self.shared.tell(&Event {
            site: self.name.clone(),
            what,
        });
    }

    async fn asleep(&mut self) -> Next {
        tokio::select! {
            // What it is told to do comes before what comes from outside.
            biased;
            order = self.orders.recv() => self.obey(order).await,
            waiting = self.socket.connection() => match waiting {
                Ok(()) => Next::Wake(Cause::Connection),
                Err(error) => {
                    self.fail(&format!("cannot wait for connections: {error}")).await;
                    Next::Stay
                }
            },
        }
    }

    async fn awake(&mut self) -> Next {
        let look_at = self.look_at();
        let pause = async {
            match look_at {
                Some(time) => tokio::time::sleep_until(time.into()).await,
                None => std::future::pending().await,
            }
        };
        let exits = self.running.iter().map(|running| Box::pin(running.ended()));
        let exits = futures_util::future::select_all(exits);
        let seen = tokio::select! {
            biased;
            order = self.orders.recv() => Seen::Order(order),
            (_, number, _) = exits => Seen::Exit(number),
            () = pause => Seen::Time,
        };
        match seen {
            Seen::Order(order) => self.obey(order).await,
            Seen::Exit(number) => {
                let running = self.running.swap_remove(number);
                self.exited(running);
                Next::Stay
            }
            Seen::Time => self.look(),
        }
    }

    async fn obey(&mut self, order: Option<Order>) -> Next {
        match order {
            None => Next::Leave { keep: false },
            Some(Order::Leave { keep }) => Next::Leave { keep },
            Some(Order::Counted(_)) => Next::Look,
            Some(Order::Configure(config)) => {
                self.config = config;
                Next::Stay
            }
            Some(Order::Wake(answer)) => {
                if self.running.is_empty() {
                    self.wake(Cause::Asked).await;
                }
                let said = match &self.running[..] {
                    [] => Err(format!("{} cannot be brought up", self.name)),
                    [running, ..] => Ok(running.record().id.clone()),
                };
                let _ = answer.send(said);
                Next::Stay
            }
            Some(Order::Sleep(answer)) => {
                self.sleep(Cause::Asked).await;
                let said = match self.running.is_empty() {
                    true => Ok(self.name.clone()),
                    false => Err(format!("{} has connections", self.name)),
                };
                let _ = answer.send(said);
                Next::Stay
            }
        }
    }

    /// When it may be time to go to sleep; none as long as the kernel is to tell.
    fn look_at(&self) -> Option<Instant> {
        let idle = self.config.idle?;
        match self.idle_since() {
            Some(since) => Some(since + idle),
            None if self.number.is_some() => None,
            // Nothing tells when a Unix socket has no connection any more.
            None => Some(Instant::now() + (idle / 4).max(LEAST_INTERVAL)),
        }
    }

    /// Since when it has had no connection; none if it has one.
    fn idle_since(&self) -> Option<Instant> {
        const UNTIL_NONE: Bounds = Bounds {
            below: 1,
            above: i64::MAX,
        };
        let has_some = |bounds| self.connections(bounds).open > 0;
        if has_some(Bounds::NONE) && has_some(UNTIL_NONE) {
            self.seen.set(Some(Instant::now()));
            return None;
        }
        let changed = self.shared.instant(self.connections(Bounds::NONE).changed_ns);
        let woken = self.running.iter().map(|running| running.since).max();
        [woken, Some(changed), self.seen.get()].into_iter().flatten().max()
    }

    /// Looks whether it is time to go to sleep.
    fn look(&self) -> Next {
        match self.config.idle.zip(self.idle_since()) {
            Some((idle, since)) if since.elapsed() >= idle => Next::Sleep(Cause::Idle),
            _ => Next::Stay,
        }
    }

    /// The connections that it has. From now on the kernel tells when there are less or more.
    fn connections(&self, bounds: Bounds) -> Connections {
        match self.number {
            Some(number) => self.shared.bound(number, bounds).unwrap_or_else(|error| {
                self.tell(What::Warned {
                    text: chain(&error),
                });
                // If the kernel does not tell, it may have some.
                Connections {
                    open: 1,
                    ..Connections::default()
                }
            }),
            None => Connections {
                open: listener::connections_of(&self.socket.listener) as i64,
                ..Connections::default()
            },
        }
    }

    /// Brings up an instance.
    async fn wake(&mut self, cause: Cause) {
        let begun = Instant::now();
        match self.restore().await {
            Ok(running) => {
                self.failures = 0;
                self.tell(What::Woken {
                    instance: running.record().id.clone(),
                    cause,
                    took: begun.elapsed(),
                });
                self.running.push(running);
            }
            Err(error) => self.fail(&chain(&error)).await,
        }
    }

    async fn restore(&self) -> Result<Running, Error> {
        let shared = &self.shared;
        let image = shared.store.find(Some(self.config.image(&self.name)))?;
        let options = restore::Options {
            detached: true,
            memory: self.config.memory,
            handed: vec![Handed {
                old: self.old.clone(),
                new: self.socket.listener.clone(),
                socket: self.socket.descriptor.clone(),
            }],
            hook_limit: Duration::from_secs(10),
            site: Some(self.name.clone()),
            ..restore::Options::default()
        };
        let restored = restore::restore(&shared.store, &shared.criu, &image, &options).await?;
        let id = restored.record.id.clone();
        restored.detach().await?;
        let running = Running::follow(&shared.store.instances(), &id);
        Ok(running.map_err(RestoreError::Instance)?)
    }

    /// Ends what waits, and leaves the site alone for a while.
    async fn fail(&mut self, error: &str) {
        let pause = PAUSES[0].saturating_mul(1 << self.failures.min(16)).min(PAUSES[1]);
        self.failures += 1;
        let until = Instant::now() + pause;
        self.tell(What::Failed {
            error: error.to_owned(),
            refused: self.socket.refuse_waiting(),
            pause,
        });
        while Instant::now() < until {
            let waiting = tokio::time::timeout_at(until.into(), self.socket.connection());
            if waiting.await.is_ok() {
                self.socket.refuse_waiting();
            }
        }
    }

    /// Ends all instances, if none has a connection or they are to end by themselves.
    async fn sleep(&mut self, cause: Cause) {
        if self.config.grace.is_zero() && !self.stand_still().await {
            return;
        }
        let connections = self.connections(Bounds::NONE).taken as u64;
        for running in std::mem::take(&mut self.running) {
            self.tell(What::Ended {
                instance: running.record().id.clone(),
                cause,
                lived: running.since.elapsed(),
                connections,
            });
            let grace = self.config.grace;
            let ending = async move { running.stop(grace).await };
            match grace.is_zero() {
                // It stands still: what comes from now on is for the next.
                true => drop(tokio::task::spawn_local(ending)),
                false => {
                    if let Err(error) = ending.await {
                        self.tell(What::Warned {
                            text: chain(&error),
                        });
                    }
                }
            }
        }
    }

    /// Stops all instances, so that they can accept nothing; lets them go on if they have done so.
    async fn stand_still(&self) -> bool {
        let mut is_still = true;
        for running in &self.running {
            is_still &= freeze::stop(running.record().init).await.is_ok();
        }
        let is_idle = is_still && self.connections(Bounds::NONE).open == 0;
        if !is_idle {
            for running in &self.running {
                tree::resume(running.record().init);
            }
        }
        is_idle
    }

    fn exited(&self, running: Running) {
        self.tell(What::Exited {
            instance: running.record().id.clone(),
            status: running.discard(),
        });
    }

    async fn leave(mut self, keep: bool) {
        if !keep {
            for running in std::mem::take(&mut self.running) {
                let _ = running.stop(self.config.grace).await;
            }
            self.socket.remove();
        }
    }
}
