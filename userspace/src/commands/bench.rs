//! `warmimg bench`

use super::{prepare, rehearse, subjects::Subjects, supervise::Signals};
use crate::{
    bench::{
        self, Options, Results,
        gate::{self, Finding},
        results::{Settings, SubjectKind},
    },
    capture, cli,
    criu::Program,
    elsewhere::Elsewhere,
    error::{Error, ExitCode},
    listener,
    report::{Exports, Report},
    spawn::{Command, CommandError},
    store::{Image, Store},
    target::{self, ExpectedStatus, Protocol, Target},
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Bench,
    report: &Report,
) -> Result<u8, Error> {
    let mut signals = Signals::catch()?;
    // What can be wrong about the command line shows before anything takes its time.
    if arguments.how.connections.tcp_established {
        return Err(Error::EstablishedAgain("bench"));
    }
    let stored = arguments
        .against
        .as_deref()
        .map(Results::read)
        .transpose()?;
    let exports = Exports::prepare(arguments)?;
    let settings = Settings {
        runs: arguments.runs as usize,
        warmup_runs: arguments.warmup_runs as usize,
        requests: arguments.requests as usize,
        drop_caches: arguments.drop_caches,
        status: ExpectedStatus(arguments.status),
    };
    let url = named_target(arguments)?;
    let (store, criu) = prepare(global)?;
    let version = criu.check(crate::host::kernel_version())?;
    let image = arguments.image.as_deref();
    let image = image.map(|wanted| store.find(Some(wanted))).transpose()?;
    image.as_ref().map_or(Ok(()), Image::check)?;
    if let Some(stored) = &stored {
        let points = match &image {
            Some(image) => vec![image.manifest.capture.point],
            None => arguments.at.clone(),
        };
        let restored = |point| SubjectKind::Restored { point };
        let kinds: Vec<_> = points.into_iter().map(restored).collect();
        gate::check(&kinds, &settings, stored)?;
    }

    let temporary = store.temporary()?;
    let (cold, images, images_store) = match image {
        Some(image) => (cold_start_of(&image)?, vec![image], &store),
        None => {
            let cold = Command::resolve(&arguments.words, arguments.user.as_deref())?;
            let images =
                capture_all(&temporary, &criu, &cold, arguments, report, signals.ended()).await?;
            (cold, images, &*temporary)
        }
    };
    let folder = &cold.working_directory;
    let listeners = &images[0].manifest.listeners;
    let chosen = listener::choose(listeners, arguments.how.listener.as_ref());
    let target = match (url, chosen) {
        (Some(url), _) => url,
        (None, Some(listener)) => Target::of_listener(listener, folder),
        (None, None) => return Err(Error::NothingToAsk),
    };
    let work = temporary.root().join("criu-work");
    let subjects = Subjects {
        store: images_store,
        criu: &criu,
        work: &work,
    };
    let options = Options {
        command: cold.words(),
        sockets: listeners
            .iter()
            .filter_map(|listener| listener.file(folder))
            .collect(),
        subjects: subjects.all(cold, &images, &arguments.baseline)?,
        target,
        settings,
        limit: arguments.timeout,
        criu: version,
    };
    let progress = report.progress();
    let measured = bench::measure(&options, signals.ended(), |step| progress.show_run(&step)).await;
    progress.clear();
    let results = measured?;
    let findings = judge(&results, stored.as_ref(), arguments);
    exports.write(&results, &findings)?;
    report.benchmarked(&results, &findings)?;
    let failed = findings.iter().any(|finding| finding.verdict.is_failure());
    Ok(if failed {
        ExitCode::GateFailed as u8
    } else {
        0
    })
}

/// What the command line says to ask.
fn named_target(arguments: &cli::Bench) -> Result<Option<Target>, Error> {
    let Some(url) = arguments.url.clone() else {
        return Ok(None);
    };
    let meaningless = |option| Error::Meaningless {
        option,
        url: url.to_string(),
    };
    let target = match &arguments.send {
        Some(_) if url.is_http_url() => return Err(meaningless("--send")),
        Some(text) => url
            .clone()
            .sending(target::unescape(text).map_err(Error::Escape)?),
        None => url.clone(),
    };
    if arguments.status.is_some() && matches!(target.protocol, Protocol::Raw { .. }) {
        return Err(meaningless("--status"));
    }
    Ok(Some(target))
}

fn judge(results: &Results, stored: Option<&Results>, arguments: &cli::Bench) -> Vec<Finding> {
    let mut findings = stored.map_or_else(Vec::new, |stored| {
        gate::compare(results, stored, arguments.max_regression)
    });
    if let Some(least) = arguments.min_speedup {
        findings.extend(gate::require(results, least));
    }
    findings
}

/// Makes an image at each of the points, none twice.
async fn capture_all(
    store: &Store,
    criu: &Program,
    command: &Command,
    arguments: &cli::Bench,
    report: &Report,
    interrupted: impl Future<Output = ()>,
) -> Result<Vec<Image>, Error> {
    tokio::pin!(interrupted);
    let how = arguments.how.checked(&arguments.at)?;
    let mut images: Vec<Image> = Vec::new();
    for &point in &arguments.at {
        if images
            .iter()
            .any(|image| image.manifest.capture.point == point)
        {
            continue;
        }
        let options = capture::Options {
            command: command.clone(),
            point,
            limit: arguments.timeout,
            name: point.to_string(),
            how: how.clone().at(point),
            leave_running: false,
            profiled: None,
            elsewhere: Elsewhere::default(),
        };
        let progress = report.progress();
        let captured = capture::capture(store, criu, &options, &mut interrupted, |step| {
            progress.show(&step);
        })
        .await;
        progress.clear();
        let asked = (&options.how.warmups[..], options.limit);
        let image = captured?.image;
        images.push(rehearse::after_warm(store, criu, image, asked, &mut interrupted).await?);
    }
    Ok(images)
}

/// The command that an image was captured from.
fn cold_start_of(image: &Image) -> Result<Command, CommandError> {
    let command = &image.manifest.command;
    Command::again(
        &command.words,
        &command.environment,
        &command.working_directory,
        command.user.as_deref(),
    )
}
