//! `warmimg limit`

use super::open_store;
use crate::{
    cgroup::{Limits, Request, Reservation, State},
    cli,
    error::Error,
    instance::{self, Instance, InstanceError},
    report::Report,
};

pub fn run(global: &cli::Global, arguments: &cli::Limit, report: &Report) -> Result<u8, Error> {
    let folder = open_store(global)?.instances();
    let mut instance = instance::find(&folder, &arguments.instance)?;
    let limited = limit(&mut instance, &arguments.limits.limits());
    // Whatever else failed: its group goes with it.
    if !instance.is_running() {
        let id = instance.record.id;
        return Err(InstanceError::Ended { id }.into());
    }
    report.limits(&instance.record.id, &limited?)?;
    Ok(0)
}

fn limit(instance: &mut Instance, limits: &Limits) -> Result<State, Error> {
    if *limits != Limits::default() {
        put_into_group(instance, limits)?;
    }
    let Some(group) = &instance.record.group else {
        return Ok(State::UNLIMITED);
    };
    group.set(limits)?;
    Ok(group.state()?)
}

/// Gives an instance that was restored without a group one of its own.
fn put_into_group(instance: &mut Instance, limits: &Limits) -> Result<(), Error> {
    if instance.record.group.is_some() || !instance.is_running() {
        return Ok(());
    }
    let mut reservation = Reservation::new(&Request {
        parent: None,
        limits: *limits,
    })?;
    let record = &instance.record;
    let group = reservation.gather(record.init, &record.id)?.clone();
    instance.set_group(group)?;
    reservation.keep();
    Ok(())
}
