//! `warmimg ps`, `stop` and `logs`

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use super::open_store;
use crate::{
    cli,
    error::Error,
    instance::{self, Instance},
    report::Report,
};

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

pub fn ps(global: &cli::Global, report: &Report) -> Result<u8, Error> {
    let found = instance::list(&open_store(global)?.instances());
    let with_memory = found.into_iter().map(|instance| {
        let memory = instance.memory();
        (instance, memory)
    });
    report.instances(&with_memory.collect::<Vec<_>>())?;
    Ok(0)
}

pub async fn stop(
    global: &cli::Global,
    arguments: &cli::Stop,
    report: &Report,
) -> Result<u8, Error> {
    let folder = open_store(global)?.instances();
    let wanted: Vec<Instance> = match arguments.all {
        true => instance::list(&folder),
        false => {
            let found: Result<Vec<_>, _> = arguments
                .instances
                .iter()
                .map(|wanted| instance::find(&folder, wanted))
                .collect();
            found?
        }
    };
    for instance in &wanted {
        let killed = instance.stop(arguments.timeout).await?;
        report.stopped(instance, killed)?;
    }
    Ok(0)
}

pub async fn logs(global: &cli::Global, arguments: &cli::Logs) -> Result<u8, Error> {
    let folder = open_store(global)?.instances();
    let instance = instance::find(&folder, &arguments.instance)?;
    let mut log = instance.log()?;
    let mut stdout = std::io::stdout();
    loop {
        // Looked at before reading, so that nothing written before its end is missed.
        let running = instance.is_running();
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes).map_err(Error::Output)?;
        match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(0),
            other => other.map_err(Error::Output)?,
        }
        if !arguments.follow || !running {
            return Ok(0);
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}
