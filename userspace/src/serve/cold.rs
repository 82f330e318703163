//! Starts the server of a site cold, on the socket of the site.

use std::{ffi::CString, os::fd::AsFd as _, path::PathBuf, rc::Rc, time::Duration};

use super::socket::Socket;
use crate::{
    capture::{CaptureError, start_up},
    instance::{self, Folder, InstanceError, Record, Running},
    listener::Listener,
    spawn::{
        Bound, Command, CommandError, Descriptors, Fresh, Instead, Place, Plan, Sandbox, SpawnError,
    },
    store::{CommandInfo, Store, now_ms},
};

/// How long a server may take to listen.
const LIMIT: Duration = Duration::from_secs(60);

/// How long init may take to tell that it has ended.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// Why a server could not be started cold.
#[derive(Debug, thiserror::Error)]
pub enum ColdError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Start(#[from] CaptureError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error("the server has ended before it listened on {listener}: {status}{}", lines(.log))]
    Ended {
        listener: Listener,
        status: String,
        log: String,
    },
    #[error("the server has not listened on {listener} within {} s{}", LIMIT.as_secs(), lines(.log))]
    DoesNotListen { listener: Listener, log: String },
}

impl From<SpawnError> for ColdError {
    fn from(error: SpawnError) -> Self {
        Self::Start(error.into())
    }
}

fn lines(log: &str) -> String {
    let lines = log.lines().map(|line| format!("\n  {line}"));
    lines.collect()
}

/// What is to be started.
pub struct Cold {
    pub site: String,
    /// The name of the image that it takes the place of.
    pub image: String,
    pub command: CommandInfo,
    /// Where the server asks to listen.
    pub old: Listener,
    /// Where it listens instead.
    pub socket: Rc<Socket>,
}

impl Cold {
    /// Starts it, and waits until it has the socket. Nothing is left behind if this is cancelled or fails.
    ///
    /// # Errors
    /// See [`ColdError`].
    pub async fn start(self, store: &Store) -> Result<Running, ColdError> {
        let command = Command::again(
            &self.command.words,
            &self.command.environment,
            &self.command.working_directory,
            self.command.user.as_deref(),
        )?;
        let folder = Folder::create(&store.instances(), &self.image)?;
        let log = folder.open_log()?;
        let plan = Plan {
            command: Some(command.clone()),
            criu: CString::default(),
            kerndat: PathBuf::new(),
            kerndat_is_new: false,
            handed: 1,
            bound: vec![Bound {
                asked: self.old.clone(),
                instead: Instead::Handed(0),
            }],
            guarded: None,
            shared: vec![],
            place: Place::New(Fresh {
                terminals: true,
                ..Fresh::default()
            }),
        };
        let descriptors = Descriptors {
            images: folder.lock().as_fd(),
            work: folder.lock().as_fd(),
            stdout: log.as_fd(),
            stderr: log.as_fd(),
            instance: folder.lock().as_fd(),
            handed: vec![self.socket.descriptor.as_fd()],
        };
        let mut sandbox = Sandbox::create(&plan, &descriptors).await?;
        sandbox.start().await?;
        let executed = sandbox.go().await;
        executed.map_err(|error| start_up::exec_error(&command, error))?;
        let is_bound = tokio::time::timeout(LIMIT, sandbox.bound()).await;
        let log = || folder.last_lines();
        match is_bound {
            Ok(Ok(true)) => {}
            Err(_) => {
                return Err(ColdError::DoesNotListen {
                    listener: self.old,
                    log: log(),
                });
            }
            Ok(_) => {
                let status = tokio::time::timeout(EXIT_LIMIT, sandbox.exit()).await;
                let status = status.ok().and_then(Result::ok);
                return Err(ColdError::Ended {
                    listener: self.old,
                    status: status.map_or_else(
                        || "none of its processes is left".to_owned(),
                        instance::describe_status,
                    ),
                    log: log(),
                });
            }
        }
        let record = Record {
            id: folder.id().to_owned(),
            image: None,
            started_ms: now_ms(),
            init: sandbox.init(),
            detached: true,
            listeners: vec![self.socket.listener.clone()],
            mapped_bytes: 0,
            reuse_port: false,
            network: None,
            group: None,
            site: Some(self.site),
        };
        folder.publish(&record)?;
        sandbox.detach().await?;
        folder.keep();
        Ok(Running::follow(&store.instances(), &record.id)?)
    }
}
