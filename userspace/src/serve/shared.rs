//! What all sites of a gateway need: where images and instances are, what counts connections, and who is
//! to be told of what happens.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{
    journal::{Cause, Event, What},
    metrics::Counts,
    wakes::{Wakes, Waking},
};
use crate::{
    criu::Program,
    host::Clocks,
    proxy::plan::State,
    store::Store,
    watch::{
        WatchError,
        connections::{Bounds, Connections, Counter},
    },
};

/// What all sites need.
pub struct Shared {
    pub store: Store,
    pub criu: Program,
    pub counter: RefCell<Counter>,
    pub wakes: RefCell<Wakes>,
    pub counts: RefCell<Counts>,
    states: UnboundedSender<(String, State)>,
    journal: Box<dyn Fn(&Event)>,
    /// The same moment by both clocks.
    began: (Instant, u64),
}

impl Shared {
    /// `states` is told how sites are.
    pub fn new(
        store: Store,
        criu: Program,
        counter: Counter,
        states: UnboundedSender<(String, State)>,
        journal: Box<dyn Fn(&Event)>,
    ) -> Self {
        Self {
            store,
            criu,
            counter: RefCell::new(counter),
            wakes: RefCell::default(),
            counts: RefCell::default(),
            states,
            journal,
            began: (Instant::now(), Clocks::now().monotonic_ns),
        }
    }

    /// Tells what has happened to a site.
    pub fn tell(&self, site: &str, what: What) {
        let event = Event {
            site: site.to_owned(),
            what,
        };
        (self.journal)(&event);
        self.counts.borrow_mut().add(&event);
        if let What::Woken(wake) = event.what {
            self.wakes.borrow_mut().keep(wake);
        }
    }

    /// A site is to be woken.
    pub fn wake(&self, site: &str, cause: Cause) -> Waking {
        self.wakes.borrow_mut().begin(site, cause)
    }

    /// Lets the proxy know how a site is.
    pub fn set_state(&self, site: &str, state: State) {
        let _ = self.states.send((site.to_owned(), state));
    }

    /// The connections of a listener. If bounds are given, the kernel tells once when they leave them.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn connections(
        &self,
        number: u32,
        bounds: Option<Bounds>,
    ) -> Result<Connections, WatchError> {
        let mut counter = self.counter.borrow_mut();
        match bounds {
            Some(bounds) => counter.bound(number, bounds),
            None => counter.of(number),
        }
    }

    /// A time of the kernel's monotonic clock.
    pub fn instant(&self, ns: u64) -> Instant {
        let (began, began_ns) = self.began;
        let since = Duration::from_nanos(ns.abs_diff(began_ns));
        let before = || began.checked_sub(since).unwrap_or(began);
        if ns > began_ns {
            began + since
        } else {
            before()
        }
    }
}
