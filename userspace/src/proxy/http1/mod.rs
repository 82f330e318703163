//! HTTP/1.0 and 1.1 with clients. Written here, and not left to a library, for two reasons: whatever could
//! be understood in two ways must be refused before it goes anywhere, and nothing stands between the two
//! sockets but a buffer for each.

pub mod body;
pub mod head;

mod answer;
mod exchange;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout, timeout_at},
};

use self::{
    exchange::{Exchange, Next},
    head::Refusal,
};
use super::{
    client::{Client, milliseconds},
    fields::AnswerHead,
    own::Own,
    stream::{ReadError, Sink, Source},
};

/// Serves a connection to its end.
pub async fn serve<R, W>(client: &Client, reader: R, writer: W, begun: Instant)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let limits = client.worker.active().limits.clone();
    let mut source = Source::new(reader, limits.head_bytes);
    let mut sink = Sink::new(writer);
    let mut deadline = Some(begun + milliseconds(limits.head_ms));
    loop {
        let head = next_head(client, &mut source, &limits, deadline.take()).await;
        // There may be another plan by now.
        let active = client.worker.active();
        let next = match head {
            Head::Whole(len) => {
                let exchange = Exchange {
                    client,
                    active: &active,
                    source: &mut source,
                    sink: &mut sink,
                };
                exchange.run(len).await
            }
            Head::Refused(status) => {
                let record = client.record(&active, "", "", "");
                record.set_status(status);
                write_own(&mut sink.out, Own::new(status), false, Some("close"));
                Next::Linger
            }
            Head::None => Next::Close,
        };
        let stall = milliseconds(active.limits.stall_ms);
        match next {
            Next::Request => {}
            Next::Close => break,
            Next::Linger => {
                if sink.flush(stall).await.is_ok() {
                    linger(&mut source, &mut sink).await;
                }
                return;
            }
        }
    }
    let _ = timeout(LINGER, sink.writer.shutdown()).await;
}

/// How long a client may take to see why it was refused.
const LINGER: Duration = Duration::from_secs(1);

/// Ends a connection whose client may still be sending: were it closed at once, what it sends would make
/// its kernel throw away the answer.
async fn linger<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    source: &mut Source<R>,
    sink: &mut Sink<W>,
) {
    let drain = async {
        sink.writer.shutdown().await?;
        loop {
            source.take(source.bytes().len());
            if source.read().await? == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let _ = timeout(LINGER, drain).await;
}

enum Head {
    Whole(usize),
    /// To be answered with this status.
    Refused(u16),
    /// There is no further request.
    None,
}

/// Waits for the head of a request. The time that it may take begins with its first byte, unless there is
/// a deadline already.
async fn next_head<R: AsyncRead + Unpin>(
    client: &Client,
    source: &mut Source<R>,
    limits: &super::plan::Limits,
    deadline: Option<Instant>,
) -> Head {
    if source.is_empty() {
        if client.is_stopping() {
            return Head::None;
        }
        let idle = deadline.unwrap_or_else(|| Instant::now() + milliseconds(limits.idle_ms));
        let read = tokio::select! {
            biased;
            read = timeout_at(idle, source.read()) => read,
            () = client.stopped() => return Head::None,
            // One that has not asked yet may be about to.
            () = client.worker.crowded.notified(), if deadline.is_none() => return Head::None,
        };
        if !matches!(read, Ok(Ok(1..))) {
            return Head::None;
        }
    }
    // Some clients end a body with an empty line more than it has.
    while source.bytes().starts_with(b"\r\n") {
        source.take(2);
    }
    let deadline = deadline.unwrap_or_else(|| Instant::now() + milliseconds(limits.head_ms));
    match timeout_at(deadline, source.read_head()).await {
        Ok(Ok(Some(len))) => Head::Whole(len),
        Ok(Err(ReadError::TooLong)) => Head::Refused(431),
        Ok(Err(ReadError::Refused(refusal))) => Head::Refused(status_of(refusal)),
        Ok(Ok(None) | Err(ReadError::Read(_))) => Head::None,
        Err(_) if source.is_empty() => Head::None,
        Err(_) => Head::Refused(408),
    }
}

fn status_of(refusal: Refusal) -> u16 {
    match refusal {
        Refusal::Malformed(_) => 400,
        Refusal::TooManyFields => 431,
        Refusal::Version => 505,
    }
}

/// Writes an answer of the proxy's own.
fn write_own(out: &mut Vec<u8>, own: Own, to_head: bool, connection: Option<&str>) {
    let (body, fields) = (own.body(), own.fields());
    AnswerHead {
        status: own.status,
        reason: own.reason(),
        fields: fields.iter().map(|(name, value)| (*name, value.as_slice())),
        body: head::Framing::Length(body.len() as u64),
        told_length: None,
        upgrade: None,
        connection,
    }
    .write(out);
    if !to_head {
        out.extend_from_slice(body.as_bytes());
    }
}
