//! What is written, read by a decoder of the repository's own. That it is Perfetto's format is for
//! `tests/exports.rs` to tell, which has Perfetto's own description of it.

use std::collections::HashMap;

use crate::{edit::wire::Message, profile::Profile, report::profile::synthetic};

/// `TracePacket`s.
fn packets(profile: &Profile) -> Vec<Message> {
    let mut bytes = Vec::new();
    super::write(profile, &mut bytes).unwrap();
    Message::parse(&bytes).unwrap().messages(1)
}

/// The events of each track: when, and their type.
fn events(packets: &[Message]) -> HashMap<u64, Vec<(u64, u64)>> {
    let mut tracks: HashMap<u64, Vec<_>> = HashMap::new();
    for packet in packets {
        for event in packet.messages(11) {
            let at = packet.number(8).unwrap();
            let track = tracks.entry(event.number(11).unwrap()).or_default();
            track.push((at, event.number(9).unwrap()));
        }
    }
    tracks
}

#[test]
fn slices_are_balanced_and_in_the_order_of_time() {
    let tracks = events(&packets(&synthetic::profile()));
    for events in tracks.values() {
        assert!(events.is_sorted_by_key(|(at, _)| at));
        let mut open = 0;
        for (_, kind) in events {
            open += match kind {
                1 => 1,
                2 => -1,
                _ => 0,
            };
            assert!(open >= 0);
        }
        assert_eq!(open, 0);
    }
}

#[test]
fn what_is_meant_by_a_number_was_said_before() {
    let packets = packets(&synthetic::profile());
    let mut names = HashMap::new();
    let mut stacks = 0;
    let mut said = Vec::new();
    for packet in &packets {
        for interned in packet.messages(12) {
            for name in interned.messages(2) {
                let text = String::from_utf8(name.bytes(2).unwrap().to_vec()).unwrap();
                assert_eq!(names.insert(name.number(1).unwrap(), text), None);
            }
            stacks += interned.messages(7).len();
        }
        for event in packet.messages(11) {
            let name = event.number(10).map(|number| names[&number].clone());
            said.extend(name);
        }
        if let [sample] = &packet.messages(66)[..] {
            assert!(sample.number(4).unwrap() <= stacks as u64);
        }
    }
    assert_eq!(stacks, 4);
    let count = |name: &str| said.iter().filter(|said| *said == name).count();
    assert_eq!(count("read /srv/app.js"), 1);
    assert_eq!(count("files in memory"), 2);
    assert_eq!(count("read db.internal:5432"), 2);
    assert_eq!(count("ready for connections"), 1);
    assert_eq!(count("exec /usr/bin/node"), 1);
}

#[test]
fn samples_and_waits_have_their_stacks() {
    let packets = packets(&synthetic::profile());
    let samples = packets
        .iter()
        .flat_map(|packet| packet.messages(66))
        .count();
    // One of the five on a processor has no stack.
    assert_eq!(samples, 4);
    let events = packets.iter().flat_map(|packet| packet.messages(11));
    assert_eq!(events.filter(|event| event.number(56).is_some()).count(), 1);
}

#[test]
fn counters_begin_and_end_at_their_true_values() {
    let packets = packets(&synthetic::profile());
    let counts: Vec<(u64, u64, u64)> = packets
        .iter()
        .flat_map(|packet| {
            let at = packet.number(8);
            let events = packet.messages(11).into_iter();
            events.filter_map(move |e| Some((e.number(11)?, at?, e.number(30)?)))
        })
        .collect();
    let of = |track: u64| {
        let counts = counts.iter().filter(|count| count.0 == track);
        counts
            .map(|&(_, at, value)| (at / 1_000_000, value))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(3), [(0, 1), (1, 2), (100, 0)]);
    assert_eq!(
        of(4),
        [
            (0, 1),
            (11, 0),
            (40, 1),
            (50, 2),
            (60, 1),
            (70, 0),
            (80, 1),
            (100, 0)
        ]
    );
    assert_eq!(of(5), [(1, 1), (2, 0)]);
    assert_eq!(of(6), [(11, 1), (40, 0)]);
}
