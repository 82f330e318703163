//! What is done to a server before it is frozen and after it was restored: for servers that must
//! close connections, reseed random numbers, or reload secrets.
//!
//! A hook is a command on the host, a signal to the root of the tree, or an HTTP request to the
//! server itself. It is waited for, except that nothing tells when a signal has been dealt with.

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::Stdio,
    str::FromStr,
    time::{Duration, Instant},
};

use hyper::{Method, header::HeaderName, http::HeaderValue};
use nix::sys::signal::Signal;

use crate::{
    client::{AskError, Client},
    elsewhere::Elsewhere,
    files, instance,
    listener::Listener,
    output::Output,
    spawn::{self, CommandError},
    sys,
    target::{Asked, ExpectedStatus, Protocol, Target, TargetError},
    tree::HostPid,
};

/// The header that carries a variable of `--env` in a request: `NAME=VALUE`.
const ENV_HEADER: HeaderName = HeaderName::from_static("warmimg-env");

/// How long the kernel may take to end a killed hook.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Why a text is not a hook.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("there is no signal {0:?}; see signal(7)")]
    Signal(String),
    #[error("a server cannot act on SIGKILL or SIGSTOP")]
    Deadly,
    #[error("cannot be asked for: {0} (a path begins with /)")]
    Target(#[from] TargetError),
    #[error("only HTTP can be asked for by {0}:")]
    NotHttp(&'static str),
    #[error("a quote is not closed, or there is no command")]
    Words,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("the hook {hook} cannot be started")]
    Start { hook: String, source: io::Error },
    #[error("the hook {hook} failed: {status}")]
    Failed {
        hook: String,
        status: String,
        output: Vec<String>,
    },
    #[error("the hook {hook} has not ended within {} s", .limit.as_secs_f64())]
    Timeout {
        hook: String,
        limit: Duration,
        output: Vec<String>,
    },
    #[error("the hook {hook} was answered with status {found}, not {expected}")]
    Status {
        hook: String,
        found: u16,
        expected: ExpectedStatus,
    },
    #[error("the hook {hook} was not answered")]
    Ask { hook: String, source: AskError },
    #[error("the hook {hook} was not answered within {} s", .limit.as_secs_f64())]
    NoAnswer {
        hook: String,
        limit: Duration,
        source: Option<AskError>,
    },
    #[error("the hook {hook} has nowhere to ask: the server has no listener")]
    NoListener { hook: String },
    #[error("the value of {name} cannot be part of the request of the hook {hook}")]
    Variable { hook: String, name: String },
    #[error("the hook {hook} cannot reach the root of the tree, which is gone")]
    NoRoot { hook: String },
}

/// Something to do to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// As it was given.
    text: String,
    action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Command(Vec<OsString>),
    Signal(Signal),
    Ask { method: Method, place: Asked },
}

/// Parses `signal:NAME`, `get:URL|PATH`, `post:URL|PATH`, or a command with its arguments, which
/// are split as a shell would, and not expanded.
impl FromStr for Hook {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let asked = |method: Method, scheme, place: &str| -> Result<Action, SpecError> {
            let place: Asked = place.parse()?;
            match &place {
                Asked::Target(target) if !matches!(target.protocol, Protocol::Http(_)) => {
                    Err(SpecError::NotHttp(scheme))
                }
                _ => Ok(Action::Ask { method, place }),
            }
        };
        let action = match text.split_once(':') {
            Some(("signal", name)) => {
                let full = format!("SIG{}", name.trim_start_matches("SIG"));
                let signal = full.parse().map_err(|_| SpecError::Signal(name.into()))?;
                if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
                    return Err(SpecError::Deadly);
                }
                Action::Signal(signal)
            }
            Some(("get", place)) => asked(Method::GET, "get", place)?,
            Some(("post", place)) => asked(Method::POST, "post", place)?,
            _ => match shlex::split(text) {
                Some(words) if !words.is_empty() => {
                    Action::Command(words.into_iter().map(OsString::from).collect())
                }
                _ => return Err(SpecError::Words),
            },
        };
        Ok(Self {
            text: text.to_owned(),
            action,
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A variable for hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    name: String,
    value: String,
}

impl FromStr for Variable {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok(Self {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("not NAME=VALUE"),
        }
    }
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    BeforeFreeze,
    AfterRestore,
}

/// What hooks act on.
pub struct Subject<'a> {
    pub moment: Moment,
    /// The root of the tree.
    pub root: Option<HostPid>,
    /// The name of the image or of the instance.
    pub name: &'a str,
    pub listeners: &'a [Listener],
    /// The folder of the server.
    pub folder: PathBuf,
    pub variables: &'a [Variable],
    /// How long each hook may take.
    pub limit: Duration,
}

impl Hook {
    /// What it does if listeners are elsewhere.
    #[must_use]
    pub fn elsewhere(mut self, elsewhere: &Elsewhere) -> Self {
        if let Action::Ask { method, place } = self.action {
            let place = place.elsewhere(elsewhere);
            self.action = Action::Ask { method, place };
        }
        self
    }

    /// Whether it asks where the server listens.
    pub fn asks_server(&self) -> bool {
        let place = match &self.action {
            Action::Ask { place, .. } => place,
            _ => return false,
        };
        matches!(place, Asked::Path(_))
    }

    /// Checks that the program of a command is there.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn check(&self) -> Result<(), CommandError> {
        match &self.action {
            Action::Command(words) => spawn::Command::resolve(words, None).map(drop),
            Action::Signal(_) | Action::Ask { .. } => Ok(()),
        }
    }

    /// Does it, and waits for it.
    ///
    /// # Errors
    /// See [`HookError`].
    pub async fn run(&self, subject: &Subject<'_>) -> Result<(), HookError> {
        match &self.action {
            Action::Command(words) => self.execute(words, subject).await,
            Action::Signal(signal) => {
                let hook = || self.text.clone();
                let root = subject
                    .root
                    .ok_or_else(|| HookError::NoRoot { hook: hook() })?;
                let root = nix::unistd::Pid::from_raw(root.0);
                nix::sys::signal::kill(root, *signal)
                    .map_err(|_| HookError::NoRoot { hook: hook() })
            }
            Action::Ask { method, place } => self.ask(method, place, subject).await,
        }
    }

    async fn execute(&self, words: &[OsString], subject: &Subject<'_>) -> Result<(), HookError> {
        let start = |source| HookError::Start {
            hook: self.text.clone(),
            source,
        };
        // A process that the hook leaves behind may keep the pipes; they are not read to their end.
        let (mut output, [stdout, stderr]) = Output::new(false).map_err(start)?;
        let mut command = tokio::process::Command::new(&words[0]);
        command.args(&words[1..]);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        command.process_group(0);
        sys::die_with_parent(&mut command);
        files::lower_for(&mut command);
        let listeners: Vec<_> = subject.listeners.iter().map(ToString::to_string).collect();
        command.env("WARMIMG_HOOK", subject.moment.to_string());
        command.env("WARMIMG_NAME", subject.name);
        command.env("WARMIMG_LISTENERS", listeners.join(" "));
        if let Some(root) = subject.root {
            command.env("WARMIMG_PID", root.to_string());
        }
        for Variable { name, value } in subject.variables {
            command.env(name, value);
        }
        let mut child = command.spawn().map_err(start)?;
        let mut group = Group(child.id());
        let ended = tokio::time::timeout(subject.limit, child.wait()).await;
        // It has the writing ends.
        drop(command);
        let status = match ended {
            Ok(status) => status.map_err(start)?,
            Err(_) => {
                drop(group);
                let _ = tokio::time::timeout(KILL_LIMIT, child.wait()).await;
                return Err(HookError::Timeout {
                    hook: self.text.clone(),
                    limit: subject.limit,
                    output: output.last_lines(),
                });
            }
        };
        group.0 = None;
        if status.success() {
            return Ok(());
        }
        output.drained().await;
        Err(HookError::Failed {
            hook: self.text.clone(),
            status: instance::describe_status(status.into_raw()),
            output: output.last_lines(),
        })
    }

    async fn ask(
        &self,
        method: &Method,
        place: &Asked,
        subject: &Subject<'_>,
    ) -> Result<(), HookError> {
        let hook = || self.text.clone();
        let mut target = match (place, subject.listeners.first()) {
            (Asked::Target(target), _) => target.clone(),
            (asked, Some(listener)) => asked.of(&Target::of_listener(listener, &subject.folder)),
            (Asked::Path(_), None) => return Err(HookError::NoListener { hook: hook() }),
        };
        if let Protocol::Http(request) = &mut target.protocol {
            request.method = method.clone();
            for Variable { name, value } in subject.variables {
                let value = HeaderValue::from_str(&format!("{name}={value}"));
                let value = value.map_err(|_| HookError::Variable {
                    hook: hook(),
                    name: name.clone(),
                })?;
                request.headers.push((ENV_HEADER, value));
            }
        }
        let failed = |source| HookError::Ask {
            hook: hook(),
            source,
        };
        let mut client = Client::new(&target).map_err(failed)?;
        let asked = tokio::time::timeout(subject.limit, client.ask_when_listening(Instant::now()));
        let Ok(answer) = asked.await else {
            return Err(HookError::NoAnswer {
                hook: hook(),
                limit: subject.limit,
                source: client.last_error,
            });
        };
        let answer = answer.map_err(failed)?;
        let expected = ExpectedStatus::default();
        match answer.status {
            Some(found) if !expected.accepts(found) => Err(HookError::Status {
                hook: hook(),
                found,
                expected,
            }),
            _ => Ok(()),
        }
    }
}

/// The processes of a hook that has not ended: killed when this is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let leader = nix::unistd::Pid::from_raw(leader as i32);
            let _ = nix::sys::signal::killpg(leader, Signal::SIGKILL);
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeFreeze => "before-freeze",
            Self::AfterRestore => "after-restore",
        })
    }
}

#[cfg(test)]
mod tests {
    use hyper::http::uri::PathAndQuery;

    use super::*;

    #[test]
    fn hooks_are_commands_signals_and_requests() {
        let action = |text: &str| text.parse::<Hook>().unwrap().action;
        assert_eq!(action("signal:USR1"), Action::Signal(Signal::SIGUSR1));
        assert_eq!(action("signal:SIGHUP"), Action::Signal(Signal::SIGHUP));
        let words = ["/bin/sh", "-c", "kill -HUP $WARMIMG_PID"];
        assert_eq!(
            action("/bin/sh -c 'kill -HUP $WARMIMG_PID'"),
            Action::Command(words.map(OsString::from).to_vec())
        );
        let Action::Ask { method, place } = action("post:/reload?a") else {
            panic!("not a request");
        };
        assert_eq!(method, Method::POST);
        assert_eq!(place, Asked::Path(PathAndQuery::from_static("/reload?a")));
        for bad in [
            "",
            "signal:KILL",
            "signal:NO",
            "get:ftp://a/",
            "post:tcp://a:1",
            "sh 'x",
            "get:/a b",
        ] {
            assert!(bad.parse::<Hook>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_have_a_name() {
        assert!("A=b=c".parse::<Variable>().is_ok() && "A=".parse::<Variable>().is_ok());
        assert!("A".parse::<Variable>().is_err() && "=b".parse::<Variable>().is_err());
    }
}
