//! HTTP/1 through the proxy: bodies, upgrades, connections that are kept, and clients and sites that go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use warmimg::proxy::plan::Upstream;

use crate::{
    proxy::gateway::{Client, Gateway, RawSite},
    support::{LIMIT, wait_until},
};

fn gateway(serve: impl Fn(Client, usize) + Send + Sync + 'static) -> Gateway {
    Gateway::start(&[("a", RawSite::start(serve).upstream())])
}

#[test]
fn connections_are_kept_on_both_sides() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let gateway = gateway(move |mut site, _| {
        counted.fetch_add(1, Relaxed);
        while let Some(head) = site.head() {
            if head.starts_with("POST") {
                site.until("hello");
            }
            site.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    // A connection of a client stays with its worker, and so do those to the site.
    let mut client = gateway.connect();
    for _ in 0..5 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.until("ok").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(connections.load(Relaxed), 1);
    // A small body is sent with its head, whenever it comes.
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    client.send("he");
    client.send("llo");
    client.until("ok");
    assert_eq!(connections.load(Relaxed), 1);
    // Several at once are answered in their order.
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: b\r\n\r\n");
    client.until("ok");
    client.until("Content-Length: 2\r\n\r\n");
    assert!(client.until("404 Not Found\n").starts_with("HTTP/1.1 404 "));
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let old = client.rest();
    assert!(old.contains("Connection: close\r\n"), "{old}");
}

#[test]
fn bodies_go_both_ways_while_they_come() {
    let gateway = gateway(|mut site, _| {
        let head = site.head().unwrap();
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        // The answer begins before the body has ended.
        site.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n");
        site.until("5\r\nhello\r\n");
        site.send("6\r\nworld!\r\n");
        site.until("0\r\nDigest: x\r\n\r\n");
        site.send("0\r\nSum: 1\r\nContent-Length: 9\r\n\r\n");
        site.head();
    });
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.until("Transfer-Encoding: chunked\r\n\r\n");
    client.send("5;extension\r\nhello\r\n");
    client.until("6\r\nworld!\r\n");
    client.send("0\r\nDigest: x\r\nHost: b\r\n\r\n");
    assert_eq!(client.until("\r\n\r\n"), "0\r\nSum: 1\r\n\r\n");
}

#[test]
fn large_bodies_arrive_whole() {
    const SIZE: usize = 8 << 20;
    let gateway = gateway(|mut site, _| {
        let head = site.head().unwrap();
        if head.starts_with("POST") {
            let mut body = vec![0; SIZE];
            std::io::Read::read_exact(&mut site.0, &mut body).unwrap();
            assert!(body.iter().all(|&byte| byte == b'x'));
            site.send("HTTP/1.1 204 No Content\r\n\r\n");
            return;
        }
        site.send("HTTP/1.0 200 OK\r\n\r\n");
        site.send(vec![b'y'; SIZE]);
    });
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
    let mut client = gateway.connect();
    client.send(head);
    client.send(vec![b'x'; SIZE]);
    let answer = client.until("\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    // An answer that ends with its connection comes in chunks, and the client's goes on.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.until("Transfer-Encoding: chunked\r\n\r\n");
    let mut length = 0;
    loop {
        let size = client.until("\r\n");
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        std::io::Read::read_exact(&mut client.0, &mut chunk).unwrap();
        length += size;
        if size == 0 {
            break;
        }
    }
    assert_eq!(length, SIZE);
    // An old client gets it as it is.
    let old = gateway.exchange("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    let (head, body) = old.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("chunked"), "{head}");
    assert_eq!(body.len(), SIZE);
}

#[test]
fn a_client_may_wait_for_leave_to_send_a_body() {
    let gateway = gateway(|mut site, _| {
        let head = site.head().unwrap();
        assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
        site.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        site.until("hello");
        site.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        site.head();
    });
    let mut client = gateway.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(client.until("\r\n\r\n").contains("Link: x"));
    client.send("hello");
    assert!(client.until("ok").starts_with("HTTP/1.1 200 "));
}

#[test]
fn upgraded_connections_become_tunnels() {
    let gateway = gateway(|mut site, _| {
        let head = site.head().unwrap();
        assert!(
            head.contains("Connection: Upgrade\r\nUpgrade: echo\r\n"),
            "{head}"
        );
        site.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhi",
        );
        assert_eq!(site.rest(), "early late");
        site.send("bye");
    });
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly ");
    assert!(
        client
            .until("\r\n\r\nhi")
            .starts_with("HTTP/1.1 101 Switching Protocols\r\n")
    );
    client.send("late");
    client.end_sending();
    assert_eq!(client.rest(), "bye");
}

#[test]
fn a_kept_connection_that_has_ended_is_replaced() {
    let gateway = gateway(|mut site, number| {
        site.head();
        site.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        match number % 3 {
            // It ends at once,
            0 => {}
            // with the next request unread,
            1 => {
                let mut byte = [0];
                let _ = site.0.peek(&mut byte);
            }
            // or with it read.
            _ => drop(site.head()),
        }
    });
    let mut client = gateway.connect();
    for _ in 0..12 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.until("\r\n").starts_with("HTTP/1.1 200 "));
        client.until("ok");
    }
}

#[test]
fn what_the_site_has_read_is_not_sent_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let gateway = gateway(move |mut site, _| {
        site.head();
        site.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if site.head().is_some_and(|head| head.starts_with("POST")) {
            site.until("hello");
            counted.fetch_add(1, Relaxed);
        }
    });
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.until("ok");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let answer = client.until("\r\n");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(asked.load(Relaxed), 1);
}

#[test]
fn a_client_that_goes_takes_its_request_with_it() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = ended.clone();
    let mut gateway = gateway(move |mut site, number| {
        site.head();
        if number == 1 {
            site.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        }
        assert_eq!(site.rest(), "");
        counted.fetch_add(1, Relaxed);
    });
    for number in 1..=2 {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        if number == 2 {
            client.until("half");
        } else {
            gateway.wait_in_flight("a", 1);
        }
        drop(client);
        wait_until("the site's connection to end", || {
            match ended.load(Relaxed) >= number {
                true => Ok(()),
                false => Err("it is open".to_owned()),
            }
        });
    }
}

#[test]
fn an_answer_that_breaks_off_is_seen_to() {
    let gateway = gateway(|mut site, _| {
        let head = site.head().unwrap();
        match head.contains("/length") {
            true => site.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
            false => {
                site.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            }
        }
    });
    let length = gateway.exchange("GET /length HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(length.ends_with("\r\n\r\nhalf"), "{length}");
    let chunked = gateway.exchange("GET /chunked HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(chunked.ends_with("4\r\nhalf\r\n"), "{chunked}");
}

#[test]
fn an_early_answer_to_a_long_body_ends_the_connection() {
    let gateway = gateway(|mut site, _| {
        site.head();
        site.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n");
        // Reads no more.
        thread::park_timeout(LIMIT);
    });
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nx");
    assert!(client.rest().starts_with("HTTP/1.1 413 "));
}

#[test]
fn sites_on_unix_sockets_and_none_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let path = folder.path().join("site.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&path, open).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 1024];
        while std::io::Read::read(&mut stream, &mut bytes).is_ok_and(|len| len > 0) {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            std::io::Write::write_all(&mut stream, answer).unwrap();
        }
    });
    let nothing = Upstream::Tcp(([127, 0, 0, 1], crate::support::free_port()).into());
    let gateway = Gateway::start(&[("a", Upstream::Unix(path)), ("b", nothing)]);
    assert!(gateway.get("a", "/").ends_with("ok"));
    assert!(gateway.get("b", "/").starts_with("HTTP/1.1 502 "));
}
