//! The wakes of sites: what each was, where its time went, and the last of them for those who ask later.
//!
//! Invariant: the phases of a wake follow one another without a gap, and add up to it.

use std::{borrow::Cow, collections::VecDeque, time::Instant};

use serde::{Deserialize, Serialize};

use super::journal::{Cause, How};
use crate::{restore::Parts, store::now_ms};

/// How many wakes are kept.
const KEPT: usize = 1000;

/// A part of a wake, in microseconds since it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: Cow<'static, str>,
    pub start_us: u64,
    pub length_us: u64,
}

/// An instance that was brought up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// Never given again, not by the next gateway either.
    pub id: String,
    pub site: String,
    pub instance: String,
    pub cause: Cause,
    pub how: How,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    pub took_us: u64,
    pub phases: Vec<Phase>,
}

/// A wake that is under way.
pub struct Waking {
    id: String,
    site: String,
    cause: Cause,
    started_ms: u64,
    begun: Instant,
    phases: Vec<Phase>,
}

impl Waking {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// What was done since the last phase is this one.
    pub fn lap(&mut self, name: &'static str) {
        let now = self.begun.elapsed().as_micros() as u64;
        self.add(name, now.saturating_sub(self.end_us()));
    }

    /// What was done since the last phase is a restore. What it does not know of is left to the next.
    pub fn restored(&mut self, parts: &Parts) {
        for (name, length_us) in [
            ("image", parts.image_us),
            ("namespaces", parts.namespaces_us),
            ("checks", parts.checks_us),
            ("fit", parts.fit_us),
            ("criu", parts.criu_us()),
            ("listening", parts.listening_us.unwrap_or(0)),
            ("record", parts.record_us),
            ("hooks", parts.hooks_us),
            ("other", parts.other_us),
        ] {
            self.add(name, length_us);
        }
    }

    /// The instance serves.
    pub fn end(self, how: How, instance: &str) -> Wake {
        Wake {
            took_us: self.end_us(),
            id: self.id,
            site: self.site,
            instance: instance.to_owned(),
            cause: self.cause,
            how,
            started_ms: self.started_ms,
            phases: self.phases,
        }
    }

    fn add(&mut self, name: &'static str, length_us: u64) {
        let start_us = self.end_us();
        match self.phases.last_mut() {
            Some(last) if last.name == name => last.length_us += length_us,
            _ if length_us == 0 => {}
            _ => self.phases.push(Phase {
                name: name.into(),
                start_us,
                length_us,
            }),
        }
    }

    fn end_us(&self) -> u64 {
        let last = self.phases.last();
        last.map_or(0, |last| last.start_us + last.length_us)
    }
}

/// The wakes of a gateway.
pub struct Wakes {
    /// When the gateway began, in milliseconds since the Unix epoch: no two have that in common.
    began_ms: u64,
    count: u64,
    last: VecDeque<Wake>,
}

impl Default for Wakes {
    fn default() -> Self {
        Self {
            began_ms: now_ms(),
            count: 0,
            last: VecDeque::new(),
        }
    }
}

impl Wakes {
    /// A site is to be woken.
    pub fn begin(&mut self, site: &str, cause: Cause) -> Waking {
        self.count += 1;
        Waking {
            id: format!("{:x}-{}", self.began_ms, self.count),
            site: site.to_owned(),
            cause,
            started_ms: now_ms(),
            begun: Instant::now(),
            phases: vec![],
        }
    }

    /// Keeps a wake for those who ask later.
    pub fn keep(&mut self, wake: Wake) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(wake);
    }

    /// The wake with this id, else the last; of a site, if one is named.
    pub fn find(&self, id: Option<&str>, site: Option<&str>) -> Option<&Wake> {
        self.last.iter().rev().find(|wake| {
            id.is_none_or(|id| wake.id == id) && site.is_none_or(|site| wake.site == site)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_one_another_and_add_up() {
        let mut wakes = Wakes::default();
        let mut waking = wakes.begin("shop", Cause::Connection);
        waking.lap("image");
        let parts = Parts {
            image_us: 700,
            namespaces_us: 900,
            criu_forking_us: Some(100),
            criu_rest_us: Some(4000),
            other_us: 20,
            ..Parts::default()
        };
        waking.restored(&parts);
        waking.lap("detach");
        let wake = waking.end(How::Restored, "shop-1");
        let names: Vec<_> = wake.phases.iter().map(|phase| &*phase.name).collect();
        assert_eq!(names[..4], ["image", "namespaces", "criu", "other"]);
        let mut end_us = 0;
        for phase in &wake.phases {
            assert_eq!(phase.start_us, end_us);
            end_us += phase.length_us;
        }
        assert_eq!(wake.took_us, end_us);
        assert!(wake.took_us >= 5720, "{wake:?}");
    }

    #[test]
    fn the_last_wakes_are_kept() {
        let mut wakes = Wakes::default();
        let mut ids = vec![];
        for number in 0..=KEPT {
            let site = if number % 2 == 0 { "even" } else { "odd" };
            let wake = wakes.begin(site, Cause::Asked).end(How::StoodBy, "a-1");
            ids.push(wake.id.clone());
            wakes.keep(wake);
        }
        let found = |id: Option<&str>, site: Option<&str>| {
            wakes.find(id, site).map(|wake| wake.id.as_str())
        };
        let last = ids.last().map(String::as_str);
        assert_eq!(
            (found(None, None), found(Some(&ids[0]), None)),
            (last, None)
        );
        assert_eq!(found(None, Some("odd")), Some(&*ids[KEPT - 1]));
        assert_eq!(found(Some(&ids[7]), Some("odd")), Some(&*ids[7]));
        assert_eq!(found(Some(&ids[7]), Some("even")), None);
    }
}
