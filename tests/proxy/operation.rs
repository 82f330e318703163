//! What the gateway can do with a running proxy: change its plan, tell it of sites, ask it, end it.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use warmimg::proxy::plan::{Listener, Notice, Order, Route, State, Upstream};

use crate::proxy::gateway::{Client, Gateway, RawSite, plan, told};

/// A site that answers after the time that the path says, in ms.
fn slow() -> RawSite {
    RawSite::start(|mut client, _| {
        while let Some(head) = client.head() {
            let path = head.split(' ').nth(1).unwrap();
            thread::sleep(Duration::from_millis(path[1..].parse().unwrap()));
            client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    })
}

#[test]
fn it_has_no_rights() {
    let gateway = Gateway::start(&[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.child.0.id())).unwrap();
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t ",
        "NoNewPrivs:\t1",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line}: {status}"
        );
    }
}

#[test]
fn a_site_that_sleeps_is_waited_for() {
    // Its socket is there, and nobody accepts.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut gateway = Gateway::start(&[("a", Upstream::Tcp(address))]);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.wait_in_flight("a", 1);
    let mut site = Client(listener.accept().unwrap().0);
    assert!(site.head().is_some());
    site.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    client.until("ok");
}

#[test]
fn a_site_that_cannot_come_up_is_told_of_at_once() {
    let (site, requests) = RawSite::telling();
    let mut gateway = Gateway::start(&[("a", site.upstream())]);
    gateway.set("a", State::Failed { retry_after_s: 7 });
    gateway.stats();
    let answer = gateway.get("a", "/");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nRetry-After: 7\r\n"), "{answer}");
    assert_eq!(told(&requests), None);
    gateway.set("a", State::Ready);
    gateway.stats();
    assert!(gateway.get("a", "/").starts_with("HTTP/1.1 200 "));
}

#[test]
fn requests_that_wait_are_bounded_in_number_and_time() {
    let site = slow();
    let mut gateway = Gateway::start_with(&[("a", site.upstream())], |plan| {
        let site = plan.sites.get_mut("a").unwrap();
        site.max_in_flight_waiting = 2;
        site.first_byte_timeout_ms = 1500;
    });
    let mut waiting: Vec<Client> = (0..2).map(|_| gateway.connect()).collect();
    for client in &mut waiting {
        client.send("GET /10000 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    gateway.wait_in_flight("a", 2);
    let refused = gateway.get("a", "/0");
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("Retry-After: 1\r\n"),
        "{refused}"
    );
    for client in &mut waiting {
        assert!(client.until("\r\n").starts_with("HTTP/1.1 504 "));
    }
}

#[test]
fn health_is_answered_without_the_site() {
    let (site, requests) = RawSite::telling();
    let mut gateway = Gateway::start_with(&[("a", site.upstream())], |plan| {
        plan.routes[0].health.path = Some("/up".to_owned());
    });
    assert!(gateway.get("a", "/up").starts_with("HTTP/1.1 200 "));
    assert_eq!(told(&requests), None);
    assert!(gateway.get("a", "/upper").starts_with("HTTP/1.1 200 "));
    assert!(told(&requests).unwrap().starts_with("GET /upper "));
    gateway.plan.routes[0].health.peers = vec!["127.0.0.0/8".parse().unwrap()];
    assert_eq!(gateway.adopt(), Notice::Ready);
    assert!(gateway.get("a", "/").starts_with("HTTP/1.1 200 "));
    assert_eq!(told(&requests), None);
}

#[test]
fn idle_connections_to_a_site_are_closed_in_time() {
    let (ended, end) = std::sync::mpsc::channel();
    let site = RawSite::start(move |mut client, _| {
        client.head();
        client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let begun = Instant::now();
        client.rest();
        let _ = ended.send(begun.elapsed());
    });
    let gateway = Gateway::start_with(&[("a", site.upstream())], |plan| {
        plan.sites.get_mut("a").unwrap().idle_connection_ms = 100;
    });
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.until("ok");
    let time = end.recv_timeout(crate::support::LIMIT).unwrap();
    assert!(
        time >= Duration::from_millis(90) && time < Duration::from_secs(5),
        "{time:?}"
    );
}

#[test]
fn a_new_plan_changes_what_is_new_and_a_bad_one_nothing() {
    let (one, two) = (slow(), slow());
    let mut gateway = Gateway::start(&[("a", one.upstream())]);
    let mut kept = gateway.connect();
    kept.send("GET /0 HTTP/1.1\r\nHost: a\r\n\r\n");
    kept.until("ok");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    gateway.send_socket(2, &other);
    let good = plan(&[("a", one.upstream()), ("b", two.upstream())]);
    gateway.plan = good.clone();
    gateway.plan.listeners.push(Listener {
        socket: 3,
        ..good.listeners[0].clone()
    });
    let refused = Notice::Refused {
        reason: "there is no socket 3".to_owned(),
    };
    assert_eq!(gateway.adopt(), refused);
    assert!(gateway.get("b", "/0").starts_with("HTTP/1.1 404 "));
    gateway.plan.listeners[1].socket = 2;
    assert_eq!(gateway.adopt(), Notice::Ready);
    // By the new listener and the old one, and on a connection that was there.
    let mut client = Client::connect(other.local_addr().unwrap());
    client.send("GET /0 HTTP/1.1\r\nHost: b\r\n\r\n");
    client.until("ok");
    kept.send("GET /0 HTTP/1.1\r\nHost: b\r\n\r\n");
    kept.until("ok");
    // One that is gone finishes what it is at.
    gateway.wait_in_flight("b", 0);
    client.send("GET /200 HTTP/1.1\r\nHost: b\r\n\r\n");
    gateway.wait_in_flight("b", 1);
    gateway.plan.listeners.pop();
    assert_eq!(gateway.adopt(), Notice::Ready);
    assert!(client.rest().ends_with("ok"));
    kept.send("GET /0 HTTP/1.1\r\nHost: a\r\n\r\n");
    kept.until("ok");
    for (route, reason) in [
        (("x", "/"), "there is no site \"x\""),
        (("a", "x"), "a route begins with \"x\", which is no path"),
    ] {
        gateway.plan.routes[0] = Route {
            site: route.0.to_owned(),
            path: route.1.to_owned(),
            ..gateway.plan.routes[0].clone()
        };
        let reason = reason.to_owned();
        assert_eq!(gateway.adopt(), Notice::Refused { reason });
    }
}

#[test]
fn requests_are_counted() {
    let site = slow();
    let mut gateway = Gateway::start(&[("a", site.upstream())]);
    let mut clients: Vec<Client> = (0..4).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /300 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    gateway.wait_in_flight("a", 4);
    for client in &mut clients {
        client.until("ok");
    }
    gateway.wait_in_flight("a", 0);
    let stats = gateway.stats();
    let site = &stats.sites["a"];
    assert_eq!((site.answers[1], site.waiting), (4, 0));
    assert_eq!(site.first_byte.iter().sum::<u64>(), 4);
    assert_eq!(site.first_byte[..12].iter().sum::<u64>(), 0, "{site:?}");
    assert_eq!((site.bytes_in, site.bytes_out), (0, 8));
}

#[test]
fn requests_are_logged_each_on_a_line() {
    let (site, requests) = RawSite::telling();
    let mut gateway = Gateway::logging(&[("a", site.upstream())]);
    gateway.exchange(
        "POST /x?y HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    );
    gateway.get("b", "/\"");
    gateway.exchange("bad\r\n\r\n");
    let output = gateway.child.0.stdout.take().unwrap();
    let mut lines = BufReader::new(output).lines();
    let mut line =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = line();
    assert_eq!(
        (&first["site"], &first["method"]),
        (&"a".into(), &"POST".into())
    );
    assert_eq!(
        (&first["path"], &first["status"]),
        (&"/x?y".into(), &200.into())
    );
    assert_eq!(
        (&first["bytes_in"], &first["bytes_out"]),
        (&3.into(), &2.into())
    );
    assert!(first["first_byte_ms"].as_f64() <= first["total_ms"].as_f64());
    let head = told(&requests).unwrap();
    assert!(
        head.contains(first["request_id"].as_str().unwrap()),
        "{head}"
    );
    let second = line();
    assert_eq!(
        (&second["site"], &second["status"]),
        (&serde_json::Value::Null, &404.into())
    );
    assert_eq!(line()["status"], 400);
}

#[test]
fn a_drain_finishes_what_is_in_flight() {
    let site = slow();
    let mut gateway = Gateway::start(&[("a", site.upstream())]);
    let (mut idle, mut busy) = (gateway.connect(), gateway.connect());
    idle.send("GET /0 HTTP/1.1\r\nHost: a\r\n\r\n");
    idle.until("ok");
    gateway.wait_in_flight("a", 0);
    busy.send("GET /300 HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.wait_in_flight("a", 1);
    gateway.order(&Order::Drain { limit_ms: 10_000 });
    assert_eq!(idle.rest(), "");
    let answer = busy.rest();
    assert!(
        answer.ends_with("ok") && answer.contains("200 OK"),
        "{answer}"
    );
    assert_eq!(gateway.child.wait(), Some(0));
    // One whose gateway is gone ends as well, at its limit, and so does one that is sent a signal.
    for hang_up in [true, false] {
        let mut gateway = Gateway::start_with(&[("a", site.upstream())], |plan| {
            plan.limits.drain_ms = 100;
        });
        let mut busy = gateway.connect();
        busy.send("GET /5000 HTTP/1.1\r\nHost: a\r\n\r\n");
        gateway.wait_in_flight("a", 1);
        match hang_up {
            true => gateway.hang_up(),
            false => gateway.child.signal(nix::sys::signal::Signal::SIGTERM),
        }
        assert_eq!(gateway.child.wait(), Some(0));
    }
}

#[test]
fn those_that_ask_nothing_make_room_for_those_that_do() {
    let (site, _requests) = RawSite::telling();
    let mut gateway = Gateway::start_with(&[("a", site.upstream())], |plan| {
        plan.limits.connections = 4;
    });
    let mut idle = Vec::new();
    for _ in 0..16 {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.until("ok");
        idle.push(client);
    }
    assert!(gateway.stats().connections <= 4);
    // Those that were idle for longest had to go.
    assert_eq!(idle[0].rest(), "");
    drop(idle);
}
