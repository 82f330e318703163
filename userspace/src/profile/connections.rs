//! The connections that the server made to others while it started.

use std::{collections::HashMap, net::SocketAddr};

use probe_ebpf::trace::{self, Span};

use super::{
    Connection,
    names::Names,
    record::{Identity, Kept, Record},
    texts::{error_name, is_connect, peer},
};

/// Where names are asked for.
const DNS_PORT: &str = ":53";

/// The connections between two moments of the record.
pub fn find(record: &Record, names: &Names, origin_ns: u64, end_ns: u64) -> Vec<Connection> {
    let mut reads: HashMap<Identity, Vec<&Span>> = HashMap::new();
    let mut waits: HashMap<Identity, Vec<&Span>> = HashMap::new();
    for Kept { span, .. } in &record.spans {
        let identity = (span.device, span.inode);
        if span.inode == 0 || span.flags & trace::SPAN_REGULAR != 0 {
            continue;
        }
        if span.kind == trace::SPAN_CALL && is_read(span) && span.result > 0 {
            reads.entry(identity).or_default().push(span);
        } else if span.kind == trace::SPAN_OFF {
            waits.entry(identity).or_default().push(span);
        }
    }
    let mut found = vec![];
    for Kept { name, span, .. } in &record.spans {
        if !is_connect(span) || span.start_ns < origin_ns || span.start_ns > end_ns {
            continue;
        }
        let address = name.map(|name| &record.names[name as usize]);
        let Some(peer) = address.and_then(|address| peer(address)) else {
            continue;
        };
        let resolved = peer
            .parse()
            .ok()
            .and_then(|peer: SocketAddr| names.find(peer.ip(), span.start_ns));
        let error = match -span.result {
            0 => None,
            error if error == i64::from(libc::EINPROGRESS) => None,
            _ => error_name(span.result),
        };
        let after = |time: u64| time >= span.start_ns && time <= end_ns;
        let socket = span.argument;
        let times = record.connected.get(&socket).into_iter().flatten();
        let established = times.copied().find(|&time| after(time));
        let is_unix = peer.starts_with(['/', '@']);
        let identity = (span.device, span.inode);
        let of_this = |spans: &HashMap<Identity, Vec<&Span>>| {
            let spans = spans.get(&identity).into_iter().flatten().copied();
            spans
                .filter(|of| after(of.start_ns))
                .copied()
                .collect::<Vec<_>>()
        };
        let first_byte_ns = of_this(&reads).iter().map(|read| read.end_ns).min();
        // A datagram socket is connected to learn which address of this host is used, too.
        let is_of_interest = is_unix
            || error.is_some()
            || established.is_some()
            || first_byte_ns.is_some()
            || span.result != 0
            || peer.ends_with(DNS_PORT);
        if !is_of_interest {
            continue;
        }
        let connected_ns = established.or((span.result == 0).then_some(span.end_ns));
        found.push(Connection {
            pid: span.tgid as i32,
            tid: span.tid as i32,
            peer,
            name: resolved.map(|(name, _)| name.to_owned()),
            resolved_ns: resolved.map(|(_, time)| time),
            start_ns: span.start_ns - origin_ns,
            connected_ns: connected_ns.map(|at| at - origin_ns),
            first_byte_ns: first_byte_ns.map(|at| at - origin_ns),
            waited_ns: of_this(&waits)
                .iter()
                .map(|wait| wait.end_ns.min(end_ns) - wait.start_ns)
                .sum(),
            error,
        });
    }
    found.sort_by_key(|connection| connection.start_ns);
    found
}

fn is_read(span: &Span) -> bool {
    use syscalls::Sysno;
    [
        Sysno::read,
        Sysno::readv,
        Sysno::recvfrom,
        Sysno::recvmsg,
        Sysno::recvmmsg,
    ]
    .iter()
    .any(|call| call.id() == span.number)
}
