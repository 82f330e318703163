//! A request of HTTP/2 on its way to a site.

use std::{io, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::proxy::{
    client::{Active, Client, milliseconds},
    fields::{line, may_trail},
    http1::{body::encode, head::Framing},
    record::Record,
    site::Site,
    stream::{Sink, Source},
    upstream::{self, AskError, Reader, Whole, Writer},
};

/// A site's connection with the beginning of an answer.
pub struct Answered {
    pub source: Source<Reader>,
    pub other: Other,
}

/// The other half of the connection.
pub enum Other {
    /// The whole request was sent.
    Sent(Sink<Writer>),
    /// Its body is still being sent; that ends with this.
    #[expect(dead_code, reason = "held")]
    Sending(Sending),
}

/// A task that ends with this.
pub struct Sending(JoinHandle<()>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request, and where it goes.
pub struct Asking<'a> {
    pub client: &'a Client,
    pub active: &'a Active,
    pub site: &'a Arc<Site>,
    pub record: &'a Arc<Record>,
}

impl Asking<'_> {
    /// Sends a request that is there as a whole.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn whole(&self, bytes: &[u8], is_idempotent: bool) -> Result<Answered, AskError> {
        let whole = Whole {
            bytes,
            is_idempotent,
        };
        let asker = self.client.asker(&self.active.limits);
        let (source, sink) = upstream::ask(self.site, whole, asker).await?.into_parts();
        let other = Other::Sent(sink);
        Ok(Answered { source, other })
    }

    /// Sends a body while it comes, on a connection of its own.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn in_parts(
        &self,
        head: Vec<u8>,
        body: Incoming,
        framing: Framing,
    ) -> Result<Answered, AskError> {
        let limit = self.site.first_byte_timeout();
        let buffer = self.active.limits.head_bytes;
        let connected = upstream::connect(self.site, Instant::now() + limit, buffer).await?;
        let (mut source, mut sink) = connected.into_parts();
        sink.out = head;
        let stall = milliseconds(self.active.limits.stall_ms);
        let (record, as_chunks) = (self.record.clone(), framing == Framing::Chunked);
        let (sent, is_sent) = oneshot::channel();
        let sending = Sending(tokio::spawn(async move {
            let outcome = send(&mut sink, body, as_chunks, (stall, limit), &record).await;
            // Nobody may be waiting for it any more.
            let _ = sent.send(outcome);
            // Were it dropped, the site would see the end of the connection.
            std::future::pending::<()>().await;
            drop(sink);
        }));
        let late = async {
            match is_sent.await {
                Ok(Err(SendError::Client)) | Err(_) => AskError::Ended,
                Ok(Ok(()) | Err(SendError::Site)) => {
                    sleep(limit).await;
                    AskError::Late
                }
            }
        };
        tokio::select! {
            biased;
            read = source.read() => match read {
                Ok(1..) => Ok(Answered {
                    source,
                    other: Other::Sending(sending),
                }),
                Ok(0) | Err(_) => Err(AskError::Ended),
            },
            error = late => Err(error),
        }
    }
}

/// Whose fault it is that a body was not sent.
enum SendError {
    Client,
    Site,
}

async fn send(
    sink: &mut Sink<Writer>,
    mut body: Incoming,
    as_chunks: bool,
    (stall, limit): (Duration, Duration),
    record: &Record,
) -> Result<(), SendError> {
    let site = |_: io::Error| SendError::Site;
    sink.flush(limit).await.map_err(site)?;
    let mut trailers = Vec::new();
    loop {
        let frame = timeout(stall, body.frame())
            .await
            .map_err(|_| SendError::Client)?;
        let frame = match frame {
            Some(frame) => frame.map_err(|_| SendError::Client)?,
            None => break,
        };
        match frame.into_data() {
            Ok(data) => {
                record.count_in(data.len());
                encode(&mut sink.out, &data, as_chunks);
                sink.flush(limit).await.map_err(site)?;
            }
            Err(frame) => {
                let fields = frame.into_trailers().unwrap_or_default();
                for (name, value) in fields.iter().filter(|(name, _)| may_trail(name.as_str())) {
                    line(&mut trailers, name.as_str(), value.as_bytes());
                }
            }
        }
    }
    if as_chunks {
        sink.out.extend_from_slice(b"0\r\n");
        sink.out.extend_from_slice(&trailers);
        sink.out.extend_from_slice(b"\r\n");
    }
    sink.flush(limit).await.map_err(site)
}
