//! Requests that a server is given before it is captured, so that what it does only once (compiles,
//! loads, connects, fills caches) is part of the image.

use std::{
    cell::Cell,
    fmt,
    rc::Rc,
    str::FromStr,
    time::{Duration, Instant},
};

use hyper::http::uri::PathAndQuery;
use tokio::task::LocalSet;

use crate::{
    client::{AskError, Client},
    elsewhere::Elsewhere,
    target::{self, Asked, ExpectedStatus, Target, TargetError},
};

/// Why a text does not say what to ask.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("cannot be asked for: {0} (a path begins with /)")]
    Target(#[from] TargetError),
    #[error("{0} must be a number from 1 to 1000000")]
    Number(&'static str),
    #[error("the text to send has a bad escape: {0}")]
    Escape(String),
    #[error("only to tcp:// and unix: can something be sent")]
    SendByHttp,
    #[error("there is no option {0}: known are count, concurrency, status and send")]
    Option(String),
    #[error("the status must be a number from 100 to 599")]
    Status,
}

/// Why a server was not warmed up.
#[derive(Debug, thiserror::Error)]
pub enum WarmupError {
    #[error("the server answered {at} with status {found}, not {expected}")]
    Status {
        at: String,
        found: u16,
        expected: ExpectedStatus,
    },
    #[error("cannot ask {at}")]
    Ask { at: String, source: AskError },
    #[error("{at} was answered {answered} of {count} times within {} s", .limit.as_secs_f64())]
    Timeout {
        at: String,
        answered: u32,
        count: u32,
        limit: Duration,
    },
}

/// What to ask, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// As it was given.
    text: String,
    place: Asked,
    /// How many requests, all in all.
    pub count: u32,
    /// How many at the same time.
    pub concurrency: u32,
    pub status: ExpectedStatus,
}

/// Parses `URL|PATH[,count=N][,concurrency=N][,status=CODE][,send=TEXT]`.
impl FromStr for Warmup {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (mut place, mut count, mut concurrency) = (text, 20, 1);
        let (mut status, mut send) = (None, None);
        // From the end: a URL may hold commas of its own.
        while let Some((rest, option)) = place.rsplit_once(',') {
            match option.split_once('=') {
                Some(("count", value)) => count = number("count", value)?,
                Some(("concurrency", value)) => concurrency = number("concurrency", value)?,
                Some(("status", value)) => {
                    let value = value.parse().ok().filter(|code| (100..600).contains(code));
                    status = Some(value.ok_or(SpecError::Status)?);
                }
                Some(("send", value)) => {
                    send = Some(target::unescape(value).map_err(SpecError::Escape)?);
                }
                Some((key, _)) if key.chars().all(|c| c.is_ascii_alphabetic()) => {
                    return Err(SpecError::Option(key.to_owned()));
                }
                _ => break,
            }
            place = rest;
        }
        let mut place: Asked = place.parse()?;
        match (&mut place, send) {
            (_, None) => {}
            (Asked::Target(target), Some(bytes)) if !target.is_http_url() => {
                *target = target.clone().sending(bytes);
            }
            (_, Some(_)) => return Err(SpecError::SendByHttp),
        }
        Ok(Self {
            text: text.to_owned(),
            place,
            count,
            concurrency,
            status: ExpectedStatus(status),
        })
    }
}

fn number(what: &'static str, text: &str) -> Result<u32, SpecError> {
    let number = text.parse().ok();
    number
        .filter(|number| (1..=1_000_000).contains(number))
        .ok_or(SpecError::Number(what))
}

impl fmt::Display for Warmup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Default for Warmup {
    fn default() -> Self {
        Self {
            text: "/".to_owned(),
            place: Asked::Path(PathAndQuery::from_static("/")),
            count: 20,
            concurrency: 1,
            status: ExpectedStatus::default(),
        }
    }
}

impl Warmup {
    /// Whether the server is asked wherever it is.
    pub fn is_path(&self) -> bool {
        matches!(self.place, Asked::Path(_))
    }

    /// The same of a server whose listeners are elsewhere.
    #[must_use]
    pub fn elsewhere(self, elsewhere: &Elsewhere) -> Self {
        let place = self.place.elsewhere(elsewhere);
        Self { place, ..self }
    }

    /// The same, but a single request.
    pub fn once(&self) -> Self {
        Self {
            count: 1,
            concurrency: 1,
            ..self.clone()
        }
    }

    /// What is asked; `server` is where paths are asked for.
    pub fn target(&self, server: &Target) -> Target {
        self.place.of(server)
    }

    /// Asks until all was answered as expected; `server` is where paths are asked for.
    ///
    /// # Errors
    /// See [`WarmupError`].
    pub async fn run(&self, server: &Target, limit: Duration) -> Result<(), WarmupError> {
        let target = self.target(server);
        let answered = Rc::new(Cell::new(0));
        let workers = LocalSet::new();
        let begun = Rc::new(Cell::new(0));
        let mut handles = Vec::new();
        for _ in 0..self.concurrency.min(self.count) {
            let (this, target) = (self.clone(), target.clone());
            let (begun, answered) = (Rc::clone(&begun), Rc::clone(&answered));
            handles.push(workers.spawn_local(async move {
                while begun.get() < this.count {
                    begun.set(begun.get() + 1);
                    this.ask(&target).await?;
                    answered.set(answered.get() + 1);
                }
                Ok(())
            }));
        }
        let all = async {
            for handle in handles {
                // A worker ends early by being dropped only, and this with it.
                if let Ok(outcome) = handle.await {
                    outcome?;
                }
            }
            Ok(())
        };
        let timely = tokio::time::timeout(limit, workers.run_until(all)).await;
        timely.unwrap_or_else(|_| {
            Err(WarmupError::Timeout {
                at: target.to_string(),
                answered: answered.get(),
                count: self.count,
                limit,
            })
        })
    }

    async fn ask(&self, target: &Target) -> Result<(), WarmupError> {
        let failed = |source| WarmupError::Ask {
            at: target.to_string(),
            source,
        };
        let mut client = Client::new(target).map_err(failed)?;
        let answer = client.ask_until_answered(Instant::now()).await;
        match answer.map_err(failed)?.status {
            Some(found) if !self.status.accepts(found) => Err(WarmupError::Status {
                at: target.to_string(),
                found,
                expected: self.status,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Protocol;

    #[test]
    fn options_stand_behind_the_url() {
        let warmup: Warmup = "/a,b?c=d,count=50,concurrency=4".parse().unwrap();
        assert_eq!((warmup.count, warmup.concurrency), (50, 4));
        assert_eq!(
            warmup.place,
            Asked::Path(PathAndQuery::from_static("/a,b?c=d"))
        );
        let warmup: Warmup = "tcp://127.0.0.1:80,status=404".parse().unwrap();
        assert_eq!(
            (warmup.count, warmup.status),
            (20, ExpectedStatus(Some(404)))
        );
        let warmup: Warmup = r"tcp://127.0.0.1:6379,send=PING\r\n".parse().unwrap();
        let Asked::Target(target) = warmup.place else {
            panic!("not a target");
        };
        let send = b"PING\r\n".to_vec();
        assert_eq!(target.protocol, Protocol::Raw { send });
        for bad in [
            "",
            "/,count=0",
            "/,count=x",
            "/,status=1",
            "https://a/",
            "/,cuont=5",
            "/,send=x",
            "http://127.0.0.1/,send=x",
            "/a b",
        ] {
            assert!(bad.parse::<Warmup>().is_err(), "{bad}");
        }
    }
}
