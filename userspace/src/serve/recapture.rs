//! A new image of a site's server, made in the background by a process of its own: the gateway is to be there
//! for the sites meanwhile.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt as _, process};

use crate::{
    files,
    store::{Digest, Store},
    sys,
};

/// How long it may take, all in all.
const LIMIT: Duration = Duration::from_secs(600);

/// How much of what it writes is told.
const MOST_BYTES: u64 = 4096;

/// How long none is made after one, at first and at most: a server may change on each start what it is
/// found to be stale by.
const PAUSES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(24 * 3600)];

/// The recaptures of a site, one at a time.
#[derive(Default)]
pub struct Recaptures {
    current: Option<Recapture>,
    /// How many there were since the image was found to be as it should.
    count: u32,
    not_before: Option<Instant>,
}

impl Recaptures {
    /// Begins one, unless one is under way or there was one just now; returns whether it did.
    ///
    /// # Errors
    /// What fork(2) and execve(2) say.
    pub fn begin(&mut self, store: &Store, criu: &Path, image: &str) -> io::Result<bool> {
        let is_early = self.not_before.is_some_and(|time| Instant::now() < time);
        if is_early || self.current.is_some() {
            return Ok(false);
        }
        let factor = 1_u32 << self.count.min(16);
        let pause = PAUSES[0].saturating_mul(factor).min(PAUSES[1]);
        self.not_before = Some(Instant::now() + pause);
        self.count += 1;
        self.current = Some(Recapture::begin(store, criu, image)?);
        Ok(true)
    }

    /// How long there is none yet.
    pub fn pause(&self) -> Duration {
        let left = |time: Instant| time.saturating_duration_since(Instant::now());
        self.not_before.map_or(Duration::ZERO, left)
    }

    /// Waits until the one that is under way has ended. Can be cancelled.
    ///
    /// # Errors
    /// Why there is no new image.
    pub async fn ended(&mut self) -> Result<Recaptured, String> {
        let Some(current) = &mut self.current else {
            return std::future::pending().await;
        };
        let ended = current.ended().await;
        let recaptured = Recaptured {
            took: current.begun.elapsed(),
            before: current.before.take(),
        };
        self.current = None;
        ended.map(|()| recaptured)
    }

    /// Takes note that the image is as it should.
    pub fn is_fresh(&mut self) {
        self.count = 0;
    }
}

/// A recapture that was made.
pub struct Recaptured {
    pub took: Duration,
    /// The image that there was before.
    pub before: Option<Digest>,
}

/// A recapture that is under way. It ends when this is dropped, and with it what it has begun.
struct Recapture {
    child: process::Child,
    begun: Instant,
    before: Option<Digest>,
}

impl Recapture {
    fn begin(store: &Store, criu: &Path, image: &str) -> io::Result<Self> {
        // The program that this is, even after an update of its file.
        let mut command = process::Command::new(PathBuf::from("/proc/self/exe"));
        command
            .arg("--store")
            .arg(store.root())
            .arg("--criu")
            .arg(criu)
            .args(["recapture", image])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        sys::die_with_parent(&mut command);
        files::lower_for(&mut command);
        Ok(Self {
            before: store.locate(image).ok(),
            child: command.spawn()?,
            begun: Instant::now(),
        })
    }

    /// Waits until it has ended; if no image was made, tells why. Can be cancelled.
    async fn ended(&mut self) -> Result<(), String> {
        let left = LIMIT.saturating_sub(self.begun.elapsed());
        let waited = tokio::time::timeout(left, self.child.wait()).await;
        let status = match waited {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("it took longer than {} s", LIMIT.as_secs())),
        };
        if status.success() {
            return Ok(());
        }
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(MOST_BYTES).read_to_end(&mut text).await;
        }
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        Err(match text.is_empty() {
            true => status.to_string(),
            false => text,
        })
    }
}
