//! `warmimg profile`

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::Path,
};

use super::{
    encrypted::find,
    open_store,
    supervise::{Signals, supervise},
};
use crate::{
    capture::{CaptureError, How, Options},
    cli,
    criu::Program,
    elsewhere::Elsewhere,
    error::Error,
    host,
    profile::{self, Profile, Profiled, Recorder, Subject, diff},
    report::{Report, profile::json},
    requirements,
    restore::{self, RestoreError},
    serve::admin::{AdminError, Reply, Request, ask},
    spawn::Command,
    target::Target,
    tree::HostPid,
    watch::{CapturePoint, Watch},
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Profile,
    report: &Report,
) -> Result<u8, Error> {
    if let Some(cli::ProfileCommand::Diff(arguments)) = &arguments.command {
        let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
        report.profiles_compared(&diff::compare(&before, &after))?;
        return Ok(0);
    }
    if let Some(id) = &arguments.wake {
        return wake(global, arguments, id.clone(), report).await;
    }
    requirements::check(host::capabilities(), host::is_initial_pid_namespace())?;
    let subject = match &arguments.restore {
        Some(image) => What::Image(image.as_deref()),
        None => What::Command(Box::new(options(arguments)?)),
    };
    let file = arguments.output.as_deref().map(ProfileFile::open);
    let mut file = file.transpose()?;
    let mut signals = Signals::catch()?;
    let (mut profiles, mut running, mut failure) = (vec![], None, None);
    for _ in 0..arguments.runs {
        let profiled = match &subject {
            What::Command(options) => {
                let progress = report.progress();
                let asked = arguments.url.as_ref();
                let profiled = profile::profile(options, asked, signals.ended(), |step| {
                    progress.show(&step);
                })
                .await;
                progress.clear();
                profiled?
            }
            What::Image(image) => Profiled {
                profile: restored(global, arguments, *image, &mut signals, report).await?,
                running: None,
                failure: None,
            },
        };
        profiles.push(profiled.profile);
        running = profiled.running;
        failure = profiled.failure;
        if failure.is_some() {
            break;
        }
    }
    let file = file.as_mut().map(ProfileFile::fill).transpose()?;
    report.profiles(&profiles, arguments, file)?;
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    match running {
        None => Ok(0),
        Some((mut sandbox, mut output)) => {
            output.forward();
            Ok(supervise(&mut sandbox, Some(&mut output), &mut signals).await?)
        }
    }
}

/// Shows a wake that a gateway knows of.
async fn wake(
    global: &cli::Global,
    arguments: &cli::Profile,
    id: Option<String>,
    report: &Report,
) -> Result<u8, Error> {
    let site = arguments.site.clone();
    let reply = ask(&global.store, &Request::Trace { id, site }).await?;
    let Reply::Trace {
        gateway,
        wake: Some(wake),
    } = reply
    else {
        return Err(AdminError::NoWake.into());
    };
    let file = arguments.output.as_deref().map(ProfileFile::open);
    let mut file = file.transpose()?;
    let file = file.as_mut().map(ProfileFile::fill).transpose()?;
    report.wake(&wake, gateway, arguments, file)?;
    Ok(0)
}

/// The file that a profile is to go to. It is opened before anything runs, so that none is lost to a
/// wrong path; without a profile it is as it was before.
pub struct ProfileFile<'a> {
    path: &'a Path,
    file: File,
    is_unneeded: bool,
}

impl<'a> ProfileFile<'a> {
    pub fn open(path: &'a Path) -> Result<Self, Error> {
        let is_unneeded = !path.exists();
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(path);
        Ok(Self {
            path,
            file: file.map_err(|source| export_error(path, source))?,
            is_unneeded,
        })
    }

    /// The file, empty now: there is a profile.
    pub fn fill(&mut self) -> Result<&mut File, Error> {
        self.is_unneeded = false;
        let is_file = self.file.metadata().is_ok_and(|file| file.is_file());
        if is_file && let Err(source) = self.file.set_len(0) {
            return Err(export_error(self.path, source));
        }
        Ok(&mut self.file)
    }
}

impl Drop for ProfileFile<'_> {
    fn drop(&mut self) {
        if self.is_unneeded {
            let _ = fs::remove_file(self.path);
        }
    }
}

fn export_error(path: &Path, source: io::Error) -> Error {
    Error::Export {
        path: path.to_owned(),
        source,
    }
}

/// The profiles of a file.
fn read(path: &Path) -> Result<Vec<Profile>, Error> {
    let file = File::open(path).map_err(|source| Error::Import {
        path: path.to_owned(),
        source,
    })?;
    json::read_all(BufReader::new(file)).map_err(|source| Error::NoProfile {
        path: path.to_owned(),
        source,
    })
}

enum What<'a> {
    Command(Box<Options>),
    Image(Option<&'a str>),
}

fn options(arguments: &cli::Profile) -> Result<Options, Error> {
    Ok(Options {
        command: Command::resolve(&arguments.words, arguments.user.as_deref())?,
        point: arguments.at,
        limit: arguments.timeout,
        name: String::new(),
        how: How {
            listener: arguments.listener.clone(),
            ..How::default()
        },
        leave_running: arguments.leave_running,
        profiled: Some(arguments.frequency),
        elsewhere: Elsewhere::default(),
    })
}

/// Restores an image and asks it once. All is recorded from the begin of the restore on: what warmimg
/// itself does, CRIU, and the server.
async fn restored(
    global: &cli::Global,
    arguments: &cli::Profile,
    image: Option<&str>,
    signals: &mut Signals,
    report: &Report,
) -> Result<Profile, Error> {
    let criu = Program::find(global.criu.as_deref())?;
    let store = open_store(global)?;
    let image = find(&store, image, || arguments.keys.read(), report)?;
    let options = restore::Options {
        memory: arguments.memory,
        ..restore::Options::default()
    };
    let watch = Watch::attach_recording(None, None).map_err(CaptureError::Watch)?;
    let (mut watch, recording) = watch;
    let mut recorder = Recorder::new(recording, arguments.frequency);
    let recorded = async {
        let own = HostPid(std::process::id() as i32);
        recorder.begin().map_err(CaptureError::Watch)?;
        watch.follow(own).map_err(CaptureError::Watch)?;
        recorder.sample(own);
        let restoring = restore::restore(&store, &criu, &image, &options);
        let restored = recorder.during(restoring).await;
        let restored = restored.map_err(CaptureError::Watch)??;
        let restored_ns = host::Clocks::now().monotonic_ns;
        let working_directory = &image.manifest.command.working_directory;
        let listener = restored.record.listeners.first();
        let target = match (&arguments.url, listener) {
            (Some(url), _) => url.clone(),
            (None, Some(listener)) => Target::of_listener(listener, working_directory),
            (None, None) => return Err(Error::NothingToAsk),
        };
        let limit = arguments.timeout;
        let response_ns = profile::first_response(&mut recorder, &target, limit).await?;
        let subject = Subject {
            command: image.manifest.command.words.clone(),
            point: CapturePoint::Checkpoint,
            end_ns: response_ns,
            restored_ns: Some(restored_ns),
            response_ns: Some(response_ns),
        };
        let profile = recorder.finish(subject).map_err(CaptureError::Watch)?;
        Ok((profile, restored))
    };
    let (profile, restored) = tokio::select! {
        recorded = recorded => recorded?,
        () = signals.ended() => return Err(RestoreError::Interrupted.into()),
    };
    drop(restored);
    drop(watch);
    Ok(profile)
}
