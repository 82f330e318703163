//! The life of one site: asleep until a connection waits, awake until it has had none for a while.
//!
//! Each decision follows from an event: a connection that waits, one more or less of those that the
//! kernel counts, an instance that has ended, an order, or a time that is over.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc::UnboundedReceiver, oneshot};

use super::{
    config::Site as Config,
    fleet::Fleet,
    journal::{Cause, What},
};
use crate::{
    doctor::chain,
    instance::Running,
    listener::Listener,
    proxy::plan::{SiteStats, State},
};

/// How long a site that cannot be brought up is left alone, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];

/// A server that ends by itself within this time does not work.
const PROBATION: Duration = Duration::from_secs(10);

/// How long a connection to a site that cannot be brought up waits until it is refused.
const REFUSAL_DELAY: Duration = Duration::from_millis(20);

/// How often it is looked at what nothing tells of, at most.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// How often it is looked whether an instance that is to leave has connections.
const LEAVING_INTERVAL: Duration = Duration::from_millis(100);

/// Something that a site is told.
pub enum Order {
    Wake(oneshot::Sender<Answer>),
    Sleep(oneshot::Sender<Answer>),
    Describe(oneshot::Sender<Status>),
    /// The kernel has counted less or more connections than it was to.
    Counted,
    /// From now on it is to be served so.
    Configure(Box<Config>),
    /// The gateway ends; instances go on if another is to take them over.
    Leave {
        keep: bool,
    },
}

/// What came of it: the instances that serve, or why it was not done.
pub type Answer = Result<Vec<String>, String>;

/// How a site does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub site: String,
    pub listener: Listener,
    pub image: String,
    /// The instances that serve.
    pub serving: Vec<String>,
    /// Those that are restored and frozen.
    pub standing_by: Vec<String>,
    /// Those that are to end when they have no connection any more.
    pub leaving: Vec<String>,
    /// Connections that it has, those that wait included.
    pub open: i64,
    /// Connections that there have been since the gateway serves it; 0 of a Unix socket, whose
    /// connections are not counted one by one.
    pub taken: i64,
    /// How often it was brought up.
    pub wakes: u64,
    /// How often that failed, one time after the other, until now.
    pub failures: u32,
    /// What the proxy has counted, if it is before the site.
    pub proxy: Option<SiteStats>,
}

/// A site that is served.
pub struct Site {
    fleet: Fleet,
    orders: UnboundedReceiver<Order>,
    /// Instances that could not be brought up, or have ended soon, one after the other.
    failures: u32,
    /// Until when none is brought up.
    paused_until: Option<Instant>,
    wakes: u64,
    /// Since when it has had no connection, as was seen last; none if it had one.
    idle_since: Option<Instant>,
}

/// What has happened.
enum Seen {
    Connection,
    /// The instance with that number has ended.
    Exit(usize),
    Time,
    Order(Option<Order>),
}

impl Site {
    pub fn new(fleet: Fleet, orders: UnboundedReceiver<Order>) -> Self {
        Self {
            fleet,
            orders,
            failures: 0,
            paused_until: None,
            wakes: 0,
            idle_since: None,
        }
    }

    /// Serves the site until it is told to leave.
    pub async fn run(mut self) {
        loop {
            // After what has happened: nobody waits for it.
            if !self.is_paused()
                && let Err(error) = self.fleet.stand_by().await
            {
                self.fail(&chain(&error));
            }
            match self.next().await {
                Seen::Connection if self.is_paused() => {
                    // The proxy is to know why before it sees its connection end.
                    tokio::time::sleep(REFUSAL_DELAY).await;
                    self.fleet.socket.refuse_waiting();
                }
                Seen::Connection => self.wake(Cause::Connection).await,
                Seen::Exit(number) => self.exited(number),
                Seen::Time => self.look().await,
                Seen::Order(None) => return self.fleet.leave(false).await,
                Seen::Order(Some(Order::Leave { keep })) => return self.fleet.leave(keep).await,
                Seen::Order(Some(order)) => self.obey(order).await,
            }
        }
    }

    async fn next(&mut self) -> Seen {
        let look_at = self.look_at();
        let pause = async {
            match look_at {
                Some(time) => tokio::time::sleep_until(time.into()).await,
                None => std::future::pending().await,
            }
        };
        let connection = async {
            match self.fleet.is_asleep() {
                true => self.fleet.socket.watch().await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            // What it is told comes before what comes from outside.
            biased;
            order = self.orders.recv() => Seen::Order(order),
            number = self.fleet.exit() => Seen::Exit(number),
            () = connection => Seen::Connection,
            () = pause => Seen::Time,
        }
    }

    /// When it is to be looked what there is to do; none as long as something else tells.
    fn look_at(&self) -> Option<Instant> {
        let leaving = self
            .fleet
            .has_leaving()
            .then(|| Instant::now() + LEAVING_INTERVAL);
        let retry = self.paused_until.filter(|_| self.fleet.lacks_standby());
        if self.fleet.is_asleep() {
            return [leaving, retry].into_iter().flatten().min();
        }
        let Config { idle, max_life, .. } = &self.fleet.config;
        let oldest = self
            .fleet
            .serving()
            .iter()
            .map(|running| running.since)
            .min();
        let old = max_life.zip(oldest).map(|(life, since)| since + life);
        let old = old.map(|old| self.paused_until.map_or(old, |until| old.max(until)));
        let idle = idle.and_then(|idle| match self.idle_since {
            Some(since) => Some(since + idle),
            None if self.fleet.is_counted() => None,
            // Nothing tells when a Unix socket has no connection any more.
            None => Some(Instant::now() + (idle / 4).max(LEAST_INTERVAL)),
        });
        [leaving, retry, old, idle].into_iter().flatten().min()
    }

    /// Does what it is time for.
    async fn look(&mut self) {
        if self.fleet.has_leaving() {
            self.fleet.let_leave().await;
        }
        let Config { idle, max_life, .. } = self.fleet.config;
        if let Some(life) = max_life {
            let is_old = |running: &Running| running.since.elapsed() >= life;
            self.replace(Cause::MaxLife, is_old).await;
        }
        while !self.fleet.is_asleep() {
            let (open, idle_since) = self.fleet.look();
            self.idle_since = idle_since;
            let is_over = |(limit, since): (Duration, Instant)| since.elapsed() >= limit;
            if open > self.fleet.most() && !self.is_paused() {
                match self.fleet.may_grow() {
                    true => self.bring_up(Cause::Load).await,
                    false => self.fleet.set_busy(true, open),
                }
            } else if open < self.fleet.fewest() {
                match self.fleet.is_busy() {
                    true => self.fleet.set_busy(false, open),
                    false => self.fleet.reduce(Cause::Calm),
                }
            } else if idle.zip(idle_since).is_some_and(is_over) {
                // It has served, and did not fail.
                self.failures = 0;
                return self.fleet.sleep(Cause::Idle).await;
            } else {
                return;
            }
        }
    }

    /// Has others take the place of instances.
    async fn replace(&mut self, cause: Cause, is_meant: impl Fn(&Running) -> bool) {
        if self.is_paused() {
            return;
        }
        // If they cannot be replaced they go on.
        if let Err(error) = self.fleet.replace(cause, is_meant).await {
            self.fail(&chain(&error));
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Leave { .. } => {}
            Order::Counted => self.look().await,
            Order::Describe(answer) => drop(answer.send(self.status())),
            Order::Configure(config) => self.fleet.configure(*config),
            Order::Wake(answer) => {
                if self.fleet.is_asleep() {
                    self.wake(Cause::Asked).await;
                }
                let said = match self.fleet.is_asleep() {
                    true => Err("it cannot be brought up".to_owned()),
                    false => Ok(self.status().serving),
                };
                let _ = answer.send(said);
            }
            Order::Sleep(answer) => {
                self.fleet.sleep(Cause::Asked).await;
                let said = match self.fleet.is_asleep() {
                    true => Ok(vec![]),
                    false => Err("it has connections".to_owned()),
                };
                let _ = answer.send(said);
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            wakes: self.wakes,
            failures: self.failures,
            ..self.fleet.status()
        }
    }

    /// Brings the site up, and as many instances as it needs.
    async fn wake(&mut self, cause: Cause) {
        self.bring_up(cause).await;
        self.look().await;
    }

    async fn bring_up(&mut self, cause: Cause) {
        match self.fleet.bring_up(cause).await {
            Ok(()) => self.wakes += 1,
            Err(error) => self.fail(&chain(&error)),
        }
    }

    /// Leaves the site alone for a while. What waits meanwhile is refused.
    fn fail(&mut self, error: &str) {
        let factor = 1_u32 << self.failures.min(16);
        let pause = PAUSES[0].saturating_mul(factor).min(PAUSES[1]);
        self.failures += 1;
        self.paused_until = Some(Instant::now() + pause);
        // What serves takes what waits.
        if self.fleet.is_asleep() {
            self.fleet.set_state(State::Failed {
                retry_after_s: pause.as_secs_f64().ceil() as u32,
            });
        }
        self.fleet.tell(What::Failed {
            error: error.to_owned(),
            pause,
        });
    }

    fn is_paused(&self) -> bool {
        self.paused_until
            .is_some_and(|until| Instant::now() < until)
    }

    fn exited(&mut self, number: usize) {
        let lived = self.fleet.exited(number);
        if lived >= PROBATION {
            self.failures = 0;
        } else if self.fleet.is_asleep() {
            self.fail("the server has ended soon after it was brought up");
        }
    }
}
