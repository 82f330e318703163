//! `warmimg run`: a server from its image if there is one that works, else cold.

use std::{
    cell::Cell,
    pin::pin,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

use super::{
    capture::default_name,
    encrypted::{self, Workshop},
    prepare,
    supervise::{Signals, supervise},
};
use crate::{
    capture::{Attempt, CaptureError, Options, Progress, start_up},
    cli,
    cold::ColdReason,
    criu::Program,
    elsewhere::Elsewhere,
    error::Error,
    output::Output,
    report::Report,
    restore::{self, RestoreError, Restored},
    spawn::{Command, Sandbox, SpawnError},
    store::{self, CommandInfo, Image, Store},
    tree,
};

/// Variables that say who started a server, and nothing of how it is to run: an image is good for any
/// value of them. A name that ends with `*` stands for all that begin so.
const INCIDENTAL: [&str; 16] = [
    "_",
    "COLUMNS",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LINES",
    "MANAGERPID",
    "MEMORY_PRESSURE_*",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "SSH_*",
    "SYSTEMD_EXEC_PID",
    "TERM",
    "WARMIMG_*",
    "XDG_SESSION_*",
    "XDG_RUNTIME_DIR",
];

/// Variables by which a service manager talks to its service, which is warmimg.
const OWN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// How often it is looked whether a server listens that is not watched.
const INTERVAL: Duration = Duration::from_millis(50);

pub async fn run(global: &cli::Global, arguments: &cli::Run, report: &Report) -> Result<u8, Error> {
    let command = Command::resolve(&arguments.words, arguments.user.as_deref())?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => default_name(&command.words()),
    };
    store::check_name(&name)?;
    let point = arguments.at.unwrap_or_default();
    let how = arguments.how.checked(&[point])?;
    let (store, criu) = match prepare(global) {
        Ok(prepared) => prepared,
        Err(error) => return Err(unable(report, &command, &error)),
    };
    let server = Server {
        store: &store,
        criu: &criu,
        arguments,
        report,
        options: Options {
            command: command.without(&OWN),
            point,
            limit: arguments.timeout,
            name,
            how,
            leave_running: true,
            profiled: None,
            elsewhere: Elsewhere::default(),
        },
    };
    let found = server.find();
    let mut signals = Signals::catch()?;
    let reason = match found {
        Err(reason) => reason,
        Ok(image) => match server.restore(&image, &mut signals).await? {
            Ok(code) => return Ok(code),
            Err(reason) => reason,
        },
    };
    report.run_cold(&reason)?;
    // An image that has failed but once, or not by itself, is tried again.
    let is_kept = match &reason {
        ColdReason::RestoreFailed { .. } | ColdReason::Crashed(_) => !server.is_quarantined(),
        ColdReason::Closed(_) => true,
        _ => false,
    };
    let captures = !arguments.no_capture && !is_kept;
    server.start_cold(captures, &mut signals).await
}

/// Lets the command take the place of warmimg, which cannot work here. Returns only if that fails.
fn unable(report: &Report, command: &Command, error: &Error) -> Error {
    if let Err(error) = report.run_cold(&ColdReason::Unable(error.to_string())) {
        return error;
    }
    ready();
    let (step, source) = command.replace_this();
    start_up::exec_error(command, SpawnError::Init { step, source }).into()
}

/// Tells a service manager, if one has asked for it, that the server listens.
pub(super) fn ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("cannot tell the service manager that the server is ready: {error}");
    }
}

struct Server<'a> {
    store: &'a Store,
    criu: &'a Program,
    arguments: &'a cli::Run,
    report: &'a Report,
    options: Options,
}

impl Server<'_> {
    /// The image to restore, or why there is none.
    fn find(&self) -> Result<Image, ColdReason> {
        let cli::Run {
            identities,
            encrypt,
            ..
        } = self.arguments;
        let keys = || identities.read(&encrypt.passphrase);
        let name = Some(self.options.name.as_str());
        let image = encrypted::find(self.store, name, keys, self.report)
            .map_err(|error| ColdReason::of_find(&self.options.name, error))?;
        if let Some(reason) = ColdReason::of_trials(self.store, &image) {
            return Err(reason);
        }
        if let Some(difference) = difference(&image.manifest.command, &self.options.command) {
            return Err(ColdReason::OtherCommand(difference));
        }
        let captured = image.manifest.capture.point;
        if self.arguments.at.is_some_and(|at| at != captured) {
            return Err(ColdReason::OtherPoint(captured));
        }
        Ok(image)
    }

    /// Restores an image, and supervises the server until it ends; returns its exit code, or why it is
    /// to be started cold.
    async fn restore(
        &self,
        image: &Image,
        signals: &mut Signals,
    ) -> Result<Result<u8, ColdReason>, Error> {
        let options = restore::Options {
            memory: self.arguments.back.memory,
            hook_limit: self.arguments.how.hook_timeout,
            allowed: self.arguments.back.allowed(),
            // What a server started now would do otherwise is not to be restored.
            strict: true,
            ..restore::Options::default()
        };
        let restored = tokio::select! {
            restored = restore::restore(self.store, self.criu, image, &options) => restored,
            () = signals.overdue() => return Err(RestoreError::Interrupted.into()),
        };
        let mut restored = match restored {
            Ok(restored) => restored,
            Err(error) => return Ok(Err(ColdReason::of_restore(self.store, image, error))),
        };
        ready();
        self.report.run_restored(&restored)?;
        let begun = Instant::now();
        let Restored {
            sandbox, output, ..
        } = &mut restored;
        let code = supervise(sandbox, output.as_mut(), signals).await?;
        if let Some(reason) = ColdReason::of_exit(self.store, image, code, begun.elapsed()) {
            return Ok(Err(reason));
        }
        self.store.succeeded(&image.digest);
        Ok(Ok(code))
    }

    /// Where the image is made. One that was encrypted is not replaced by one that is not.
    fn workshop(&self) -> Result<Workshop<'_>, Error> {
        let workshop = Workshop::new(self.store, &self.arguments.encrypt)?;
        let before = self.store.locate(&self.options.name).ok();
        let before = before.map(|digest| self.store.encrypted(&digest));
        match before {
            Some(Ok(None)) | None => Ok(workshop),
            Some(_) if workshop.encrypts() => Ok(workshop),
            Some(_) => Err(Error::WouldBePlain(self.options.name.clone())),
        }
    }

    fn is_quarantined(&self) -> bool {
        let digest = self.store.locate(&self.options.name);
        digest.is_ok_and(|digest| self.store.failures(&digest).is_quarantined())
    }

    /// Starts the command, and makes an image of it if it is to and nobody else does.
    async fn start_cold(&self, captures: bool, signals: &mut Signals) -> Result<u8, Error> {
        let lock = match captures {
            true => self.store.single_flight(&self.options.name),
            false => Ok(None),
        };
        match lock {
            Ok(None) => {}
            Ok(Some(_lock)) => {
                if let Some(code) = self.start_capturing(signals).await? {
                    return Ok(code);
                }
            }
            Err(error) => self.report.run_not_captured(&error.into())?,
        }
        let started = start_up::sandbox_without_images(&self.options.command).await;
        let (mut sandbox, output) = match started {
            Ok(started) => started,
            Err(error) => return Err(unable(self.report, &self.options.command, &error.into())),
        };
        output.forward();
        sandbox.start().await.map_err(CaptureError::Spawn)?;
        let executed = sandbox.go().await;
        executed.map_err(|error| start_up::exec_error(&self.options.command, error))?;
        self.supervise(sandbox, output, false, signals).await
    }

    /// Starts the command, and makes an image of it. Returns its exit code, or nothing if it could not
    /// even be started so.
    async fn start_capturing(&self, signals: &mut Signals) -> Result<Option<u8>, Error> {
        let workshop = match self.workshop() {
            Ok(workshop) => workshop,
            Err(error) => {
                self.report.run_not_captured(&error)?;
                return Ok(None);
            }
        };
        let attempt = Attempt::new(workshop.store(), self.criu, &self.options).await;
        let mut attempt = match attempt {
            Ok(attempt) => attempt,
            Err(error) => {
                self.report.run_not_captured(&workshop.explain(error))?;
                return Ok(None);
            }
        };
        attempt.forward_output();
        let (init, is_frozen) = (attempt.init(), Cell::new(false));
        let made = {
            let progress = |step: Progress| {
                is_frozen.set(matches!(
                    step,
                    Progress::Freezing | Progress::Dumping { .. }
                ));
            };
            let mut making = pin!(attempt.make(progress));
            loop {
                tokio::select! {
                    made = &mut making => break made,
                    // One that comes while it is frozen would be part of the image.
                    number = signals.next(), if !is_frozen.get() => {
                        let is_told = tree::signal_root(init, number);
                        if !is_told && matches!(number, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) {
                            return Err(CaptureError::Interrupted.into());
                        }
                    }
                }
            }
        };
        let is_ready = made.is_ok();
        match made {
            Ok(made) => match workshop.finish(&made.image, &self.options.name, self.report) {
                Ok(()) => self.report.run_captured(&made.image)?,
                Err(error) => self.report.run_not_captured(&error)?,
            },
            Err(error @ CaptureError::Exec { .. }) => return Err(error.into()),
            Err(CaptureError::ExitedEarly { .. }) => {}
            Err(error) => {
                self.report.run_not_captured(&workshop.explain(error))?;
                if tree::children(init).is_empty() {
                    return Ok(None);
                }
                tree::resume(init);
            }
        }
        let (sandbox, output) = attempt.into_running();
        drop(workshop);
        if is_ready {
            ready();
        }
        let code = self.supervise(sandbox, output, is_ready, signals).await?;
        Ok(Some(code))
    }

    /// Supervises a server until it ends, and tells when it listens if that is not known.
    async fn supervise(
        &self,
        mut sandbox: Sandbox,
        mut output: Output,
        is_ready: bool,
        signals: &mut Signals,
    ) -> Result<u8, Error> {
        let init = sandbox.init();
        let listening = async {
            while !is_ready && tree::listeners(&tree::descendants(init)).is_empty() {
                tokio::time::sleep(INTERVAL).await;
            }
            if !is_ready {
                ready();
            }
        };
        let supervised = supervise(&mut sandbox, Some(&mut output), signals);
        let (mut listening, mut supervised) = (pin!(listening), pin!(supervised));
        let code = tokio::select! {
            code = &mut supervised => code,
            () = &mut listening => supervised.await,
        };
        Ok(code?)
    }
}

/// What of a command differs from that of an image, if anything does.
fn difference(captured: &CommandInfo, wanted: &Command) -> Option<String> {
    if captured.words != wanted.words() {
        return Some(format!("it was `{}`", captured.words.join(" ")));
    }
    if captured.working_directory != wanted.working_directory {
        let folder = captured.working_directory.display();
        return Some(format!("it was started in {folder}"));
    }
    if captured.user.as_ref() != wanted.user.as_ref().map(|user| &user.name) {
        let user = captured.user.as_deref().unwrap_or("root");
        return Some(format!("it ran as {user}"));
    }
    let essential = |entries: &[String]| -> Vec<String> {
        let essential = entries.iter().filter(|entry| !is_incidental(entry));
        let mut essential: Vec<_> = essential.cloned().collect();
        essential.sort();
        essential
    };
    let (before, now) = (
        essential(&captured.environment),
        essential(&wanted.environment()),
    );
    let differs = |entry: &&String| !before.contains(entry) || !now.contains(entry);
    let entry = before.iter().chain(&now).find(differs)?;
    let name = entry.split('=').next().unwrap_or_default();
    Some(format!("the variable {name} was another"))
}

/// Whether an entry of the environment says nothing of how the server is to run.
fn is_incidental(entry: &str) -> bool {
    let name = entry.split('=').next().unwrap_or_default();
    INCIDENTAL
        .iter()
        .any(|known| match known.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == *known,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(words: &[&str], environment: &[&str]) -> CommandInfo {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        CommandInfo {
            words: own(words),
            working_directory: "/".into(),
            user: None,
            environment: own(environment),
        }
    }

    fn command(words: &[&str], environment: &[&str]) -> Command {
        let info = info(words, environment);
        Command::again(&info.words, &info.environment, "/".as_ref(), None).unwrap()
    }

    #[test]
    fn what_is_incidental_makes_no_difference() {
        let captured = info(&["/bin/true"], &["A=1", "SHLVL=1", "SSH_TTY=/dev/pts/1"]);
        let wanted = command(&["/bin/true"], &["WARMIMG_STORE=/x", "TERM=dumb", "A=1"]);
        assert_eq!(difference(&captured, &wanted), None);
    }

    #[test]
    fn what_matters_is_named() {
        let captured = info(&["/bin/true"], &["A=1"]);
        for (wanted, expected) in [
            (command(&["/bin/true", "x"], &["A=1"]), "it was `/bin/true`"),
            (
                command(&["/bin/true"], &["A=2"]),
                "the variable A was another",
            ),
            (command(&["/bin/true"], &[]), "the variable A was another"),
            (
                command(&["/bin/true"], &["A=1", "B=1"]),
                "the variable B was another",
            ),
        ] {
            assert_eq!(difference(&captured, &wanted).as_deref(), Some(expected));
        }
    }
}
