//! `warmimg profile`

use std::fs;

use super::supervise::{Signals, supervise};
use crate::{
    capture::{How, Options},
    cli,
    error::Error,
    host, profile,
    report::Report,
    requirements,
    spawn::Command,
};

pub async fn run(arguments: &cli::Profile, report: &Report) -> Result<u8, Error> {
    requirements::check(host::capabilities(), host::is_initial_pid_namespace())?;
    let options = Options {
        command: Command::resolve(&arguments.words, arguments.user.as_deref())?,
        point: arguments.at,
        limit: arguments.timeout,
        name: String::new(),
        how: How {
            listener: arguments.listener.clone(),
            ..How::default()
        },
        leave_running: arguments.leave_running,
    };
    // Opened before anything runs, so that no profile is lost to a wrong path.
    let mut file = match &arguments.output {
        None => None,
        Some(path) => Some(fs::File::create(path).map_err(|source| Error::Export {
            path: path.clone(),
            source,
        })?),
    };
    let mut signals = Signals::catch()?;
    let progress = report.progress();
    let asked = arguments.url.as_ref();
    let profiled = profile::profile(&options, asked, signals.ended(), |step| {
        progress.show(&step);
    })
    .await;
    progress.clear();
    let profiled = profiled?;
    report.profile(&profiled.profile, arguments, file.as_mut())?;
    match profiled.running {
        None => Ok(0),
        Some((mut sandbox, mut output)) => {
            output.forward();
            Ok(supervise(&mut sandbox, Some(&mut output), &mut signals).await?)
        }
    }
}
