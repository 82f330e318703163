//! The names that were resolved to the addresses of connections.

use std::{collections::HashMap, net::IpAddr};

use probe_ebpf::trace::{self, Span};
use simple_dns::{Packet, rdata::RData};

use super::record::{Identity, Kept, Record};

/// What one answer of a name server says.
struct Answer {
    name: String,
    addresses: Vec<IpAddr>,
    /// When it was asked for; the begin of the reading call if that is unknown.
    asked_ns: u64,
    known_ns: u64,
}

/// All that name servers answered.
pub struct Names(Vec<Answer>);

impl Names {
    pub fn of(record: &Record) -> Self {
        let mut calls: HashMap<Identity, Vec<&Span>> = HashMap::new();
        for Kept { span, .. } in &record.spans {
            let is_call = span.kind == trace::SPAN_CALL;
            if is_call && span.flags & trace::SPAN_DNS != 0 && is_write(span) {
                let identity = (span.device, span.inode);
                calls.entry(identity).or_default().push(span);
            }
        }
        let answers = record.answers.iter().filter_map(|(span, packet)| {
            let (name, addresses) = parse(packet)?;
            let calls = calls.get(&(span.device, span.inode)).into_iter().flatten();
            let asked = calls.filter(|call| call.end_ns <= span.end_ns);
            let asked = asked.map(|call| call.start_ns).max();
            Some(Answer {
                name,
                addresses,
                asked_ns: asked.unwrap_or(span.start_ns),
                known_ns: span.end_ns,
            })
        });
        Self(answers.collect())
    }

    /// The name that an address was known by at a time, and how long it had taken to resolve it, in
    /// nanoseconds.
    pub fn find(&self, address: IpAddr, at_ns: u64) -> Option<(&str, u64)> {
        let known = self.0.iter().filter(|answer| {
            answer.known_ns <= at_ns && answer.addresses.contains(&address.to_canonical())
        });
        let answer = known.max_by_key(|answer| answer.known_ns)?;
        Some((&answer.name, answer.known_ns - answer.asked_ns))
    }
}

/// The name that was asked for and the addresses that it has, through other names too.
pub(crate) fn parse(packet: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let packet = Packet::parse(packet).ok()?;
    let name = packet.questions.first()?.qname.to_string();
    let addresses = packet
        .answers
        .iter()
        .filter_map(|answer| match &answer.rdata {
            RData::A(v4) => Some(IpAddr::V4(v4.address.into())),
            RData::AAAA(v6) => Some(IpAddr::V6(v6.address.into())),
            _ => None,
        });
    let addresses: Vec<_> = addresses.collect();
    (!addresses.is_empty()).then_some((name, addresses))
}

fn is_write(span: &Span) -> bool {
    use syscalls::Sysno;
    [
        Sysno::write,
        Sysno::writev,
        Sysno::sendto,
        Sysno::sendmsg,
        Sysno::sendmmsg,
    ]
    .iter()
    .any(|call| call.id() == span.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a name server says of db.internal: an alias of pg.internal, which is at 10.0.0.5.
    const ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\0\x02db\x08internal\0\0\x01\0\x01\
        \xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x05\x02pg\xc0\x0f\
        \xc0\x29\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x05";

    #[test]
    fn an_alias_is_known_by_the_name_that_was_asked_for() {
        let address = IpAddr::from([10, 0, 0, 5]);
        assert_eq!(parse(ANSWER), Some(("db.internal".into(), vec![address])));
    }

    #[test]
    fn what_is_cut_short_or_has_no_address_names_nothing() {
        for length in 0..ANSWER.len() {
            assert_eq!(parse(&ANSWER[..length]), None, "{length} bytes");
        }
        let mut failed = ANSWER[..29].to_vec();
        failed[3] = 0x83;
        failed[7] = 0;
        assert_eq!(parse(&failed), None);
    }

    #[test]
    fn the_last_answer_before_a_connection_counts() {
        let address = IpAddr::from([10, 0, 0, 5]);
        let answer = |name: &str, known_ns| Answer {
            name: name.into(),
            addresses: vec![address],
            asked_ns: known_ns - 5,
            known_ns,
        };
        let names = Names(vec![
            answer("old", 10),
            answer("new", 20),
            answer("late", 90),
        ]);
        assert_eq!(names.find(address, 50), Some(("new", 5)));
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 5]);
        assert_eq!(names.find(mapped, 15), Some(("old", 5)));
        assert_eq!(names.find(address, 5), None);
    }
}
