//! HTTP/2 with clients, by hyper; each request goes to its site by HTTP/1.1.

mod answer;
mod ask;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, Response,
    body::{Body as _, Incoming},
    header::{HeaderName, HeaderValue},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};

use self::{
    answer::{AnswerBody, Relaying},
    ask::Asking,
};
use super::{
    client::{Client, milliseconds},
    fields::RequestHead,
    http1::head::Framing,
    own::{Own, decide, is_idempotent},
    record::Record,
};

/// Streams of one client at a time.
const MOST_STREAMS: u32 = 128;

/// What a client may send before it is taken: of one request, and of all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// A body up to this size is read before the site is asked, and can be sent again.
const SMALL: u64 = 16 << 10;

/// What goes on in a connection.
#[derive(Debug, Default)]
struct Activity {
    streams: AtomicUsize,
    begun: AtomicU64,
}

/// A stream, as long as it is served.
struct Stream(Arc<Activity>);

impl Stream {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.streams.fetch_add(1, Relaxed);
        activity.begun.fetch_add(1, Relaxed);
        Self(activity.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

/// Serves a connection to its end.
pub async fn serve<S>(client: Client, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = client.worker.active().limits.clone();
    let client = Arc::new(client);
    let activity = Arc::new(Activity::default());
    let service = service_fn(|request| {
        let (client, stream) = (client.clone(), Stream::new(&activity));
        async move { Ok::<_, Infallible>(answer(client, request, stream).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(milliseconds(limits.idle_ms))
        .keep_alive_timeout(milliseconds(limits.head_ms))
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(64 << 10);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let is_over = async {
        tokio::select! {
            () = client.stopped() => {}
            () = idle(&activity, limits.idle_ms) => {}
        }
    };
    tokio::select! {
        _ = &mut connection => return,
        () = is_over => connection.as_mut().graceful_shutdown(),
    }
    // What goes wrong is the client's.
    let _ = connection.await;
}

/// Waits until there has been no request for so long.
async fn idle(activity: &Activity, limit_ms: u64) {
    loop {
        let begun = activity.begun.load(Relaxed);
        sleep(milliseconds(limit_ms)).await;
        if activity.streams.load(Relaxed) == 0 && activity.begun.load(Relaxed) == begun {
            return;
        }
    }
}

async fn answer(
    client: Arc<Client>,
    request: Request<Incoming>,
    stream: Stream,
) -> Response<AnswerBody> {
    let active = client.worker.active();
    let host = match host(&request) {
        Ok(host) => host,
        Err(own) => return own_answer(own, false),
    };
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let method = request.method().as_str();
    let mut record = client.record(&active, method, &host, target);
    let is_head = method == "HEAD";
    let refuse = |own: Own, record: &Record| {
        record.set_status(own.status);
        own_answer(own, is_head)
    };
    let site = match decide(&client, &active, (method, &host, target), &mut record) {
        Ok(site) => site,
        Err(own) => return refuse(own, &record),
    };
    let record = Arc::new(record);
    let framing = match (
        request.body().is_end_stream(),
        request.body().size_hint().exact(),
    ) {
        (true, _) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Chunked,
    };
    let mut bytes = Vec::with_capacity(1024);
    let fields = joined_cookies(request.headers());
    RequestHead {
        method,
        target,
        host: &host,
        fields: fields.iter().map(|(name, value)| (*name, value.as_slice())),
        body: framing,
        expects: false,
        upgrade: None,
        origin: client.origin(),
        request_id: record.id,
    }
    .write(&mut bytes);
    let is_idempotent = is_idempotent(method);
    let asking = Asking {
        client: &client,
        active: &active,
        site: &site,
        record: &record,
    };
    let asked = match framing {
        Framing::None => asking.whole(&bytes, is_idempotent).await,
        Framing::Length(length) if length <= SMALL => {
            let stall = milliseconds(active.limits.stall_ms);
            match timeout(stall, request.into_body().collect()).await {
                Ok(Ok(body)) => {
                    let body = body.to_bytes();
                    record.count_in(body.len());
                    bytes.extend_from_slice(&body);
                    asking.whole(&bytes, is_idempotent).await
                }
                Ok(Err(_)) => return refuse(Own::new(400), &record),
                Err(_) => return refuse(Own::new(408), &record),
            }
        }
        _ => asking.in_parts(bytes, request.into_body(), framing).await,
    };
    let answered = match asked {
        Ok(answered) => answered,
        Err(error) => return refuse(Own::for_failure(&error, &site), &record),
    };
    let relaying = Relaying {
        answered,
        site,
        worker: client.worker.number,
        record,
        stream,
    };
    relaying.begin(is_head).await
}

/// The host that is asked for; one, whichever way it is told.
fn host(request: &Request<Incoming>) -> Result<String, Own> {
    let bad = Own::new(400);
    let mut fields = request.headers().get_all("host").iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(bad);
    }
    let field = field
        .map(|value| value.to_str())
        .transpose()
        .map_err(|_| bad)?;
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    match (authority, field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => Err(bad),
        (Some(authority), _) if authority.contains('@') => Err(bad),
        (Some(host), _) | (None, Some(host)) => Ok(host.to_owned()),
        (None, None) => Err(bad),
    }
}

/// The fields, with all cookies in one, as HTTP/1.1 wants it (RFC 9113, 8.2.3).
fn joined_cookies(fields: &HeaderMap) -> Vec<(&str, Vec<u8>)> {
    let others = fields.iter().filter(|(name, _)| *name != "cookie");
    let mut list: Vec<_> = others
        .map(|(name, value)| (name.as_str(), value.as_bytes().to_vec()))
        .collect();
    let cookies: Vec<&[u8]> = fields
        .get_all("cookie")
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if !cookies.is_empty() {
        list.push(("cookie", cookies.join(&b"; "[..])));
    }
    list
}

fn own_answer(own: Own, is_head: bool) -> Response<AnswerBody> {
    let body = if is_head { String::new() } else { own.body() };
    let mut response = Response::new(AnswerBody::Own(body.into()));
    *response.status_mut() = hyper::StatusCode::from_u16(own.status).unwrap_or_default();
    for (name, value) in own.fields() {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
