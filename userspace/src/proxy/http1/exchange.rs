//! One request and its answer: the request is read, written anew for its site, and answered with what the
//! site says, or with why not.

use std::{
    io,
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, timeout},
};

use super::{
    answer::{Relay, RelayError, Relayed},
    body::Decoder,
    head::{Framing, MOST_FIELDS, Request},
    status_of, write_own,
};
use crate::proxy::{
    client::{Active, Client, milliseconds},
    fields::RequestHead,
    own::{Own, decide, is_idempotent},
    record::Record,
    site::Site,
    stream::{CarryError, Patience, Sink, Source, carry, tunnel},
    upstream::{self, AskError, Connection, Whole},
};

/// What comes after a request.
pub enum Next {
    /// Another on the same connection.
    Request,
    /// The end, once what is to be written is.
    Linger,
    /// The end.
    Close,
}

/// A request on a client's connection.
pub struct Exchange<'a, R, W> {
    pub client: &'a Client,
    pub active: &'a Active,
    pub source: &'a mut Source<R>,
    pub sink: &'a mut Sink<W>,
}

/// What of a request is needed once its head is gone.
#[derive(Clone, Copy)]
pub struct Asked {
    pub is_head: bool,
    pub is_1_1: bool,
    pub keep_alive: bool,
    pub upgrades: bool,
    expects: bool,
    body: Framing,
    is_idempotent: bool,
}

/// A request that is ready to be sent.
struct Ready {
    site: Arc<Site>,
    record: Record,
    asked: Asked,
    /// Its head as the site gets it, and its body, if that is there as a whole.
    bytes: Vec<u8>,
    /// What comes of the body yet.
    rest: Framing,
}

impl<R, W> Exchange<'_, R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    /// Serves the request whose head is the first bytes of the source.
    pub async fn run(mut self, head: usize) -> Next {
        match self.prepare(head) {
            Ok(mut ready) => match self.gather(&mut ready).await {
                Ok(()) if ready.rest == Framing::None => self.ask_whole(ready).await,
                Ok(()) => self.ask_in_parts(ready).await,
                Err(next) => next,
            },
            Err(next) => match self.flush().await {
                Ok(()) => next,
                Err(_) => Next::Close,
            },
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.sink
            .flush(milliseconds(self.active.limits.stall_ms))
            .await
    }

    /// Reads the head and decides where the request goes; if nowhere, the answer is to be written.
    fn prepare(&mut self, head: usize) -> Result<Ready, Next> {
        let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
        let parsed = Request::parse(&self.source.bytes()[..head], &mut fields);
        let request = match parsed {
            Ok(request) => request,
            Err(refusal) => {
                let record = self.client.record(self.active, "", "", "");
                let own = Own::new(status_of(refusal));
                record.set_status(own.status);
                write_own(&mut self.sink.out, own, false, Some("close"));
                return Err(Next::Linger);
            }
        };
        let (method, host, target) = (request.method, request.host, request.target);
        let mut record = self.client.record(self.active, method, host, target);
        let mut asked = Asked {
            is_head: method == "HEAD",
            is_1_1: request.is_1_1,
            keep_alive: request.keep_alive && !self.client.is_stopping(),
            upgrades: request.upgrade.is_some(),
            expects: request.expects,
            body: request.body,
            is_idempotent: is_idempotent(method),
        };
        let decided = decide(
            self.client,
            self.active,
            (method, host, target),
            &mut record,
        );
        let site = match decided {
            Ok(site) => site,
            Err(own) => {
                // Of a body that is not read nobody knows whether it comes at all; and what comes after a
                // request that is not understood may be part of it.
                let is_understood = !matches!(own.status, 400 | 405);
                asked.keep_alive &= is_understood && asked.body == Framing::None;
                self.source.take(head);
                return Err(self.answer(own, asked, &record));
            }
        };
        let mut bytes = Vec::with_capacity(head + 256);
        RequestHead {
            method,
            target,
            host,
            fields: request.fields.iter().map(|field| (field.name, field.value)),
            body: request.body,
            expects: request.expects,
            upgrade: request.upgrade,
            origin: self.client.origin(),
            request_id: record.id,
        }
        .write(&mut bytes);
        self.source.take(head);
        Ok(Ready {
            site,
            record,
            asked,
            bytes,
            rest: asked.body,
        })
    }

    /// Waits for a body that there is room for, so that the request can be sent as a whole: many clients
    /// send it by itself.
    async fn gather(&mut self, ready: &mut Ready) -> Result<(), Next> {
        let Framing::Length(length) = ready.rest else {
            return Ok(());
        };
        let room = self.source.size();
        let Some(len) = usize::try_from(length).ok().filter(|&len| len <= room) else {
            return Ok(());
        };
        if ready.asked.expects {
            return Ok(());
        }
        let stall = milliseconds(self.active.limits.stall_ms);
        while self.source.bytes().len() < len {
            match timeout(stall, self.source.read()).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return Err(Next::Close),
                Err(_) => return Err(self.refuse(Own::new(408), ready).await),
            }
        }
        ready.bytes.extend_from_slice(&self.source.bytes()[..len]);
        ready.record.count_in(len);
        self.source.take(len);
        ready.rest = Framing::None;
        Ok(())
    }

    /// Has an answer of the proxy's own written.
    fn answer(&mut self, own: Own, asked: Asked, record: &Record) -> Next {
        record.set_status(own.status);
        let connection = asked.connection();
        write_own(&mut self.sink.out, own, asked.is_head, connection);
        match asked.keep_alive {
            true => Next::Request,
            false => Next::Linger,
        }
    }

    async fn fail(&mut self, error: &AskError, ready: &Ready, keep_alive: bool) -> Next {
        let asked = Asked {
            keep_alive: ready.asked.keep_alive && keep_alive,
            ..ready.asked
        };
        let next = self.answer(Own::for_failure(error, &ready.site), asked, &ready.record);
        match self.flush().await {
            Ok(()) => next,
            Err(_) => Next::Close,
        }
    }

    /// Sends a request that is there as a whole. A client that goes away takes it with it.
    async fn ask_whole(&mut self, ready: Ready) -> Next {
        let asker = self.client.asker(&self.active.limits);
        let whole = Whole {
            bytes: &ready.bytes,
            is_idempotent: ready.asked.is_idempotent,
        };
        let answered = tokio::select! {
            biased;
            answered = upstream::ask(&ready.site, whole, asker) => answered,
            () = self.source.gone() => return Next::Close,
        };
        let mut connection = match answered {
            Ok(connection) => connection,
            Err(error) => return self.fail(&error, &ready, true).await,
        };
        ready.record.note_first_byte();
        let relay = self.relay(&ready);
        let relayed = tokio::select! {
            biased;
            relayed = relay.run(&mut connection.source, self.sink) => relayed,
            () = self.source.gone() => return Next::Close,
        };
        self.finish(ready, connection, relayed).await
    }

    fn relay<'r>(&self, ready: &'r Ready) -> Relay<'r> {
        Relay {
            asked: ready.asked,
            record: &ready.record,
            stall: milliseconds(self.active.limits.stall_ms),
        }
    }

    /// Sends a request whose body is still on its way, while the answer may already come. It can be sent
    /// only once, and so never on a connection that may have ended.
    async fn ask_in_parts(&mut self, ready: Ready) -> Next {
        let limit = ready.site.first_byte_timeout();
        let buffer = self.active.limits.head_bytes;
        let connected = upstream::connect(&ready.site, Instant::now() + limit, buffer).await;
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => return self.fail(&error, &ready, false).await,
        };
        connection.sink.out.clone_from(&ready.bytes);
        let is_sent = AtomicBool::new(false);
        let outcome = self.carry_both(&ready, &mut connection, &is_sent).await;
        let has_begun = ready.record.has_first_byte();
        match outcome {
            Ok(relayed) if is_sent.load(Relaxed) => self.finish(ready, connection, relayed).await,
            // Where the next request would begin is not known.
            Ok(Ok(_)) => Next::Linger,
            Ok(Err(error)) => self.give_up(error, &ready).await,
            Err(_) if has_begun => Next::Close,
            Err(Ended::Malformed) => self.refuse(Own::new(400), &ready).await,
            Err(Ended::Stalled) => self.refuse(Own::new(408), &ready).await,
            Err(Ended::Late) => self.fail(&AskError::Late, &ready, false).await,
            Err(Ended::Gone) => Next::Close,
        }
    }

    /// Carries a body to the site while its answer comes back, until that is there, or never will be.
    async fn carry_both(
        &mut self,
        ready: &Ready,
        connection: &mut Connection,
        is_sent: &AtomicBool,
    ) -> Result<Result<Relayed, RelayError>, Ended> {
        let limit = ready.site.first_byte_timeout();
        let patience = Patience {
            read: Some(milliseconds(self.active.limits.stall_ms)),
            write: limit,
        };
        let relay = self.relay(ready);
        let (source, sink) = (&mut *self.source, &mut connection.sink);
        let send = async {
            let as_chunks = ready.rest == Framing::Chunked;
            let mut decoder = Decoder::new(ready.rest);
            // The head goes on its way before the body comes: the client may wait for leave to send it.
            let sent = match sink.flush(limit).await {
                Ok(()) => {
                    let count = |len| ready.record.count_in(len);
                    carry(source, &mut decoder, sink, as_chunks, patience, count).await
                }
                Err(error) => Err(CarryError::Write(error)),
            };
            match sent {
                Ok(()) => is_sent.store(true, Relaxed),
                // The site wants no more of it, and may say why.
                Err(CarryError::Write(_)) => {}
                Err(CarryError::Malformed(_)) => return Ended::Malformed,
                Err(CarryError::Read(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    return Ended::Stalled;
                }
                Err(CarryError::Read(_) | CarryError::CutShort) => return Ended::Gone,
            }
            tokio::select! {
                () = source.gone() => Ended::Gone,
                () = late(&ready.record, limit) => Ended::Late,
            }
        };
        tokio::select! {
            biased;
            relayed = relay.run(&mut connection.source, self.sink) => Ok(relayed),
            ended = send => Err(ended),
        }
    }

    async fn refuse(&mut self, own: Own, ready: &Ready) -> Next {
        let asked = Asked {
            keep_alive: false,
            ..ready.asked
        };
        self.sink.out.clear();
        self.answer(own, asked, &ready.record)
    }

    /// What to do when the answer has gone to the client, or has not.
    async fn finish(
        &mut self,
        ready: Ready,
        mut connection: Connection,
        relayed: Result<Relayed, RelayError>,
    ) -> Next {
        match relayed {
            Ok(Relayed::Whole { keep, reuse }) => {
                if reuse && connection.source.is_empty() {
                    upstream::keep(&ready.site, self.client.worker.number, connection);
                }
                match keep {
                    true => Next::Request,
                    false => Next::Linger,
                }
            }
            Ok(Relayed::Upgraded) => {
                let record = &ready.record;
                // It ends as its sides do; neither has anything more to be told.
                let _ = tunnel(
                    (self.source, self.sink),
                    (&mut connection.source, &mut connection.sink),
                    |len| record.count_in(len),
                    |len| record.count_out(len),
                )
                .await;
                Next::Close
            }
            Err(error) => self.give_up(error, &ready).await,
        }
    }

    async fn give_up(&mut self, error: RelayError, ready: &Ready) -> Next {
        match error {
            RelayError::NoAnswer => self.fail(&AskError::Ended, ready, false).await,
            RelayError::Malformed => self.refuse(Own::new(502), ready).await,
            // The client has part of an answer; only the end of the connection tells it that.
            RelayError::Broken => Next::Close,
        }
    }
}

/// Why an answer is waited for no longer.
enum Ended {
    Malformed,
    Stalled,
    Gone,
    Late,
}

/// Waits until an answer should have begun, and for ever if it has.
async fn late(record: &Record, limit: Duration) {
    sleep(limit).await;
    if record.has_first_byte() {
        std::future::pending().await
    }
}

impl Asked {
    /// What is to be said of the connection, if anything.
    pub fn connection(self) -> Option<&'static str> {
        match (self.keep_alive, self.is_1_1) {
            (false, _) => Some("close"),
            (true, false) => Some("keep-alive"),
            (true, true) => None,
        }
    }
}
