//! Real servers behind the proxy, and a real client.

use std::{fs, net::SocketAddr};

use warmimg::proxy::plan::Upstream;

use crate::{
    proxy::gateway::Gateway,
    support::{Workspace, ask::Client, fixture, free_port, server::Server, servers},
};

fn upstream(port: u16) -> Upstream {
    Upstream::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

#[test]
fn nginx_and_express_answer_as_without_it() {
    let workspace = Workspace::new();
    for server in [servers::nginx(&workspace), servers::express()] {
        let Client::Http(port) = server.client else {
            panic!()
        };
        let running = server.start_cold(&workspace);
        let direct = server.client.ask_until_answered();
        let gateway = Gateway::start(&[("localhost", upstream(port))]);
        for _ in 0..3 {
            let answer = gateway.get("localhost", "/");
            let (status, body) = direct.split_once(' ').unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} OK\r\n")),
                "{answer}"
            );
            let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
            assert!(seen.contains(body), "{answer}");
        }
        let load = std::process::Command::new("ab")
            .args([
                "-q",
                "-k",
                "-n",
                "2000",
                "-c",
                "16",
                "-H",
                "Host: localhost",
            ])
            .arg(format!("http://{}/", gateway.address))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&load.stdout);
        let is_line = |name: &str, value: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.is_some_and(|line| line.split_whitespace().last() == Some(value))
        };
        assert!(is_line("Failed requests:", "0"), "{text}");
        assert!(is_line("Keep-Alive requests:", "2000"), "{text}");
        drop(running);
        server.wait_for_silence();
    }
    workspace.assert_clean();
}

#[test]
fn a_web_socket_of_node_goes_both_ways() {
    let workspace = Workspace::new();
    let port = free_port();
    let script = fixture("proxy/websocket.js");
    assert!(fs::exists(&script).unwrap());
    let server = Server::new(Client::Http(port), ["node", &script, &port.to_string()]);
    let running = server.start_cold(&workspace);
    server.client.ask_until_answered();
    let gateway = Gateway::start(&[("localhost", upstream(port))]);
    let mut client = gateway.connect();
    client.send(
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let head = client.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // As RFC 6455 computes it.
    assert!(
        head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
        "{head}"
    );
    for text in ["hello", "again"] {
        // A frame with a mask of zeros.
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        client.send(frame);
        let mut echo = vec![0; 2 + text.len()];
        std::io::Read::read_exact(&mut client.0, &mut echo).unwrap();
        assert_eq!(&echo[..2], [0x81, text.len() as u8]);
        assert_eq!(&echo[2..], text.as_bytes());
    }
    drop((client, running));
    server.wait_for_silence();
    workspace.assert_clean();
}
