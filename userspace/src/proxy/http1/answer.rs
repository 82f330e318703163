//! The answer of a site on its way to a client of HTTP/1.

use std::{mem::MaybeUninit, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    body::Decoder,
    exchange::Asked,
    head::{Answer, Framing, MOST_FIELDS, Refusal},
};
use crate::proxy::{
    fields::{AnswerHead, Field},
    record::Record,
    stream::{Patience, ReadError, Sink, Source, carry},
};

/// What is done with an answer.
pub struct Relay<'a> {
    pub asked: Asked,
    pub record: &'a Record,
    /// How long the client may take nothing.
    pub stall: Duration,
}

/// How it went.
pub enum Relayed {
    Whole {
        /// The client may send another request.
        keep: bool,
        /// The site may get another.
        reuse: bool,
    },
    /// From here on the bytes are no HTTP.
    Upgraded,
}

/// Why the answer did not get through.
pub enum RelayError {
    /// The connection ended before there was one.
    NoAnswer,
    /// It makes no sense, and the client has nothing of it.
    Malformed,
    /// The client has part of it, or is gone.
    Broken,
}

/// What of a head is needed once it is written.
struct Begun {
    body: Framing,
    to_client: Framing,
    keep: bool,
    reuse: bool,
    is_upgraded: bool,
    is_interim: bool,
}

impl Relay<'_> {
    /// Carries an answer, from its head on.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub async fn run<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &self,
        source: &mut Source<R>,
        sink: &mut Sink<W>,
    ) -> Result<Relayed, RelayError> {
        let begun = loop {
            let len = match source.read_head().await {
                Ok(Some(len)) => len,
                Ok(None) | Err(ReadError::Read(_)) => return Err(RelayError::NoAnswer),
                Err(ReadError::Refused(_) | ReadError::TooLong) => {
                    return Err(RelayError::Malformed);
                }
            };
            self.record.note_first_byte();
            let begun = self.begin(&source.bytes()[..len], &mut sink.out);
            let begun = begun.map_err(|_| RelayError::Malformed)?;
            source.take(len);
            match begun.is_interim {
                true => sink
                    .flush(self.stall)
                    .await
                    .map_err(|_| RelayError::Broken)?,
                false => break begun,
            }
        };
        let patience = Patience {
            // A site may have nothing to say for hours, and its client still wait for it.
            read: None,
            write: self.stall,
        };
        let mut decoder = Decoder::new(begun.body);
        let as_chunks = begun.to_client == Framing::Chunked;
        let count = |len| self.record.count_out(len);
        let carried = carry(source, &mut decoder, sink, as_chunks, patience, count).await;
        carried.map_err(|_| RelayError::Broken)?;
        Ok(match begun.is_upgraded {
            true => Relayed::Upgraded,
            false => Relayed::Whole {
                keep: begun.keep,
                reuse: begun.reuse,
            },
        })
    }

    /// Reads the head of an answer, and writes it anew.
    fn begin(&self, head: &[u8], out: &mut Vec<u8>) -> Result<Begun, Refusal> {
        let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
        let answer = Answer::parse(head, &mut fields, self.asked.is_head)?;
        let is_upgraded = answer.status == 101;
        if is_upgraded && !(self.asked.upgrades && answer.upgrade.is_some()) {
            return Err(Refusal::Malformed("an upgrade that nobody asked for"));
        }
        let is_interim = answer.status < 200 && !is_upgraded;
        let to_client = match answer.body {
            Framing::Chunked | Framing::UntilClose if self.asked.is_1_1 => Framing::Chunked,
            Framing::Chunked => Framing::UntilClose,
            other => other,
        };
        let mut asked = self.asked;
        asked.keep_alive &= to_client != Framing::UntilClose;
        // An old client knows of no answer before the last.
        if !is_interim || self.asked.is_1_1 {
            let mut lengths = answer.fields.iter();
            let length = lengths.find(|field| Field::of(field.name) == Field::ContentLength);
            let tells_length = self.asked.is_head || answer.status == 304;
            AnswerHead {
                status: answer.status,
                reason: answer.reason,
                fields: answer.fields.iter().map(|field| (field.name, field.value)),
                body: to_client,
                told_length: length.filter(|_| tells_length).map(|field| field.value),
                upgrade: answer.upgrade.filter(|_| is_upgraded),
                connection: asked.connection().filter(|_| !is_interim),
            }
            .write(out);
        }
        if !is_interim {
            self.record.set_status(answer.status);
        }
        Ok(Begun {
            body: answer.body,
            to_client,
            keep: asked.keep_alive,
            reuse: answer.keep_alive,
            is_upgraded,
            is_interim,
        })
    }
}
