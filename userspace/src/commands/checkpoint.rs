//! `warmimg checkpoint`

use std::time::Duration;

use super::{capture::default_name, encrypted::Workshop, prepare, supervise::Signals};
use crate::{
    capture::checkpoint::{self, Options},
    cli,
    error::Error,
    instance::{self, Instance, InstanceError, State},
    report::Report,
    store::{self, Image, Store},
    tree::{self, HostPid, Top},
};

/// How long what is left of an instance may take to end once its tree is gone.
const GRACE: Duration = Duration::from_secs(10);

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Checkpoint,
    report: &Report,
) -> Result<u8, Error> {
    let (store, criu) = prepare(global)?;
    let (top, instance) = find(&store, &arguments.pid)?;
    let image = instance
        .as_ref()
        .and_then(|instance| image_of(&store, instance));
    let name = match (&arguments.name, &image) {
        (Some(name), _) => name.clone(),
        (None, Some(Image { names, .. })) if !names.is_empty() => names[0].clone(),
        (None, _) => default_name(&[program_of(top)]),
    };
    store::check_name(&name)?;
    let options = Options {
        top,
        name,
        image,
        outbound: arguments.connections.treatment(),
        leave_running: arguments.leave_running,
    };
    let workshop = Workshop::new(&store, &arguments.encrypt)?;
    if let Some(image) = &options.image
        && !workshop.encrypts()
        && store.encrypted(&image.digest)?.is_some()
    {
        return Err(Error::WouldBePlain(image.label().to_owned()));
    }
    let mut signals = Signals::catch()?;
    let progress = report.progress();
    let image = tokio::select! {
        image = checkpoint::checkpoint(workshop.store(), &criu, &options, |step| progress.show(&step)) => image,
        () = signals.ended() => Err(crate::capture::CaptureError::Interrupted),
    };
    progress.clear();
    let image = image.map_err(|error| workshop.explain(error))?;
    workshop.finish(&image, &options.name, report)?;
    if let Some(instance) = instance.filter(|_| !arguments.leave_running) {
        instance.stop(GRACE).await?;
    }
    report.captured(&image, &global.store)?;
    Ok(0)
}

/// What is meant: an instance by its name, or a process by its pid, which may be an instance's.
fn find(store: &Store, wanted: &str) -> Result<(Top, Option<Instance>), Error> {
    let pid = wanted.parse().ok().map(HostPid);
    let all = instance::list(&store.instances());
    let is_meant = |instance: &&Instance| {
        let init = instance.record.init;
        instance.state == State::Running
            && pid.map_or(instance.record.id == wanted, |pid| {
                pid == init || tree::children(init).contains(&pid)
            })
    };
    let supervises = |pid: HostPid| {
        let below = tree::descendants(pid);
        let mut running = all.iter().filter(|i| i.state == State::Running);
        running.find(|instance| below.contains(&instance.record.init))
    };
    if let Some(instance) = pid.and_then(supervises) {
        return Err(Error::Supervisor(instance.record.id.clone()));
    }
    match (all.iter().find(is_meant), pid) {
        (Some(instance), _) => Ok((Top::Init(instance.record.init), Some(instance.clone()))),
        (None, Some(pid)) => Ok((Top::Root(pid), None)),
        (None, None) => {
            let instance = instance::find(&store.instances(), wanted)?;
            let id = instance.record.id;
            Err(InstanceError::Ended { id }.into())
        }
    }
}

/// The image that an instance was restored from, if it is still there.
fn image_of(store: &Store, instance: &Instance) -> Option<Image> {
    store.find(Some(instance.record.image.as_deref()?)).ok()
}

/// The program of the root.
fn program_of(top: Top) -> String {
    let root = match top {
        Top::Root(root) => Some(root),
        Top::Init(init) => tree::children(init).first().copied(),
    };
    let process = root.and_then(|root| procfs::process::Process::new(root.0).ok());
    let program = process.and_then(|process| process.exe().ok());
    program.unwrap_or_default().display().to_string()
}
