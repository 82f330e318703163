//! Requests around the moment at which sites fall asleep: none may fail.
//!
//! A client of each site waits until about the moment at which the site falls asleep, connects some
//! times one shortly after the other, asks on each connection, and takes the answers. How long that is
//! it learns: if the site was still awake, it waits longer the next time. Whatever it is told other
//! than the whole answer is a failure.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use warmimg::bench::statistics;

use super::Gateway;
use crate::{
    Bench, Subject,
    results::{Finding, Measured, Row},
    support::{Workspace, free_port, servers},
};

/// One that waits in accept(2), one in epoll_wait(2), and one with threads besides.
const SUBJECTS: [Subject; 3] = [
    ("accept", |workspace| servers::accept_loop(workspace, &[])),
    ("epoll", |_| servers::plain("epoll", free_port())),
    ("express", |_| servers::express()),
];

/// How many requests a round has.
const REQUESTS: usize = 10_000;

const SETTINGS: &str = "idle = '3ms'";

/// How long a client waits at first, from when it has its answers until it connects again, and by how
/// much longer the next time if the site was still awake, and shorter if it was asleep.
const PAUSE: Duration = Duration::from_millis(6);
const STEP: Duration = Duration::from_micros(300);

/// Who waits longer for an answer has woken the site.
const AWAKE: Duration = Duration::from_millis(8);

/// A connection is near the moment of sleeping if it is not further from it than this.
const NEAR: Duration = Duration::from_millis(1);

/// How long an answer may take.
const TRY: Duration = Duration::from_secs(20);

const REQUEST: &[u8] = b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// What was seen of a site, in a round.
#[derive(Default)]
struct Seen {
    /// When each connection was begun.
    begun: Vec<SystemTime>,
    failures: usize,
}

/// Of all rounds, a sample for each.
#[derive(Default)]
struct All {
    requests: Vec<f64>,
    slept: Vec<f64>,
    near: Vec<f64>,
    failures: Vec<f64>,
}

impl All {
    fn row(self, name: &str) -> Row {
        Row::new(name)
            .with("requests of a round", "", self.requests)
            .with("times asleep", "", self.slept)
            .with("connections within 1 ms of that moment", "", self.near)
            .with("failed", "", self.failures)
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let workspace = Workspace::alone();
    let mut sites = vec![];
    for (name, make) in SUBJECTS {
        bench.capture(&workspace, &make(&workspace), name);
        sites.push((name.to_owned(), SETTINGS.to_owned()));
    }
    let mut all: [All; SUBJECTS.len()] = Default::default();
    let mut per_second = vec![];
    for _ in 0..runs {
        let (gateway, ports) = Gateway::start(&workspace, &sites);
        let (asked, begun) = (&AtomicUsize::new(0), Instant::now());
        let seen: Vec<Seen> = thread::scope(|scope| {
            let clients = ports
                .iter()
                .map(|&port| scope.spawn(move || ask(port, asked)));
            let clients: Vec<_> = clients.collect();
            clients
                .into_iter()
                .map(|client| client.join().unwrap())
                .collect()
        });
        per_second.push(asked.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64());
        bench.heed();
        gateway.wait_for_sleep(0);
        let [exited, failed] = ["exited", "failed"].map(|kind| gateway.events(kind));
        for event in exited.iter().chain(&failed) {
            eprintln!("{event}");
        }
        let ended = gateway.events("ended");
        for (((name, _), seen), all) in sites.iter().zip(seen).zip(&mut all) {
            let slept: Vec<SystemTime> = moments(&ended, name).collect();
            let near = seen.begun.iter().filter(|begun| is_near(**begun, &slept));
            all.near.push(near.count() as f64);
            all.requests.push(seen.begun.len() as f64);
            all.slept.push(slept.len() as f64);
            all.failures.push(seen.failures as f64);
        }
        gateway.end();
    }
    let sum = |of: fn(&All) -> &Vec<f64>| all.iter().flat_map(of).sum::<f64>();
    let requests = sum(|all| &all.requests);
    let exactly = |value: f64| statistics::estimate_median(&[value]);
    let findings = vec![
        Finding::new(
            format!("of {requests} requests failed"),
            "",
            exactly(sum(|all| &all.failures)),
        )
        .at_most(0.0),
        Finding::new(
            "of them within 1 ms of the moment of sleeping",
            "",
            exactly(sum(|all| &all.near)),
        ),
        Finding::new(
            "requests, all sites",
            "/s",
            statistics::estimate_median(&per_second),
        ),
    ];
    let rows = sites
        .iter()
        .zip(all)
        .map(|((name, _), all)| all.row(name))
        .collect();
    Measured { rows, findings }
}

/// When a site fell asleep, in order.
fn moments<'a>(ended: &'a [Value], site: &'a str) -> impl Iterator<Item = SystemTime> + 'a {
    let of_site = ended.iter().filter(move |event| event["site"] == site);
    of_site.map(|event| humantime::parse_rfc3339(event["time"].as_str().unwrap()).unwrap())
}

fn is_near(time: SystemTime, moments: &[SystemTime]) -> bool {
    let after = moments.partition_point(|moment| *moment < time - NEAR);
    moments
        .get(after)
        .is_some_and(|moment| *moment <= time + NEAR)
}

/// Asks a site until that was done often enough by all.
fn ask(port: u16, asked: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let mut pause = PAUSE;
    for number in 0_u64.. {
        thread::sleep(pause + Duration::from_micros(number * 7919 % 997));
        let begun = Instant::now();
        let mut connections = vec![];
        for connection in 0..=number % 7 {
            if asked.fetch_add(1, Ordering::Relaxed) >= REQUESTS {
                asked.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            seen.begun.push(SystemTime::now());
            connections.push(send(port));
            thread::sleep(Duration::from_micros((number + connection) * 31 % 13 * 40));
        }
        if connections.is_empty() {
            break;
        }
        for (place, connection) in connections.into_iter().enumerate() {
            if let Err(error) = connection.and_then(receive) {
                eprintln!("port {port}, round {number}: {error}");
                seen.failures += 1;
            }
            if place == 0 {
                pause = match begun.elapsed() < AWAKE {
                    true => pause + STEP,
                    false => pause.saturating_sub(STEP),
                };
            }
        }
    }
    seen
}

fn send(port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), TRY)?;
    stream.set_read_timeout(Some(TRY))?;
    stream.write_all(REQUEST)?;
    Ok(stream)
}

/// Takes the whole answer.
fn receive(mut stream: TcpStream) -> io::Result<()> {
    let mut answer = vec![];
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let length = |head: &str| {
        let mut lines = head.lines();
        lines.find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok())
    };
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") && length(head) == Some(body.len()) => Ok(()),
        _ => Err(io::Error::other(format!("no whole answer: {answer:?}"))),
    }
}
