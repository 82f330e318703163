//! `warmimg limit`

use super::open_store;
use crate::{
    cli,
    error::Error,
    instance::{self, Instance, InstanceError},
    report::Report,
};

pub fn run(global: &cli::Global, arguments: &cli::Limit, report: &Report) -> Result<u8, Error> {
    let folder = open_store(global)?.instances();
    let wanted = &arguments.instance;
    let of_site = |instance: &Instance| {
        instance.record.site.as_ref() == Some(wanted) && instance.is_running()
    };
    let mut all = instance::list(&folder);
    let is_named = all.iter().any(|instance| instance.record.id == *wanted);
    all.retain(|instance| match is_named {
        true => instance.record.id == *wanted,
        false => of_site(instance),
    });
    if all.is_empty() {
        // Says which there are.
        all.push(instance::find(&folder, wanted)?);
    }
    for instance in &mut all {
        let limited = instance.limit(&arguments.limits.limits());
        // Whatever else failed: its group goes with it.
        if !instance.is_running() {
            let id = instance.record.id.clone();
            return Err(InstanceError::Ended { id }.into());
        }
        report.limits(&instance.record.id, &limited?)?;
    }
    Ok(0)
}
