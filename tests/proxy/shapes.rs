//! Requests that could be understood in two ways: none reaches a site, and the connection ends.

use crate::proxy::gateway::{Gateway, RawSite, told};

#[test]
fn no_ambiguous_request_reaches_a_site() {
    let (site, requests) = RawSite::telling();
    let gateway = Gateway::start(&[("a", site.upstream())]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let fields = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: 5_",
        "Content-Length: 18446744073709551621",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity\r\nContent-Length: 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\n chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: \0\r\nContent-Length: 5",
        "Host: b\r\nContent-Length: 5",
        " Content-Length: 5",
    ];
    for fields in fields {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n{smuggled}");
        let answer = gateway.exchange(&request);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields:?}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            1,
            "{fields:?}: {answer}"
        );
    }
    for (line, status) in [
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ] {
        let answer = gateway.exchange(format!("{line}{smuggled}"));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line:?}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{line:?}: {answer}");
    }
    assert_eq!(told(&requests), None);
}

#[test]
fn bodies_in_bad_chunks_end_the_connection() {
    let (site, requests) = RawSite::telling();
    let gateway = Gateway::start(&[("a", site.upstream())]);
    let chunks = [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "0\r\nA: b\n\r\n",
    ];
    for body in chunks {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = gateway.exchange(format!("{head}{body}{smuggled}"));
        // The site has the head, and may have answered before the body came.
        let is_one = answer.matches("HTTP/1.1").count() <= 1;
        assert!(is_one, "{body:?}: {answer}");
        while let Some(head) = told(&requests) {
            assert!(!head.contains("smuggled"), "{body:?}: {head}");
        }
    }
}

#[test]
fn heads_without_end_are_refused_and_slow_ones_given_up() {
    let (site, requests) = RawSite::telling();
    let gateway = Gateway::start_with(&[("a", site.upstream())], |plan| plan.limits.head_ms = 300);
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    assert!(gateway.exchange(long).starts_with("HTTP/1.1 431 "));
    let many = "X: y\r\n".repeat(101);
    let many = gateway.exchange(format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"));
    assert!(many.starts_with("HTTP/1.1 431 "), "{many}");
    let slow = gateway.exchange("GET / HTTP/1.1\r\nHost: a\r\n");
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    // One that says nothing is told nothing.
    assert_eq!(gateway.exchange(""), "");
    assert_eq!(told(&requests), None);
}

#[test]
fn answers_that_make_no_sense_are_not_passed_on() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 99 Low\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let site = RawSite::start(move |mut client, _| {
            client.head();
            client.send(answer);
        });
        let gateway = Gateway::start(&[("a", site.upstream())]);
        let seen = gateway.get("a", "/");
        assert!(seen.starts_with("HTTP/1.1 502 "), "{answer:?}: {seen}");
    }
}

#[test]
fn fields_for_one_neighbour_go_no_further() {
    let (site, requests) = RawSite::telling();
    let gateway = Gateway::start(&[("a", site.upstream())]);
    let answer = gateway.exchange(
        "GET http://a/x?y HTTP/1.1\r\nHost: other\r\nConnection: close, X-Secret, X-Forwarded-For\r\n\
         X-Secret: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: x\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
         X-Request-Id: mine\r\nCookie: a=b\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let head = told(&requests).unwrap();
    let (first, rest) = head.split_once("X-Request-Id: ").unwrap();
    assert_eq!(
        first,
        "GET /x?y HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n"
    );
    assert!(rest.trim().len() == 16 && !rest.contains("mine"), "{rest}");
}
