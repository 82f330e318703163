//! How many instances there are to be for the connections that there are, and how much of the processors
//! each may use.
//!
//! First there are more instances; when there are as many as there may be, each may use more. It goes back
//! at fewer connections than it came at, so that it does not come and go with each of them.

use super::Fleet;
use crate::{
    cgroup::Limits,
    doctor::chain,
    instance::Running,
    serve::{
        config,
        journal::{Cause, What},
    },
};

impl Fleet {
    /// From how many connections on there is to be another instance, or each may use more.
    pub fn most(&self) -> i64 {
        let can_change = self.may_grow() || (!self.is_busy && self.config.busy_cpus.is_some());
        match self.config.connections {
            Some(each) if can_change => i64::from(each) * self.serving.len() as i64,
            _ => i64::MAX,
        }
    }

    /// With how many connections there is to be one instance less, or each may use no more than before:
    /// not so many that it would be otherwise again at once.
    pub fn fewest(&self) -> i64 {
        let enough = match self.is_busy {
            true => self.serving.len(),
            false => self.serving.len().saturating_sub(1),
        } as i64;
        let each = self.config.connections.map_or(0, i64::from);
        // Rounded up when busy: one connection may be all that an instance is to have.
        (each * enough * 3 + i64::from(self.is_busy) * 3) / 4
    }

    /// Whether there may be more instances than there are.
    pub fn may_grow(&self) -> bool {
        self.serving.len() < self.config.max as usize
    }

    /// Whether the instances may use more than usual.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Has all that serve use as much of the processors as they may when it is busy, or as usual.
    pub fn set_busy(&mut self, is_busy: bool, connections: i64) {
        self.is_busy = is_busy;
        let Some(limits) = self.limits() else { return };
        if let Some(cpus) = limits.cpus {
            let cause = if is_busy { Cause::Load } else { Cause::Calm };
            self.tell(What::Limited {
                cpus,
                cause,
                connections,
            });
        }
        self.limit_serving(&limits);
    }

    /// Serves as it is told from now on.
    pub fn configure(&mut self, config: config::Site) {
        let before = self.limits().unwrap_or_default();
        self.config = config;
        self.is_busy &= self.config.busy_cpus.is_some();
        let limits = self.limits().unwrap_or_default();
        if limits != before {
            self.limit_serving(&limits.instead_of(before));
        }
    }

    /// What an instance may use now, if that is limited.
    pub fn limits(&self) -> Option<Limits> {
        self.config.limits(self.is_busy)
    }

    /// Limits those that serve and those that stand by. What cannot be limited serves on.
    fn limit_serving(&mut self, limits: &Limits) {
        let all = self.serving.iter_mut().chain(&mut self.standing_by);
        let failed: Vec<_> = all
            .filter_map(|running| running.limit(limits).err())
            .collect();
        for error in failed {
            self.tell(What::Warned {
                text: chain(&error),
            });
        }
    }

    /// Limits an instance that was not restored just now.
    pub fn limit(&self, running: &mut Running) {
        let Some(limits) = self.limits() else { return };
        if let Err(error) = running.limit(&limits) {
            self.tell(What::Warned {
                text: chain(&error),
            });
        }
    }
}
