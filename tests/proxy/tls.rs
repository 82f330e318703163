//! TLS: certificates by name, HTTP/2 by curl(1), and connections that stay encrypted.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use tempfile::TempDir;
use warmimg::proxy::plan::{Notice, PassThrough, Upstream};

use crate::{
    proxy::gateway::{Client, Gateway, RawSite, certificate, told},
    support::{Killed, describe, finish, free_port, wait_until},
};

/// A folder with the certificate of some names, and a proxy that has it.
struct Secure {
    folder: TempDir,
    gateway: Gateway,
}

impl Secure {
    fn start(names: &[&str], site: &RawSite) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = certificate(folder.path(), names);
        let sites: Vec<_> = names.iter().map(|name| (*name, site.upstream())).collect();
        let gateway = Gateway::start_with(&sites, |plan| plan.listeners[0].tls = vec![own]);
        Self { folder, gateway }
    }

    fn chain(&self) -> PathBuf {
        self.folder.path().join("chain.pem")
    }

    /// Asks by curl, which trusts the certificate of the folder alone.
    fn curl(&self, host: &str, path: &str, options: &[&str]) -> (i32, String) {
        let port = self.gateway.address.port();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
            .arg(self.chain())
            .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
            .args(options)
            .arg(format!("https://{host}:{port}{path}"));
        let output = finish(&mut curl);
        (output.status.code().unwrap(), describe(&output))
    }
}

#[test]
fn http_2_reaches_a_site_that_speaks_1_1() {
    let (site, requests) = RawSite::telling();
    let secure = Secure::start(&["a.example.org"], &site);
    let show = ["--http2", "--write-out", "%{http_version} %{http_code}"];
    let (code, text) = secure.curl(
        "a.example.org",
        "/x?y",
        &[&show[..], &["-b", "a=b", "-b", "c=d"]].concat(),
    );
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("ok2 200"), "{text}");
    let head = told(&requests).unwrap();
    assert!(
        head.starts_with("GET /x?y HTTP/1.1\r\nHost: a.example.org:"),
        "{head}"
    );
    for line in [
        "cookie: a=b;c=d\r\n",
        "X-Forwarded-Proto: https\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    let (code, text) = secure.curl(
        "a.example.org",
        "/",
        &["--http1.1", "--write-out", "%{http_version}"],
    );
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("ok1.1"), "{text}");
}

#[test]
fn bodies_of_all_sizes_go_both_ways_by_http_2() {
    // Sends back what it gets.
    let site = RawSite::start(|mut client, _| {
        while let Some(head) = client.head() {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            let mut body = vec![0; length.unwrap_or("0").parse().unwrap()];
            std::io::Read::read_exact(&mut client.0, &mut body).unwrap();
            client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(100_000) {
                client.send(format!("{:x}\r\n", piece.len()));
                client.send(piece);
                client.send("\r\n");
            }
            client.send("0\r\n\r\n");
        }
    });
    let secure = Secure::start(&["a"], &site);
    let (sent, got) = (
        secure.folder.path().join("sent"),
        secure.folder.path().join("got"),
    );
    for size in [1, 1000, 3 << 20] {
        let bytes: Vec<u8> = (0..size).map(|place| (place % 251) as u8).collect();
        fs::write(&sent, &bytes).unwrap();
        let data = format!("@{}", sent.display());
        let options = [
            "--http2",
            "--data-binary",
            &data,
            "--output",
            got.to_str().unwrap(),
        ];
        let (code, text) = secure.curl("a", "/", &options);
        assert_eq!(code, 0, "{size}: {text}");
        assert_eq!(fs::read(&got).unwrap(), bytes, "{size}");
    }
}

#[test]
fn the_name_chooses_the_certificate_and_a_new_one_is_used_at_once() {
    let (site, _requests) = RawSite::telling();
    let mut secure = Secure::start(&["a.example.org", "*.b.example.org"], &site);
    let ok = |secure: &Secure, host: &str| secure.curl(host, "/", &["--http1.1"]).0;
    assert_eq!(ok(&secure, "a.example.org"), 0);
    assert_eq!(ok(&secure, "x.b.example.org"), 0);
    // curl: the certificate is for another name.
    assert_eq!(ok(&secure, "c.example.org"), 60);
    let other = tempfile::tempdir().unwrap();
    let more = certificate(other.path(), &["c.example.org"]);
    secure.gateway.plan.listeners[0].tls.push(more);
    assert_eq!(secure.gateway.adopt(), Notice::Ready);
    fs::copy(other.path().join("chain.pem"), secure.chain()).unwrap();
    assert_eq!(ok(&secure, "c.example.org"), 0);
    // By a connection that was made for one, another host is not asked for.
    let (code, text) = secure.curl(
        "c.example.org",
        "/",
        &["--http2", "-H", "Host: a.example.org"],
    );
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("421 Misdirected Request"), "{text}");
    let bad = &mut secure.gateway.plan.listeners[0].tls[0];
    bad.key_pem = "none".to_owned();
    let Notice::Refused { reason } = secure.gateway.adopt() else {
        panic!()
    };
    assert!(
        reason.starts_with("listener 1: a key is no PEM"),
        "{reason}"
    );
    assert_eq!(ok(&secure, "c.example.org"), 0);
}

#[test]
fn what_stays_encrypted_is_forwarded_by_its_name() {
    // A site that speaks TLS itself.
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path(), &["own.example.org"]);
    let port = free_port();
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "s_server",
            "-quiet",
            "-www",
            "-accept",
            &format!("127.0.0.1:{port}"),
        ])
        .args(["-cert", "chain.pem", "-key", "key.pem"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let server = Killed(openssl.spawn().unwrap());
    wait_until("the server", || {
        match std::net::TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    });
    let (site, _requests) = RawSite::telling();
    let mut secure = Secure::start(&["a.example.org"], &site);
    let plan = &mut secure.gateway.plan;
    let settings = plan.sites["a.example.org"].clone();
    let own = warmimg::proxy::plan::Site {
        upstream: Upstream::Tcp(([127, 0, 0, 1], port).into()),
        ..settings
    };
    plan.sites.insert("own".to_owned(), own);
    plan.listeners[0].pass_through = vec![PassThrough {
        hosts: vec!["own.example.org".to_owned()],
        site: "own".to_owned(),
    }];
    assert_eq!(secure.gateway.adopt(), Notice::Ready);
    let (code, text) = secure.curl("a.example.org", "/", &[]);
    assert!(code == 0 && text.contains("ok"), "{text}");
    fs::copy(folder.path().join("chain.pem"), secure.chain()).unwrap();
    let (code, text) = secure.curl("own.example.org", "/", &[]);
    assert!(code == 0 && text.contains("s_server"), "{text}");
    // What is no TLS is ended.
    assert_eq!(
        secure.gateway.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ""
    );
    drop(server);
}

#[test]
fn not_a_byte_of_what_is_forwarded_changes() {
    let hello = fs::read(crate::support::source("fuzz/corpus/client-hello/curl")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream::Tcp(listener.local_addr().unwrap());
    let gateway = Gateway::start_with(&[("a", upstream)], |plan| {
        plan.listeners[0].pass_through = vec![PassThrough {
            hosts: Vec::new(),
            site: "a".to_owned(),
        }];
    });
    let mut client = gateway.connect();
    let (first, rest) = hello.split_at(100);
    client.send(first);
    let send = thread::spawn({
        let rest = rest.to_vec();
        move || {
            client.0.write_all(&rest).unwrap();
            client.send("more");
            client.end_sending();
            assert_eq!(client.rest(), "answer");
        }
    });
    let mut site = Client(listener.accept().unwrap().0);
    let mut seen = Vec::new();
    std::io::Read::read_to_end(&mut site.0, &mut seen).unwrap();
    assert_eq!(seen, [&hello[..], b"more"].concat());
    site.send("answer");
    drop(site);
    send.join().unwrap();
}
