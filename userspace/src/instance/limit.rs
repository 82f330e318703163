//! What an instance may use, changed while it runs.

use super::{Instance, InstanceError, Running};
use crate::cgroup::{CgroupError, Limits, Request, Reservation, State};

/// Why an instance is not limited.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Instance {
    /// Sets what there is to set; returns what is set then. One that was restored without a control group
    /// gets one of its own.
    ///
    /// # Errors
    /// See [`LimitError`].
    pub fn limit(&mut self, limits: &Limits) -> Result<State, LimitError> {
        if *limits != Limits::default() {
            self.put_into_group(limits)?;
        }
        let Some(group) = &self.record.group else {
            return Ok(State::UNLIMITED);
        };
        group.set(limits)?;
        Ok(group.state()?)
    }

    fn put_into_group(&mut self, limits: &Limits) -> Result<(), LimitError> {
        if self.record.group.is_some() || !self.is_running() {
            return Ok(());
        }
        let mut reservation = Reservation::new(&Request {
            parent: None,
            limits: *limits,
        })?;
        let group = reservation.gather(self.record.init, &self.record.id)?;
        let group = group.clone();
        self.set_group(group)?;
        reservation.keep();
        Ok(())
    }
}

impl Running {
    /// As [`Instance::limit`].
    ///
    /// # Errors
    /// As of that.
    pub fn limit(&mut self, limits: &Limits) -> Result<State, LimitError> {
        self.instance.limit(limits)
    }
}
