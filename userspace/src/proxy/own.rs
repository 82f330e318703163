//! What the proxy decides and answers itself, whatever the version of HTTP: where a request goes, or why
//! it goes nowhere.

use std::sync::Arc;

use super::{
    client::{Active, Client},
    record::Record,
    routes::host_name,
    site::Site,
    upstream::AskError,
};

/// An answer that comes from no site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    pub status: u16,
    /// In how many seconds to try again.
    pub retry_after_s: Option<u32>,
}

impl Own {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            retry_after_s: None,
        }
    }

    fn later(seconds: u32) -> Self {
        Self {
            status: 503,
            retry_after_s: Some(seconds),
        }
    }

    pub fn reason(self) -> &'static str {
        let status = hyper::StatusCode::from_u16(self.status).ok();
        let reason = status.and_then(|status| status.canonical_reason());
        reason.unwrap_or_default()
    }

    pub fn body(self) -> String {
        format!("{} {}\n", self.status, self.reason())
    }

    /// The fields, but those of the body's length and of the connection.
    pub fn fields(self) -> Vec<(&'static str, Vec<u8>)> {
        let mut fields = vec![("Content-Type", b"text/plain".to_vec())];
        if let Some(seconds) = self.retry_after_s {
            fields.push(("Retry-After", seconds.to_string().into_bytes()));
        }
        if self.status == 405 {
            fields.push((
                "Allow",
                b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_vec(),
            ));
        }
        fields
    }

    /// What to say if a site does not answer.
    pub fn for_failure(error: &AskError, site: &Site) -> Self {
        match (site.live.failed_for(), error) {
            (Some(seconds), _) => Self::later(seconds),
            (None, AskError::Late) => Self::new(504),
            (None, AskError::Connect(_) | AskError::Ended) => Self::new(502),
        }
    }
}

/// Finds where a request goes, and lets it in there.
///
/// # Errors
/// What to answer instead.
pub fn decide(
    client: &Client,
    active: &Active,
    (method, host, target): (&str, &str, &str),
    record: &mut Record,
) -> Result<Arc<Site>, Own> {
    if method == "CONNECT" {
        return Err(Own::new(405));
    }
    let host = host_name(host.as_bytes()).ok_or(Own::new(400))?;
    if client.is_misdirected(&host) {
        return Err(Own::new(421));
    }
    let peer = Some(client.peer.ip());
    let found = active
        .routes
        .find(&host, target, peer)
        .ok_or(Own::new(404))?;
    if found.is_health {
        let failed = found.site.live.failed_for();
        return Err(failed.map_or(Own::new(200), Own::later));
    }
    record.admit(found.site).map_err(Own::later)?;
    Ok(found.site.clone())
}

/// Whether doing it twice does no more than doing it once.
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "TRACE"
    )
}
