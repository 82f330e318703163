//! A site as the proxy knows it: where it is, whether it answers, what is in flight, and what was done.
//! What is counted here outlives a reload.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    plan::{self, BUCKETS, SiteStats, State, bucket_us},
    upstream::Pool,
};

/// A site with the settings of a plan.
#[derive(Debug)]
pub struct Site {
    pub name: String,
    pub settings: plan::Site,
    pub live: Arc<Live>,
}

impl Site {
    pub fn idle(&self) -> Duration {
        Duration::from_millis(self.settings.idle_connection_ms)
    }

    pub fn first_byte_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.first_byte_timeout_ms)
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// In how many seconds it should be tried again, if it cannot be served now.
    pub fn admit(self: &Arc<Self>, begun: Instant) -> Result<InFlight, u32> {
        if let Some(seconds) = self.live.failed_for() {
            self.live.refused.fetch_add(1, Relaxed);
            return Err(seconds);
        }
        let waiting = self.live.waiting.fetch_add(1, Relaxed);
        if waiting >= u64::from(self.settings.max_in_flight_waiting) {
            self.live.waiting.fetch_sub(1, Relaxed);
            self.live.refused.fetch_add(1, Relaxed);
            return Err(1);
        }
        self.live.in_flight.fetch_add(1, Relaxed);
        Ok(InFlight {
            site: self.clone(),
            begun,
            first_byte_us: AtomicU64::new(NONE),
        })
    }
}

/// The last time that the site was brought up.
#[derive(Debug)]
struct Wake {
    id: String,
    began: Instant,
    ended: Option<Instant>,
}

/// What changes of a site.
#[derive(Debug)]
pub struct Live {
    /// Connections without a request, for each worker.
    pub pools: Box<[Mutex<Pool>]>,
    pub in_flight: AtomicU64,
    waiting: AtomicU64,
    answers: [AtomicU64; 5],
    refused: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    first_byte: [AtomicU64; BUCKETS],
    first_byte_us: AtomicU64,
    failed_until: Mutex<Option<Instant>>,
    has_failed: AtomicBool,
    wake: Mutex<Option<Wake>>,
    is_waking: AtomicBool,
}

impl Live {
    pub fn new(workers: usize) -> Self {
        Self {
            pools: (0..workers).map(|_| Mutex::default()).collect(),
            in_flight: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            answers: Default::default(),
            refused: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            first_byte: Default::default(),
            first_byte_us: AtomicU64::new(0),
            failed_until: Mutex::new(None),
            has_failed: AtomicBool::new(false),
            wake: Mutex::new(None),
            is_waking: AtomicBool::new(false),
        }
    }

    pub fn set(&self, state: State) {
        let now = Instant::now();
        let until = match state {
            State::Waking { wake: id } => {
                *self.last_wake() = Some(Wake {
                    id,
                    began: now,
                    ended: None,
                });
                self.is_waking.store(true, Relaxed);
                return;
            }
            State::Ready => None,
            State::Failed { retry_after_s } => {
                now.checked_add(Duration::from_secs(retry_after_s.into()))
            }
        };
        self.end_wake();
        *self
            .failed_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = until;
        self.has_failed.store(until.is_some(), Relaxed);
    }

    fn last_wake(&self) -> MutexGuard<'_, Option<Wake>> {
        self.wake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The site is up: it answers, or the gateway says so.
    fn end_wake(&self) {
        if self.is_waking.load(Relaxed)
            && self.is_waking.swap(false, Relaxed)
            && let Some(wake) = &mut *self.last_wake()
        {
            wake.ended = Some(Instant::now());
        }
    }

    /// The wake that a request waited for that came and was answered at these times.
    pub fn wake(&self, came: Instant, answered: Instant) -> Option<String> {
        let wake = self.last_wake();
        let wake = wake.as_ref()?;
        let was_over = wake.ended.is_some_and(|ended| ended < came);
        (wake.began <= answered && !was_over).then(|| wake.id.clone())
    }

    /// For how many seconds more it does not come up; none if it may.
    pub fn failed_for(&self) -> Option<u32> {
        if !self.has_failed.load(Relaxed) {
            return None;
        }
        let until = *self
            .failed_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let left = until?.checked_duration_since(Instant::now())?;
        Some(left.as_secs() as u32 + u32::from(left.subsec_nanos() > 0))
    }

    pub fn stats(&self) -> SiteStats {
        SiteStats {
            answers: self.answers.each_ref().map(|one| one.load(Relaxed)),
            refused: self.refused.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            first_byte: self.first_byte.each_ref().map(|one| one.load(Relaxed)),
            first_byte_us: self.first_byte_us.load(Relaxed),
        }
    }

    pub fn count_answer(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.answers[class].fetch_add(1, Relaxed);
    }
}

const NONE: u64 = u64::MAX;

/// A request, or a tunnel, as long as it lasts.
#[derive(Debug)]
pub struct InFlight {
    site: Arc<Site>,
    begun: Instant,
    first_byte_us: AtomicU64,
}

impl InFlight {
    /// The answer begins.
    pub fn note_first_byte(&self) {
        let time = self.begun.elapsed().as_micros() as u64;
        let none_yet = self
            .first_byte_us
            .compare_exchange(NONE, time, Relaxed, Relaxed);
        if none_yet.is_err() {
            return;
        }
        self.site.live.waiting.fetch_sub(1, Relaxed);
        self.site.live.end_wake();
        let place = (0..BUCKETS - 1).find(|&place| time < bucket_us(place));
        self.site.live.first_byte[place.unwrap_or(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.site.live.first_byte_us.fetch_add(time, Relaxed);
    }

    pub fn first_byte(&self) -> Option<Duration> {
        let time = self.first_byte_us.load(Relaxed);
        (time != NONE).then(|| Duration::from_micros(time))
    }

    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.first_byte().is_none() {
            self.site.live.waiting.fetch_sub(1, Relaxed);
        }
        self.site.live.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_for_a_wake_that_goes_on_meanwhile() {
        let live = Live::new(1);
        let before = Instant::now();
        assert_eq!(live.wake(before, before), None);
        live.set(State::Waking { wake: "a-1".into() });
        let during = Instant::now();
        assert_eq!(live.wake(before, before), None);
        assert_eq!(live.wake(before, during).as_deref(), Some("a-1"));
        live.set(State::Ready);
        let after = Instant::now();
        assert_eq!(live.wake(during, after).as_deref(), Some("a-1"));
        assert_eq!(live.wake(after, after), None);
    }
}
