//! `warmimg capture`

use std::path::Path;

use clap::ValueEnum as _;

use super::{
    auto,
    encrypted::Workshop,
    prepare,
    profile::ProfileFile,
    rehearse,
    supervise::{Signals, supervise},
};
use crate::{
    capture::{self, Options},
    cli::{self, At},
    elsewhere::Elsewhere,
    error::{Error, ExitCode},
    profile::stacks::FREQUENCY,
    report::Report,
    spawn::Command,
    store,
    watch::CapturePoint,
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Capture,
    report: &Report,
) -> Result<u8, Error> {
    let command = Command::resolve(&arguments.words, arguments.user.as_deref())?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => default_name(&command.words()),
    };
    store::check_name(&name)?;
    let (store, criu) = prepare(global)?;
    let (point, points) = match arguments.at {
        At::Point(point) => (point, vec![point]),
        At::Auto if arguments.leave_running => return Err(Error::AutoOnce("--leave-running")),
        At::Auto if arguments.check => return Err(Error::AutoOnce("--check")),
        At::Auto if arguments.profile.is_some() => return Err(Error::AutoOnce("--profile")),
        At::Auto if arguments.how.connections.tcp_established => {
            return Err(Error::EstablishedAgain("--at auto"));
        }
        At::Auto => (CapturePoint::Ready, CapturePoint::value_variants().to_vec()),
    };
    let options = Options {
        command,
        point,
        limit: arguments.timeout,
        name,
        how: arguments.how.checked(&points)?,
        leave_running: arguments.leave_running,
        profiled: arguments.profile.as_ref().map(|_| FREQUENCY),
        elsewhere: Elsewhere::default(),
    };
    let workshop = Workshop::new(&store, &arguments.encrypt)?;
    let file = arguments.profile.as_deref().map(ProfileFile::open);
    let mut file = file.transpose()?;
    let mut signals = Signals::catch()?;
    if arguments.at == At::Auto {
        let best =
            auto::capture_best(workshop.store(), &criu, &options, &mut signals, report).await;
        let image = best.map_err(|error| workshop.explain(error))?;
        workshop.finish(&image, &options.name, report)?;
        report.captured(&image, &global.store)?;
        return Ok(0);
    }
    let progress = report.progress();
    if arguments.check {
        let found = capture::check(&store, &criu, &options, signals.ended(), |step| {
            progress.show(&step);
        })
        .await;
        progress.clear();
        let found = found?;
        report.checked(&options.command.words(), point, &found)?;
        return Ok(match found.is_empty() {
            true => ExitCode::Success as u8,
            false => ExitCode::UnsupportedTree as u8,
        });
    }
    let captured = capture::capture(workshop.store(), &criu, &options, signals.ended(), |step| {
        progress.show(&step);
    })
    .await;
    progress.clear();
    let mut captured = captured.map_err(|error| workshop.explain(error))?;
    if captured.running.is_none() {
        let asked = (&options.how.warmups[..], options.limit);
        let image = captured.image;
        captured.image =
            rehearse::after_warm(workshop.store(), &criu, image, asked, signals.ended()).await?;
    }
    workshop.finish(&captured.image, &options.name, report)?;
    if let (Some(profile), Some(path), Some(file)) =
        (&captured.profile, &arguments.profile, &mut file)
    {
        report.profile_to(profile, path, file.fill()?)?;
    }
    report.captured(&captured.image, &global.store)?;
    drop(workshop);
    match captured.running {
        None => Ok(0),
        Some((mut sandbox, mut output)) => {
            output.forward();
            Ok(supervise(&mut sandbox, Some(&mut output), &mut signals).await?)
        }
    }
}

/// The command's file name, with what a name cannot hold replaced.
pub fn default_name(words: &[String]) -> String {
    let program = words
        .first()
        .map(Path::new)
        .and_then(Path::file_name)
        .unwrap_or_default();
    let name: String = program
        .to_string_lossy()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') {
                c
            } else {
                '-'
            }
        })
        .collect();
    match name.trim_start_matches(['.', '_', '-']) {
        "" => "image".to_owned(),
        name => name.chars().take(64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::default_name;

    #[test]
    fn names_come_from_the_program() {
        let name = |program: &str| default_name(&[program.to_owned()]);
        assert_eq!(name("/usr/sbin/php-fpm8.2"), "php-fpm8.2");
        assert_eq!(name("./.my server"), "my-server");
        assert_eq!(name("…"), "image");
    }
}
