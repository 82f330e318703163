//! The socket by which other commands speak to a gateway: a line of JSON each way per connection.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::oneshot,
};

use super::{
    overview::Overview,
    site::{Order, Status},
    wakes::Wake,
};

/// The socket in the gateway's folder.
const SOCKET: &str = "admin.sock";

/// The longest line, in bytes.
const LONGEST: u64 = 64 << 20;

/// How long a command may take to ask.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// How long a gateway may take to answer: a restore, with the hooks of its image.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Why a gateway did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("no gateway serves from this store")]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("cannot talk to the gateway by {}", .path.display())]
    Talk { path: PathBuf, source: io::Error },
    #[error("no site is called {wanted:?}")]
    Unknown { wanted: String, sites: Vec<String> },
    #[error("{site}: {reason}")]
    Refused { site: String, reason: String },
    #[error("the gateway knows of no such wake")]
    NoWake,
}

/// What a gateway is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Wake(String),
    Sleep(String),
    Status,
    /// What it knows of a wake: the one with this id, else the last.
    Trace {
        id: Option<String>,
        site: Option<String>,
    },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The instances that serve.
    Done(Vec<String>),
    Refused(String),
    Unknown {
        sites: Vec<String>,
    },
    Sites(Vec<Status>),
    Trace {
        /// The pid of the gateway.
        gateway: i32,
        wake: Option<Box<Wake>>,
    },
}

/// The listening end.
pub struct Admin(UnixListener);

impl Admin {
    /// Listens in a folder that only one gateway has.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn listen(folder: &Path) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        // Of one that was killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Waits for somebody who asks.
    pub async fn accept(&self) -> UnixStream {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => return stream,
                // Descriptors have run out, or nothing was there any more.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// Answers somebody.
pub async fn answer(mut stream: UnixStream, overview: Overview) {
    let asked = tokio::time::timeout(ASK_LIMIT, read_line(&mut stream)).await;
    let Ok(Ok(line)) = asked else {
        return;
    };
    let reply = match serde_json::from_str(&line) {
        Ok(request) => carry_out(request, &overview).await,
        Err(error) => Reply::Refused(error.to_string()),
    };
    if let Ok(mut line) = serde_json::to_vec(&reply) {
        line.push(b'\n');
        let _ = tokio::time::timeout(ASK_LIMIT, stream.write_all(&line)).await;
    }
}

async fn carry_out(request: Request, overview: &Overview) -> Reply {
    let (name, order, answer) = match request {
        Request::Status => return Reply::Sites(statuses(overview).await),
        Request::Trace { id, site } => {
            let wakes = overview.shared.wakes.borrow();
            let wake = wakes.find(id.as_deref(), site.as_deref()).cloned();
            return Reply::Trace {
                gateway: std::process::id() as i32,
                wake: wake.map(Box::new),
            };
        }
        Request::Wake(name) => {
            let (sender, answer) = oneshot::channel();
            (name, Order::Wake(sender), answer)
        }
        Request::Sleep(name) => {
            let (sender, answer) = oneshot::channel();
            (name, Order::Sleep(sender), answer)
        }
    };
    let Some(site) = overview.sites.get(&name) else {
        return Reply::Unknown {
            sites: overview.sites.keys().cloned().collect(),
        };
    };
    let _ = site.send(order);
    match answer.await {
        Ok(Ok(instances)) => Reply::Done(instances),
        Ok(Err(reason)) => Reply::Refused(reason),
        Err(_) => Reply::Refused("it is served no more".to_owned()),
    }
}

/// How the sites do, and what the proxy says of them.
async fn statuses(overview: &Overview) -> Vec<Status> {
    let (mut statuses, stats) = tokio::join!(overview.statuses(ANSWER_LIMIT), overview.proxy());
    let mut stats = stats.unwrap_or_default();
    for status in &mut statuses {
        status.proxy = stats.sites.remove(&status.site);
    }
    statuses
}

async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LONGEST));
    reader.read_line(&mut line).await?;
    Ok(line)
}

/// Asks the gateway of a store.
///
/// # Errors
/// [`AdminError::NotRunning`] or [`AdminError::Talk`].
pub async fn ask(store: &Path, request: &Request) -> Result<Reply, AdminError> {
    let path = super::gateway::folder(store).join(SOCKET);
    let stream = UnixStream::connect(&path).await;
    let mut stream = stream.map_err(|source| AdminError::NotRunning {
        path: path.clone(),
        source,
    })?;
    let talk = async {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let line = read_line(&mut stream).await?;
        Ok(serde_json::from_str(&line)?)
    };
    let talked = tokio::time::timeout(ANSWER_LIMIT, talk).await;
    let talked = talked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    talked.map_err(|source| AdminError::Talk { path, source })
}
