//! `warmimg serve`, `wake`, `sleep` and `top`

use std::{collections::BTreeMap, path::Path, time::Instant};

use tokio::task::LocalSet;

use super::{open_store, prepare, run::ready, supervise::Signals};
use crate::{
    cli,
    error::Error,
    instance,
    report::Report,
    serve::{
        Config, Gateway, GatewayError, Status, activation,
        admin::{AdminError, Reply, Request, ask},
    },
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Serve,
    report: &Report,
) -> Result<u8, Error> {
    let config = Config::read(&arguments.config)?;
    let (store, criu) = prepare(global)?;
    if arguments.check {
        Gateway::check(&store, &config)?;
        report.serve_checked(&arguments.config, &config)?;
        return Ok(0);
    }
    let passed = activation::passed().map_err(GatewayError::Passed)?;
    let mut signals = Signals::catch()?;
    let teller = report.clone();
    let journal = Box::new(move |event: &_| {
        // Nobody reads it any more: that is no reason to serve no more.
        let _ = teller.serve_event(event);
    });
    let serving = async {
        let mut gateway = Gateway::start(store, criu, &config, passed, journal).await?;
        ready();
        let keep = loop {
            let number = tokio::select! {
                error = gateway.pass_on() => return Err(error.into()),
                number = signals.next() => number,
            };
            match number {
                libc::SIGTERM | libc::SIGINT => break false,
                libc::SIGUSR2 => break true,
                libc::SIGHUP => {
                    if let Err(error) = configure(&mut gateway, &arguments.config).await {
                        report.error(&error);
                    }
                }
                _ => {}
            }
        };
        gateway.leave(keep).await;
        Ok(0)
    };
    LocalSet::new().run_until(serving).await
}

/// Serves what the configuration says now. If it cannot be served, all goes on as before.
async fn configure(gateway: &mut Gateway, path: &Path) -> Result<(), Error> {
    let config = Config::read(path)?;
    Ok(gateway.configure(&config).await?)
}

pub async fn wake(
    global: &cli::Global,
    arguments: &cli::SiteName,
    report: &Report,
) -> Result<u8, Error> {
    let request = Request::Wake(arguments.site.clone());
    let instances = done(&arguments.site, ask(&global.store, &request).await?)?;
    report.awake(&arguments.site, &instances)?;
    Ok(0)
}

pub async fn sleep(
    global: &cli::Global,
    arguments: &cli::SiteName,
    report: &Report,
) -> Result<u8, Error> {
    let request = Request::Sleep(arguments.site.clone());
    done(&arguments.site, ask(&global.store, &request).await?)?;
    report.asleep(&arguments.site)?;
    Ok(0)
}

fn done(site: &str, reply: Reply) -> Result<Vec<String>, AdminError> {
    match reply {
        Reply::Done(instances) => Ok(instances),
        Reply::Unknown { sites } => Err(AdminError::Unknown {
            wanted: site.to_owned(),
            sites,
        }),
        Reply::Refused(reason) => Err(AdminError::Refused {
            site: site.to_owned(),
            reason,
        }),
        Reply::Sites(_) | Reply::Trace { .. } => Ok(vec![]),
    }
}

pub async fn top(global: &cli::Global, arguments: &cli::Top, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let is_live = !arguments.once && report.can_redraw();
    let mut last: Option<(Instant, Vec<Status>)> = None;
    loop {
        let asked = Instant::now();
        let sites = match ask(&global.store, &Request::Status).await? {
            Reply::Sites(sites) => sites,
            _ => vec![],
        };
        let instances = instance::list(&store.instances()).into_iter();
        let memory: BTreeMap<_, _> = instances
            .filter_map(|instance| Some((instance.record.id.clone(), instance.memory()?)))
            .collect();
        let before = last.map(|(time, sites)| (asked - time, sites));
        report.sites(&sites, &memory, before.as_ref(), is_live)?;
        if !is_live {
            return Ok(0);
        }
        last = Some((asked, sites));
        tokio::time::sleep(arguments.interval).await;
    }
}
