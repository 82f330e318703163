//! The answer of a site on its way to a client of HTTP/2.

use std::{
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body, Bytes, Frame},
    header::{HeaderName, HeaderValue},
};

use super::{
    Stream,
    ask::{Answered, Other},
    own_answer,
};
use crate::proxy::{
    fields::{Field, Pair, goes_on},
    http1::{
        body::{Decoder, Step, each_trailer},
        head::{Answer, Framing, MOST_FIELDS, Refusal},
    },
    own::Own,
    record::Record,
    site::Site,
    upstream::{self, Connection},
};

/// An answer that has begun.
pub struct Relaying {
    pub answered: Answered,
    pub site: Arc<Site>,
    pub worker: usize,
    pub record: Arc<Record>,
    #[expect(dead_code, reason = "held")]
    pub stream: Stream,
}

/// What a head says.
struct Begun {
    status: u16,
    fields: HeaderMap,
    body: Framing,
    reuse: bool,
}

impl Relaying {
    /// Reads the head, and gives the body with it.
    pub async fn begin(mut self, is_head: bool) -> Response<AnswerBody> {
        self.record.note_first_byte();
        let begun = match self.read_head(is_head).await {
            Some(begun) => begun,
            None => {
                self.record.set_status(502);
                return own_answer(Own::new(502), is_head);
            }
        };
        self.record.set_status(begun.status);
        let body = SiteBody {
            decoder: Decoder::new(begun.body),
            reuse: begun.reuse,
            relaying: Some(self),
        };
        let mut response = Response::new(AnswerBody::Site(Box::new(body.started())));
        *response.status_mut() = StatusCode::from_u16(begun.status).unwrap_or_default();
        *response.headers_mut() = begun.fields;
        response
    }

    /// Reads the head of the final answer; those before it hyper has no way for.
    async fn read_head(&mut self, is_head: bool) -> Option<Begun> {
        loop {
            let len = self.answered.source.read_head().await.ok()??;
            let begun = begin(&self.answered.source.bytes()[..len], is_head).ok()?;
            self.answered.source.take(len);
            match begun.status {
                // Nobody asked for it.
                101 => return None,
                ..200 => {}
                _ => return Some(begun),
            }
        }
    }
}

fn begin(head: &[u8], is_head: bool) -> Result<Begun, Refusal> {
    let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
    let answer = Answer::parse(head, &mut fields, is_head)?;
    let pairs = answer
        .fields
        .iter()
        .map(|field| -> Pair<'_> { (field.name, field.value) });
    let tells_length = is_head || answer.status == 304 || matches!(answer.body, Framing::Length(_));
    let mut fields = HeaderMap::with_capacity(answer.fields.len());
    for (name, value) in pairs.clone() {
        let goes_on = match Field::of(name) {
            Field::ContentLength => tells_length,
            _ => goes_on(name, pairs.clone()),
        };
        if goes_on {
            append(&mut fields, name, value)?;
        }
    }
    Ok(Begun {
        status: answer.status,
        fields,
        body: answer.body,
        reuse: answer.keep_alive,
    })
}

fn append(fields: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), Refusal> {
    let bad = Refusal::Malformed("bad field");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| bad)?;
    fields.append(name, value);
    Ok(())
}

/// The body of an answer.
pub enum AnswerBody {
    Own(Bytes),
    Site(Box<SiteBody>),
}

/// A body that is read from its site as the client takes it.
pub struct SiteBody {
    decoder: Decoder,
    /// The site may get another request.
    reuse: bool,
    /// None when all is done.
    relaying: Option<Relaying>,
}

impl SiteBody {
    /// Ends at once if there is nothing to come.
    fn started(mut self) -> Self {
        if self.decoder.is_done() {
            self.finish();
        }
        self
    }

    /// Gives the connection back.
    fn finish(&mut self) {
        let Some(relaying) = self.relaying.take() else {
            return;
        };
        let Answered { source, other } = relaying.answered;
        if let Other::Sent(sink) = other
            && self.reuse
            && source.is_empty()
        {
            let connection = Connection::from_parts(source, sink);
            upstream::keep(&relaying.site, relaying.worker, connection);
        }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Frame<Bytes>>>> {
        loop {
            let Some(relaying) = &mut self.relaying else {
                return Poll::Ready(Ok(None));
            };
            let source = &mut relaying.answered.source;
            match self
                .decoder
                .step(source.bytes())
                .map_err(io::Error::other)?
            {
                Step::Skip(len) => source.take(len),
                Step::Data(len) => {
                    let data = Bytes::copy_from_slice(&source.bytes()[..len]);
                    source.take(len);
                    relaying.record.count_out(len);
                    if self.decoder.is_done() {
                        self.finish();
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Step::Trailers(len) => {
                    let mut fields = HeaderMap::new();
                    let trailers = each_trailer(&source.bytes()[..len], |name, value| {
                        // What cannot be told is left out.
                        let _ = append(&mut fields, name, value);
                    });
                    trailers.map_err(io::Error::other)?;
                    source.take(len);
                    self.finish();
                    if !fields.is_empty() {
                        return Poll::Ready(Ok(Some(Frame::trailers(fields))));
                    }
                }
                Step::Done => self.finish(),
                Step::More => {
                    if source.is_full() {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                    if ready!(pin!(source.read()).poll(context))? == 0 {
                        match self.decoder.ends_with_connection() {
                            true => self.finish(),
                            false => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        }
                    }
                }
            }
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Site(body) => body.poll_piece(context).map(Result::transpose),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_empty(),
            Self::Site(body) => body.relaying.is_none(),
        }
    }
}
