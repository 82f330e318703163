//! The life of one site: asleep until a connection waits, awake until it has had none for a while.
//!
//! Each decision follows from an event: a connection that waits, one more or less of those that the
//! kernel counts, an instance that has ended, an order, or a time that is over.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc::UnboundedReceiver, oneshot},
    task::JoinSet,
};

use super::{
    cold::ColdError,
    config::Site as Config,
    fleet::Fleet,
    journal::{Cause, How, What},
    recapture::{Recaptured, Recaptures},
    superseded,
    wakes::Waking,
};
use crate::{
    cold::{ColdReason, PROBATION},
    doctor::chain,
    instance::Running,
    listener::Listener,
    proxy::plan::{SiteStats, State},
};

/// How long a site that cannot be brought up is left alone, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];

/// How long a connection to a site that cannot be brought up waits until it is refused.
const REFUSAL_DELAY: Duration = Duration::from_millis(20);

/// How often it is looked at what nothing tells of, at most.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// How long after it was brought up a site is looked after: what it takes is not to be missing to its first
/// answers.
const SETTLING: Duration = Duration::from_millis(100);

/// How long none is restored to stand by after one was asked before it stood still: under load, the next
/// one would be too.
const ASKED_PAUSE: Duration = Duration::from_secs(10);

/// How often it is looked whether the image is stale, at most.
const STALE_INTERVAL: Duration = Duration::from_secs(1);

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
    /// An instance that is being started cold.
    starting: JoinSet<Started>,
    /// Those who are told when it is up.
    waiting: Vec<oneshot::Sender<Answer>>,
    recaptures: Recaptures,
    /// When it is time for what has to be done after it was brought up.
    settled_at: Option<Instant>,
    /// When it was looked last whether the image is stale.
    looked: Option<Instant>,
    /// Until when none is restored to stand by, after one could not, or was asked too soon.
    no_standby_until: Option<Instant>,
}

/// What came of a cold start.
struct Started {
    waking: Waking,
    /// The instances that it takes the place of.
    retires: Vec<String>,
    instance: Result<Running, ColdError>,
}

/// What has happened.
enum Seen {
    Connection,
    /// The instance with that number has ended.
    Exit(usize),
    Started(Box<Started>),
    /// There is a new image, or why there is none.
    Recaptured(Result<Recaptured, String>),
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
            starting: JoinSet::new(),
            waiting: vec![],
            recaptures: Recaptures::default(),
            settled_at: None,
            looked: None,
            no_standby_until: None,
        }
    }

    /// Serves the site until it is told to leave.
    pub async fn run(mut self) {
        loop {
            // After what has happened: nobody waits for it.
            if self
                .stand_by_at()
                .is_some_and(|time| Instant::now() >= time)
            {
                self.stand_by().await;
            }
            match self.next().await {
                Seen::Connection if self.is_paused() => {
                    // The proxy is to know why before it sees its connection end.
                    tokio::time::sleep(REFUSAL_DELAY).await;
                    self.fleet.socket.refuse_waiting();
                }
                Seen::Connection => self.wake(Cause::Connection).await,
                Seen::Exit(number) => self.exited(number),
                Seen::Started(started) => self.started(*started).await,
                Seen::Recaptured(outcome) => self.recaptured(outcome).await,
                Seen::Time => self.look().await,
                Seen::Order(None) => return self.leave(false).await,
                Seen::Order(Some(Order::Leave { keep })) => return self.leave(keep).await,
                Seen::Order(Some(order)) => self.obey(order).await,
            }
        }
    }

    /// Ends the site.
    async fn leave(mut self, keep: bool) {
        self.starting.abort_all();
        while let Some(ended) = self.starting.join_next().await {
            // One that has come up meanwhile is an instance like the others.
            if let Ok(started) = ended {
                self.take(started);
            }
        }
        self.fleet.leave(keep).await;
    }

    async fn next(&mut self) -> Seen {
        let look_at = self.look_at();
        let pause = async {
            match look_at {
                Some(time) => tokio::time::sleep_until(time.into()).await,
                None => std::future::pending().await,
            }
        };
        let awaits = self.fleet.is_asleep() && self.starting.is_empty();
        let connection = async {
            match awaits {
                true => self.fleet.socket.watch().await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            // What it is told comes before what comes from outside.
            biased;
            order = self.orders.recv() => Seen::Order(order),
            number = self.fleet.exit() => Seen::Exit(number),
            Some(Ok(started)) = self.starting.join_next() => Seen::Started(Box::new(started)),
            outcome = self.recaptures.ended() => Seen::Recaptured(outcome),
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
        let (stand_by, settled) = (self.stand_by_at(), self.settled_at);
        if self.fleet.is_asleep() {
            return [leaving, stand_by, settled].into_iter().flatten().min();
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
        let old = old.filter(|_| self.starting.is_empty());
        let idle = idle.and_then(|idle| match self.idle_since {
            Some(since) => Some(since + idle),
            None if self.fleet.is_counted() => None,
            // Nothing tells when a Unix socket has no connection any more.
            None => Some(Instant::now() + (idle / 4).max(LEAST_INTERVAL)),
        });
        let all = [leaving, stand_by, settled, old, idle];
        all.into_iter().flatten().min()
    }

    /// When one more instance is to be restored to stand by.
    fn stand_by_at(&self) -> Option<Instant> {
        let is_lacking = self.fleet.lacks_standby() && self.settled_at.is_none();
        let pauses = [self.paused_until, self.no_standby_until];
        let until = pauses.into_iter().flatten().max();
        is_lacking.then(|| until.unwrap_or_else(Instant::now))
    }

    /// Has one more instance stand by.
    async fn stand_by(&mut self) {
        let pause = match self.fleet.stand_by().await {
            Ok(true) => return,
            Ok(false) => ASKED_PAUSE,
            Err(reason) => {
                self.fleet.tell(What::Warned {
                    text: format!("no instance can stand by: {reason}"),
                });
                self.recapture_for(&reason);
                PAUSES[1]
            }
        };
        self.no_standby_until = Some(Instant::now() + pause);
    }

    /// Does what it is time for.
    async fn look(&mut self) {
        if self.settled_at.is_some_and(|time| Instant::now() >= time) {
            self.settled_at = None;
            self.look_whether_stale();
        }
        if self.fleet.has_leaving() {
            self.fleet.let_leave().await;
        }
        let Config { idle, max_life, .. } = self.fleet.config;
        if let Some(life) = max_life {
            let old = self.fleet.serving().iter();
            let old = old.filter(|running| running.since.elapsed() >= life);
            let old = old.map(|running| running.record().id.clone()).collect();
            self.replace(Cause::MaxLife, old).await;
        }
        while !self.fleet.is_asleep() {
            let (open, idle_since) = self.fleet.look();
            self.idle_since = idle_since;
            let is_over = |(limit, since): (Duration, Instant)| since.elapsed() >= limit;
            let may_bring_up = !self.is_paused() && self.starting.is_empty();
            if open > self.fleet.most() && may_bring_up {
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
                return self.sleep(Cause::Idle).await;
            } else {
                return;
            }
        }
    }

    /// Has others take the place of instances. If they cannot be replaced they go on.
    async fn replace(&mut self, cause: Cause, old: Vec<String>) {
        if self.is_paused() || !self.starting.is_empty() {
            return;
        }
        for _ in 0..old.len() {
            let mut waking = self.fleet.wake(cause);
            match self.fleet.bring_up(&mut waking).await {
                Ok((how, running)) => self.fleet.serve(waking, how, running),
                Err(reason) => return self.start_cold(waking, reason, old),
            }
        }
        self.fleet.retire(cause, &old);
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Leave { .. } => {}
            Order::Counted => self.look().await,
            Order::Describe(answer) => drop(answer.send(self.status())),
            Order::Configure(config) => {
                self.fleet.configure(*config);
                // There may be another image by its name.
                self.renew().await;
            }
            Order::Wake(answer) => {
                self.waiting.push(answer);
                if self.fleet.is_asleep() && self.starting.is_empty() {
                    self.wake(Cause::Asked).await;
                }
                self.answer_waiting();
            }
            Order::Sleep(answer) => {
                self.sleep(Cause::Asked).await;
                let said = match self.fleet.is_asleep() {
                    true => Ok(vec![]),
                    false => Err("it has connections".to_owned()),
                };
                let _ = answer.send(said);
            }
        }
    }

    /// Ends what serves, unless it has a connection.
    async fn sleep(&mut self, cause: Cause) {
        if !self.fleet.is_asleep() {
            // It has served, and did not fail.
            self.failures = 0;
        }
        self.fleet.sleep(cause).await;
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
        let mut waking = self.fleet.wake(cause);
        match self.fleet.bring_up(&mut waking).await {
            Ok((how, running)) => {
                self.fleet.serve(waking, how, running);
                self.wakes += 1;
                self.settled_at
                    .get_or_insert_with(|| Instant::now() + SETTLING);
            }
            Err(reason) => self.start_cold(waking, reason, vec![]),
        }
    }

    /// Begins to start an instance cold, in place of these.
    fn start_cold(&mut self, mut waking: Waking, reason: ColdReason, retires: Vec<String>) {
        let Some(cold) = self.fleet.cold() else {
            return self.fail(&reason.to_string());
        };
        self.recapture_for(&reason);
        self.fleet.tell(What::Cold { reason });
        let shared = self.fleet.shared.clone();
        waking.lap("failed");
        self.starting.spawn_local(async move {
            let instance = cold.start(&shared.store).await;
            waking.lap("cold");
            Started {
                waking,
                retires,
                instance,
            }
        });
    }

    /// Goes on after a cold start.
    async fn started(&mut self, started: Started) {
        self.take(started);
        self.look().await;
        self.answer_waiting();
    }

    /// Has an instance serve that was started cold.
    fn take(&mut self, started: Started) {
        let Started {
            waking,
            retires,
            instance,
        } = started;
        match instance {
            Ok(mut running) => {
                self.fleet.limit(&mut running);
                let cause = waking.cause();
                self.fleet.serve(waking, How::Cold, running);
                self.fleet.retire(cause, &retires);
                self.wakes += 1;
            }
            Err(error) => self.fail(&chain(&error)),
        }
    }

    /// Answers those who wait for the site to be up, unless it is still being started.
    fn answer_waiting(&mut self) {
        if self.fleet.is_asleep() && !self.starting.is_empty() {
            return;
        }
        let said = match self.fleet.is_asleep() {
            true => Err("it cannot be brought up".to_owned()),
            false => Ok(self.status().serving),
        };
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(said.clone());
        }
    }

    /// Looks by what the image may be stale that was just restored.
    fn look_whether_stale(&mut self) {
        let is_early = |looked: Instant| looked.elapsed() < STALE_INTERVAL;
        if !self.fleet.config.recapture || self.looked.is_some_and(is_early) {
            return;
        }
        self.looked = Some(Instant::now());
        let findings = self.fleet.stale();
        if findings.is_empty() {
            self.recaptures.is_fresh();
        } else if self.recapture() {
            self.fleet.tell(What::Stale { findings });
        }
    }

    /// Has a new image made if this one cannot be restored.
    fn recapture_for(&mut self, reason: &ColdReason) {
        let helps = matches!(
            reason,
            ColdReason::Damaged(_) | ColdReason::Unfit(_) | ColdReason::Quarantined(_)
        );
        if helps && self.fleet.config.recapture {
            self.recapture();
        }
    }

    /// Begins to make a new image, unless it was just tried; returns whether it did.
    fn recapture(&mut self) -> bool {
        let shared = &self.fleet.shared;
        let image = self.fleet.config.image(&self.fleet.name);
        let (store, criu) = (&shared.store, &shared.criu.path);
        match self.recaptures.begin(store, criu, image) {
            Ok(has_begun) => has_begun,
            Err(error) => {
                self.not_recaptured(chain(&error));
                false
            }
        }
    }

    async fn recaptured(&mut self, outcome: Result<Recaptured, String>) {
        let Recaptured { took, before } = match outcome {
            Ok(recaptured) => recaptured,
            Err(error) => return self.not_recaptured(error),
        };
        let image = match self.fleet.image() {
            Ok(image) => image.digest,
            Err(reason) => return self.not_recaptured(reason.to_string()),
        };
        if let Some(before) = before.filter(|before| *before != image) {
            let store = self.fleet.shared.store.clone();
            tokio::task::spawn_local(superseded::remove(store, before));
        }
        let image = image.to_string();
        self.fleet.tell(What::Recaptured { image, took });
        self.paused_until = None;
        self.renew().await;
    }

    fn not_recaptured(&mut self, error: String) {
        let pause = self.recaptures.pause();
        self.fleet.tell(What::NotRecaptured { error, pause });
    }

    /// Has instances of the image that there is now take the place of all others.
    async fn renew(&mut self) {
        self.no_standby_until = None;
        let old = self.fleet.outdated();
        self.replace(Cause::Image, old).await;
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
        let (lived, blamed) = self.fleet.exited(number);
        if let Some(reason) = blamed {
            self.recapture_for(&reason);
        }
        if lived >= PROBATION {
            self.failures = 0;
        } else if self.fleet.is_asleep() {
            self.fail("the server has ended soon after it was brought up");
        }
    }
}
