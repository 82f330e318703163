//! The instances of one site: those that serve, those that stand by, and those that are to end.
//!
//! All share one listening socket. One that stands still accepts nothing; so an instance that stands still
//! and has accepted nothing can be ended without anybody noticing.

mod scale;

use std::{
    os::fd::AsFd as _,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    accepted,
    cold::Cold,
    config, drain,
    journal::{Cause, How, What},
    prefault::prefault,
    shared::Shared,
    site::Status,
    socket::Socket,
    wakes::Waking,
};
use crate::{
    cgroup,
    cold::{ColdReason, PROBATION},
    doctor::chain,
    fit::{Allowed, Finding},
    freeze::{self, FreezeError},
    instance::{self, Running},
    listener::{self, Listener},
    proxy::plan::State,
    restore::{self, Handed, RestoreError},
    store::{CommandInfo, Image},
    tree::{self, HostPid},
    watch::connections::{Bounds, Connections},
};

/// How long a hook of the image may take.
const HOOK_LIMIT: Duration = Duration::from_secs(10);

/// An instance that is to end as soon as it has no connection any more.
struct Leaving {
    running: Running,
    cause: Cause,
    /// When it is asked to end, whatever it has.
    until: Instant,
}

/// The instances of a site.
pub struct Fleet {
    pub name: String,
    pub config: config::Site,
    pub shared: Rc<Shared>,
    pub socket: Rc<Socket>,
    /// The listener of the image that the socket takes the place of.
    old: Listener,
    /// What the server was started by, as of the last image that was found.
    command: Option<CommandInfo>,
    /// By which the kernel counts its connections; none of a Unix socket.
    number: Option<u32>,
    serving: Vec<Running>,
    standing_by: Vec<Running>,
    leaving: Vec<Leaving>,
    /// Those that are being ended.
    ending: JoinSet<()>,
    /// When it was last seen to have a connection.
    seen: Option<Instant>,
    /// There are more connections than all instances that there may be are to have.
    is_busy: bool,
}

impl Fleet {
    pub fn new(
        name: &str,
        config: &config::Site,
        shared: Rc<Shared>,
        socket: Rc<Socket>,
        old: Listener,
        number: Option<u32>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            config: config.clone(),
            shared,
            socket,
            old,
            command: None,
            number,
            serving: vec![],
            standing_by: vec![],
            leaving: vec![],
            ending: JoinSet::new(),
            seen: None,
            is_busy: false,
        }
    }

    pub fn tell(&self, what: What) {
        self.shared.tell(&self.name, what);
    }

    /// Lets the proxy know how the site is.
    pub fn set_state(&self, state: State) {
        self.shared.set_state(&self.name, state);
    }

    /// Goes on with an instance that was brought up by another gateway.
    pub fn adopt(&mut self, mut running: Running) {
        go_on(&running);
        if let Some(cause) = running.leaving() {
            return self.dismiss(running, cause);
        }
        self.tell(What::Adopted {
            instance: running.record().id.clone(),
        });
        self.limit(&mut running);
        self.serving.push(running);
    }

    pub fn is_asleep(&self) -> bool {
        self.serving.is_empty()
    }

    /// The instances that serve.
    pub fn serving(&self) -> &[Running] {
        &self.serving
    }

    /// Whether there are instances that are to end.
    pub fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Begins to bring up one more instance.
    pub fn wake(&mut self, cause: Cause) -> Waking {
        self.is_busy &= !self.is_asleep();
        let waking = self.shared.wake(&self.name, cause);
        if self.is_asleep() {
            let wake = waking.id().to_owned();
            self.set_state(State::Waking { wake });
        }
        waking
    }

    /// Brings it up: one that stands by, or a restored one.
    ///
    /// # Errors
    /// Why it is to be started cold.
    pub async fn bring_up(&mut self, waking: &mut Waking) -> Result<(How, Running), ColdReason> {
        if let Some(mut running) = self.standing_by.pop() {
            if self.is_busy {
                self.limit(&mut running);
            }
            go_on(&running);
            waking.lap("thaw");
            return Ok((How::StoodBy, running));
        }
        let restored = self.restore(waking).await;
        restored.map(|running| (How::Restored, running))
    }

    /// Has it serve from now on.
    pub fn serve(&mut self, waking: Waking, how: How, mut running: Running) {
        if self.is_asleep() {
            self.set_state(State::Ready);
        }
        running.since = Instant::now();
        self.tell(What::Woken(waking.end(how, &running.record().id)));
        self.serving.push(running);
    }

    /// How to start one more instance cold; nothing if it was never known.
    pub fn cold(&self) -> Option<Cold> {
        Some(Cold {
            site: self.name.clone(),
            image: self.config.image(&self.name).to_owned(),
            command: self.command.clone()?,
            old: self.old.clone(),
            socket: self.socket.clone(),
        })
    }

    /// Restores and freezes one more instance. Returns whether it stands by: else it has accepted a
    /// connection before it could be stopped.
    ///
    /// # Errors
    /// Why the image cannot be restored.
    pub async fn stand_by(&mut self) -> Result<bool, ColdReason> {
        let mut waking = self.shared.wake(&self.name, Cause::Connection);
        let running = self.restore(&mut waking).await?;
        if self.stand_still(&running).await.unwrap_or(false) {
            let prefaulted = prefault(running.record().init);
            tokio::task::spawn_local(async move {
                if let Err(error) = prefaulted.await {
                    tracing::debug!("no page is mapped in advance: {error}");
                }
            });
            self.standing_by.push(running);
            return Ok(true);
        }
        go_on(&running);
        match self.may_grow() {
            true => self.serve(waking, How::Restored, running),
            false => self.dismiss(running, Cause::Calm),
        }
        Ok(false)
    }

    /// Finds the image, if it is to be restored.
    pub fn image(&mut self) -> Result<Image, ColdReason> {
        let (store, name) = (&self.shared.store, self.config.image(&self.name));
        let image = store.find(Some(name));
        let image = image.map_err(|error| ColdReason::of_find(name, error.into()))?;
        self.command = Some(image.manifest.command.clone());
        match ColdReason::of_trials(store, &image) {
            Some(reason) => Err(reason),
            None => Ok(image),
        }
    }

    async fn restore(&mut self, waking: &mut Waking) -> Result<Running, ColdReason> {
        let image = self.image()?;
        waking.lap("image");
        let restored = self.restore_image(&image, waking).await;
        restored.map_err(|error| ColdReason::of_restore(&self.shared.store, &image, error))
    }

    async fn restore_image(
        &self,
        image: &Image,
        waking: &mut Waking,
    ) -> Result<Running, RestoreError> {
        let shared = &self.shared;
        let options = restore::Options {
            detached: true,
            memory: self.config.memory,
            handed: vec![Handed {
                old: self.old.clone(),
                new: self.socket.listener.clone(),
                socket: self.socket.descriptor.clone(),
            }],
            hook_limit: HOOK_LIMIT,
            site: Some(self.name.clone()),
            group: self.limits().map(|limits| cgroup::Request {
                parent: None,
                limits,
            }),
            ..restore::Options::default()
        };
        let restored = restore::restore(&shared.store, &shared.criu, image, &options).await?;
        waking.restored(&restored.timings.parts);
        let id = restored.record.id.clone();
        restored.detach().await?;
        let running = Running::follow(&shared.store.instances(), &id)?;
        waking.lap("detach");
        Ok(running)
    }

    /// By what the image may be stale.
    pub fn stale(&mut self) -> Vec<Finding> {
        let Ok(image) = self.image() else {
            return vec![];
        };
        let Shared { store, criu, .. } = &*self.shared;
        let found = restore::stale(store, criu, &image, &Allowed::default());
        found.unwrap_or_else(|error| {
            tracing::debug!("{}", chain(&error));
            vec![]
        })
    }

    /// Waits until an instance has ended by itself, and returns its number.
    pub async fn exit(&self) -> usize {
        let all = self.serving.iter().chain(&self.standing_by);
        let all = all.chain(self.leaving.iter().map(|leaving| &leaving.running));
        let exits: Vec<_> = all.map(|running| Box::pin(running.ended())).collect();
        match exits.is_empty() {
            true => std::future::pending().await,
            false => futures_util::future::select_all(exits).await.1,
        }
    }

    /// Tells of an instance that has ended by itself; returns how long it has served, and whether its image
    /// is to blame.
    pub fn exited(&mut self, number: usize) -> (Duration, Option<ColdReason>) {
        let (serving, standing_by) = (self.serving.len(), self.standing_by.len());
        let running = match number {
            number if number < serving => self.serving.remove(number),
            number if number < serving + standing_by => self.standing_by.remove(number - serving),
            number => self.leaving.remove(number - serving - standing_by).running,
        };
        let (status, log) = running.discard();
        self.tell(What::Exited {
            instance: running.record().id.clone(),
            status,
            log,
        });
        let lived = running.since.elapsed();
        let blamed = status.and_then(|status| {
            let store = &self.shared.store;
            let image = store.find(Some(running.record().image.as_deref()?)).ok()?;
            ColdReason::of_exit(store, &image, instance::exit_code(status), lived)
        });
        (lived, blamed)
    }

    /// Ends all that serve, if none of them has a connection.
    pub async fn sleep(&mut self, cause: Cause) {
        let mut is_free = true;
        if self.config.grace.is_zero() {
            for running in &self.serving {
                is_free &= self.stand_still(running).await.unwrap_or(false);
            }
        }
        if !is_free || self.connections(None).open > 0 {
            self.serving.iter().for_each(go_on);
            return;
        }
        for running in std::mem::take(&mut self.serving) {
            self.works(&running);
            self.end(running, cause).await;
        }
    }

    /// Takes note that an instance has shown that its image works.
    fn works(&self, running: &Running) {
        let store = &self.shared.store;
        let digest = running.record().image.as_ref();
        if let Some(digest) = digest.and_then(|digest| store.locate(digest).ok())
            && running.since.elapsed() >= PROBATION
        {
            store.succeeded(&digest);
        }
    }

    /// Has instances leave, as there are others in their place.
    pub fn retire(&mut self, cause: Cause, instances: &[String]) {
        let is_meant = |running: &mut Running| instances.contains(&running.record().id);
        let retired: Vec<_> = self.serving.extract_if(.., is_meant).collect();
        for running in retired {
            self.dismiss(running, cause);
        }
    }

    /// Has an instance take no more connections, and end when it has none any more.
    fn dismiss(&mut self, running: Running, cause: Cause) {
        let (record, socket) = (running.record(), self.socket.descriptor.as_fd());
        // First: another gateway must not take a deaf instance for one that serves.
        match running.set_leaving(&cause) {
            Err(error) => self.tell(What::Warned {
                text: chain(&error),
            }),
            Ok(()) => {
                if let Err(error) = drain::take_no_more(record.init, socket) {
                    tracing::debug!("{} still takes connections: {error}", record.id);
                }
            }
        }
        self.leaving.push(Leaving {
            running,
            cause,
            until: Instant::now() + self.config.drain,
        });
    }

    /// The instances that serve or stand by and are not of the image that there is now; those that stand by
    /// are ended: nobody has ever asked them.
    pub fn outdated(&mut self) -> Vec<String> {
        let Ok(image) = self.image() else {
            return vec![];
        };
        let is_of_image =
            |running: &Running| running.record().image.as_deref() == Some(image.digest.as_str());
        let is_old = |running: &mut Running| !is_of_image(running);
        for running in self.standing_by.extract_if(.., is_old).collect::<Vec<_>>() {
            self.kill(running, Cause::Image);
        }
        let old = self.serving.iter().filter(|running| !is_of_image(running));
        old.map(|running| running.record().id.clone()).collect()
    }

    /// Has one instance leave.
    pub fn reduce(&mut self, cause: Cause) {
        if let Some(running) = self.serving.pop() {
            self.dismiss(running, cause);
        }
    }

    /// Ends the instances that are to leave and have no connection any more, or no more time.
    pub async fn let_leave(&mut self) {
        for leaving in std::mem::take(&mut self.leaving) {
            let is_over = Instant::now() >= leaving.until;
            let is_free = self.stand_still(&leaving.running).await.unwrap_or(false);
            if is_free || is_over {
                self.end(leaving.running, leaving.cause).await;
            } else {
                go_on(&leaving.running);
                self.leaving.push(leaving);
            }
        }
    }

    /// Stops an instance, so that it can accept nothing. Returns whether it has accepted nothing before.
    async fn stand_still(&self, running: &Running) -> Result<bool, FreezeError> {
        let init = running.record().init;
        freeze::stop(init).await?;
        // The kernel may have counted one for another instance, or one that nobody has accepted yet.
        Ok(!self.has_accepted(init))
    }

    /// Whether a process below this init has a connection to the site.
    fn has_accepted(&self, init: HostPid) -> bool {
        let pids = tree::descendants(init);
        let has_accepted = |&pid: &HostPid| accepted::has_accepted(pid, &self.socket.listener);
        // Where none is seen they could not be looked at.
        pids.is_empty() || pids.iter().any(has_accepted)
    }

    /// Ends an instance, within the time that it has for that.
    async fn end(&mut self, running: Running, cause: Cause) {
        let grace = self.config.grace;
        if grace.is_zero() {
            return self.kill(running, cause);
        }
        self.tell_end(&running, cause);
        go_on(&running);
        if let Err(error) = running.stop(grace).await {
            self.tell(What::Warned {
                text: chain(&error),
            });
        }
    }

    /// Ends an instance that stands still, where it stands. What comes from now on is for the next one.
    fn kill(&mut self, running: Running, cause: Cause) {
        while self.ending.try_join_next().is_some() {}
        self.tell_end(&running, cause);
        self.ending.spawn_local(async move {
            let _ = running.stop(Duration::ZERO).await;
        });
    }

    fn tell_end(&self, running: &Running, cause: Cause) {
        self.tell(What::Ended {
            instance: running.record().id.clone(),
            cause,
            lived: running.since.elapsed(),
            connections: self.connections(None).taken as u64,
        });
    }

    /// How it does, but for what the site itself knows.
    pub fn status(&self) -> Status {
        let id = |running: &Running| running.record().id.clone();
        let counted = self.connections(None);
        Status {
            site: self.name.clone(),
            listener: self.socket.listener.clone(),
            image: self.config.image(&self.name).to_owned(),
            serving: self.serving.iter().map(id).collect(),
            standing_by: self.standing_by.iter().map(id).collect(),
            leaving: self
                .leaving
                .iter()
                .map(|leaving| id(&leaving.running))
                .collect(),
            open: counted.open,
            taken: counted.taken,
            wakes: 0,
            failures: 0,
            proxy: None,
        }
    }

    /// Ends all, if they are not to go on without this gateway.
    pub async fn leave(mut self, keep: bool) {
        self.ending.join_all().await;
        // Nobody has ever asked them.
        for running in self.standing_by.drain(..) {
            let _ = running.stop(Duration::ZERO).await;
        }
        if keep {
            return;
        }
        let leaving = self.leaving.drain(..).map(|leaving| leaving.running);
        let all: Vec<Running> = self.serving.drain(..).chain(leaving).collect();
        let (shared, name, grace) = (&self.shared, &self.name, self.config.grace);
        futures_util::future::join_all(all.iter().map(async |running| {
            let outcome = running.stop(grace).await;
            if let Err(error) = outcome {
                shared.tell(
                    name,
                    What::Warned {
                        text: chain(&error),
                    },
                );
            }
        }))
        .await;
    }

    /// The connections that the site has, and since when it has had none. From now on the kernel tells
    /// when there are more or less than the instances are to have.
    pub fn look(&mut self) -> (i64, Option<Instant>) {
        let above = self.most();
        let counted = loop {
            let open = self.connections(None).open;
            // With none it is a matter of time, and not told: else each connection would wake the gateway.
            let below = match open > 0 {
                true => self.fewest().max(1),
                false => i64::MIN,
            };
            let counted = self.connections(Some(Bounds { below, above }));
            // The end of one that has come meanwhile would not be told.
            if open > 0 || counted.open <= 0 {
                break counted;
            }
        };
        if counted.open > 0 {
            self.seen = Some(Instant::now());
            return (counted.open, None);
        }
        let changed = self
            .is_counted()
            .then(|| self.shared.instant(counted.changed_ns));
        let woken = self.serving.iter().map(|running| running.since).max();
        (0, [woken, changed, self.seen].into_iter().flatten().max())
    }

    /// Whether fewer stand by than are to.
    pub fn lacks_standby(&self) -> bool {
        self.standing_by.len() < self.config.standby as usize
    }

    /// Whether the kernel tells of its connections.
    pub fn is_counted(&self) -> bool {
        self.number.is_some()
    }

    /// The connections that it has. From now on the kernel tells when there are less or more than these
    /// bounds, if any are given.
    fn connections(&self, bounds: Option<Bounds>) -> Connections {
        let Some(number) = self.number else {
            return Connections {
                open: listener::connections_of(&self.socket.listener) as i64,
                ..Connections::default()
            };
        };
        self.shared
            .connections(number, bounds)
            .unwrap_or_else(|error| {
                self.tell(What::Warned {
                    text: chain(&error),
                });
                // If the kernel does not tell, it may have some.
                Connections {
                    open: 1,
                    ..Connections::default()
                }
            })
    }
}

fn go_on(running: &Running) {
    tree::resume(running.record().init);
}
