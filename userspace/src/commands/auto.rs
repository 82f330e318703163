//! `warmimg capture --at auto`: an image at each point that applies, each restored several times, and
//! the best of them kept.

use super::{rehearse, subjects::Subjects, supervise::Signals};
use crate::{
    bench::{self, Results, choice, results::Settings},
    capture::{self, CaptureError, Options},
    criu::Program,
    elsewhere::Elsewhere,
    error::Error,
    listener,
    report::{AutoRow, Report},
    store::{Image, Store},
    target::{ExpectedStatus, Target},
    warmup::WarmupError,
    watch::CapturePoint,
};

/// How often each image is restored, besides a first time that does not count.
const RUNS: usize = 7;

/// The images, and why there is none at other points.
#[derive(Default)]
struct Captures {
    images: Vec<Image>,
    failures: Vec<(CapturePoint, String)>,
    /// What the server answers to the first request if it is not what was expected.
    status: ExpectedStatus,
}

/// Captures as `options` say, but at each point; puts the best image into the store.
pub async fn capture_best(
    store: &Store,
    criu: &Program,
    options: &Options,
    signals: &mut Signals,
    report: &Report,
) -> Result<Image, Error> {
    let temporary = store.temporary()?;
    let captures = capture_all(&temporary, criu, options, signals, report).await?;
    let results = measure(&temporary, criu, options, &captures, signals, report).await;
    let results = results.map_err(|error| match error {
        Error::Bench(error) => Error::Compare(error),
        other => other,
    })?;
    let choice = choice::choose(&results).ok_or(CaptureError::NoListener)?;
    let kept = &captures.images[choice.subject];
    let rows = captures.images.iter().zip(&results.subjects);
    let mut rows: Vec<AutoRow> = rows
        .map(|(image, subject)| AutoRow::Measured {
            point: image.manifest.capture.point,
            first_response: subject.median(bench::results::Timing::FirstResponse),
            bytes: image.manifest.image_bytes(),
            kept: (image.digest == kept.digest).then_some(choice.reason),
        })
        .collect();
    let failures = captures.failures.into_iter();
    rows.extend(failures.map(|(point, reason)| AutoRow::Failed { point, reason }));
    report.compared(&rows, RUNS)?;
    Ok(store.adopt(kept, &options.name)?)
}

async fn capture_all(
    store: &Store,
    criu: &Program,
    options: &Options,
    signals: &mut Signals,
    report: &Report,
) -> Result<Captures, Error> {
    let mut captures = Captures::default();
    let mut forks = false;
    // The first tells which of the others make sense. `accept` never does: it is `ready` for a
    // server that waits by accept(2), and others get there only when a client comes.
    let points = [
        CapturePoint::Ready,
        CapturePoint::Listen,
        CapturePoint::PreListen,
        CapturePoint::Fork,
        CapturePoint::Warm,
    ];
    for point in points {
        if point == CapturePoint::Fork && !forks {
            let reason = "no process forks between its first listen and ready".to_owned();
            captures.failures.push((point, reason));
            continue;
        }
        let options = Options {
            command: options.command.clone(),
            point,
            limit: options.limit,
            name: point.to_string(),
            how: options.how.clone().at(point),
            leave_running: false,
            profiled: None,
            elsewhere: Elsewhere::default(),
        };
        let progress = report.progress();
        let captured = capture::capture(store, criu, &options, signals.ended(), |step| {
            progress.show(&step);
        })
        .await;
        progress.clear();
        match captured {
            Ok(captured) => {
                forks |= captured.forked_after_listen;
                let asked = (&options.how.warmups[..], options.limit);
                let image = captured.image;
                let image =
                    rehearse::after_warm(store, criu, image, asked, signals.ended()).await?;
                captures.images.push(image);
            }
            // Without it, nothing is known of the server; and no other point would be reached
            // after an interrupt, or within another sandbox.
            Err(error) if point == CapturePoint::Ready => return Err(error.into()),
            Err(error @ CaptureError::Interrupted) => return Err(error.into()),
            Err(error) => {
                if let CaptureError::Warmup(WarmupError::Status { found, .. }) = &error
                    && options.how.warmups.len() == 1
                {
                    captures.status = ExpectedStatus(Some(*found));
                }
                captures
                    .failures
                    .push((point, crate::doctor::chain(&error)));
            }
        }
    }
    Ok(captures)
}

async fn measure(
    store: &Store,
    criu: &Program,
    options: &Options,
    captures: &Captures,
    signals: &mut Signals,
    report: &Report,
) -> Result<Results, Error> {
    let folder = &options.command.working_directory;
    let listeners = &captures.images[0].manifest.listeners;
    let server = listener::choose(listeners, options.how.listener.as_ref())
        .ok_or(CaptureError::NoListener)?;
    let server = Target::of_listener(server, folder);
    let work = store.root().join("criu-work");
    let subjects = Subjects {
        store,
        criu,
        work: &work,
    };
    let subjects = captures.images.iter().map(|image| subjects.restored(image));
    let first = options.how.warmups.first();
    let status = match first.map(|warmup| warmup.status) {
        Some(ExpectedStatus(Some(named))) => ExpectedStatus(Some(named)),
        _ => captures.status,
    };
    let options = bench::Options {
        command: options.command.words(),
        sockets: listeners
            .iter()
            .filter_map(|listener| listener.file(folder))
            .collect(),
        subjects: subjects.collect::<Result<_, _>>()?,
        // What is asked first when it is warmed up is what a client would ask first.
        target: first.map_or_else(|| server.clone(), |warmup| warmup.target(&server)),
        settings: Settings {
            runs: RUNS,
            warmup_runs: 1,
            requests: 1,
            drop_caches: false,
            status,
        },
        limit: options.limit,
        criu: criu
            .check(crate::host::kernel_version())
            .map_err(CaptureError::from)?,
    };
    let progress = report.progress();
    let measured = bench::measure(&options, signals.ended(), |step| progress.show_run(&step)).await;
    progress.clear();
    Ok(measured?)
}
