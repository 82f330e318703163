//! What is done before a freeze and after a restore.

use std::{fs, io::Read as _, net::TcpListener};

use crate::support::{
    Workspace, ask, ask::Client, expect, fixture, free_port, server::Server, wait_until,
};

/// The server that can be told things, and where it listens.
fn told(peer: &TcpListener) -> (Server, u16) {
    let port = free_port();
    let peer = peer.local_addr().unwrap().port();
    let script = fixture("points/server.py");
    let words = [&port, &peer].map(u16::to_string);
    let words = ["/usr/bin/python3", &script, "told", &words[0], &words[1]];
    (Server::new(Client::Http(port), words), port)
}

fn peer() -> TcpListener {
    TcpListener::bind(("127.0.0.1", 0)).unwrap()
}

#[test]
fn a_server_is_told_to_close_before_and_to_reload_after() {
    let workspace = Workspace::new();
    let peer = peer();
    let (server, port) = told(&peer);
    let log = workspace.path().join("log").display().to_string();
    let line = |text: &str| format!("sh -c 'echo {text} >> {log}'");
    let before = line("$WARMIMG_HOOK $WARMIMG_NAME $WARMIMG_LISTENERS");
    let after = line("$WARMIMG_HOOK $WARMIMG_NAME $SECRET");
    let mut options = vec!["--name", "told", "--before-freeze", "get:/close"];
    options.extend(["--before-freeze", &before, "--before-freeze", "signal:USR1"]);
    options.extend([
        "--after-restore",
        "signal:SIGUSR1",
        "--after-restore",
        &after,
    ]);
    let (report, _) = expect(0, &mut server.capture(&workspace, &options));
    assert!(report.contains("to: hook signal:USR1"), "{report}");
    for (id, secret) in [("told-1", "one"), ("told-1", "two")] {
        let variable = format!("SECRET={secret}");
        let mut restore = vec!["restore", "-d", "told", "--env", &variable];
        restore.extend(["--after-restore", "post:/reload"]);
        workspace.run(restore);
        let wanted = format!("200 alone, 2 signals, POST:{secret}");
        // A hook does not wait for what a signal brings about.
        wait_until("the signals", || match ask::get(port, "/").unwrap() {
            answer if answer == wanted => Ok(()),
            answer => Err(answer),
        });
        let log = fs::read_to_string(&log).unwrap();
        assert!(
            log.ends_with(&format!("after-restore {id} {secret}\n")),
            "{log}"
        );
        workspace.run(["stop", "--all"]);
    }
    let log = fs::read_to_string(&log).unwrap();
    let first = format!("before-freeze told tcp:127.0.0.1:{port}\n");
    assert!(log.starts_with(&first), "{log}");
    // At the points where it cannot be told anything, that is said.
    let options = ["--at", "fork", "--before-freeze", "true"];
    let (_, error) = expect(2, &mut server.capture(&workspace, &options));
    assert!(error.contains("stands still before"), "{error}");
    workspace.assert_clean();
}

#[test]
fn a_hook_that_fails_fails_the_operation() {
    let workspace = Workspace::new();
    let peer = peer();
    let (server, port) = told(&peer);
    let options = ["--tcp-close", "--name", "told"];
    expect(0, &mut server.capture(&workspace, &options));
    let long = "sh -c 'echo begun; exec sleep 1000'";
    let cases: [(&str, i32, &[&str]); 9] = [
        (
            "sh -c 'echo out; echo err >&2; exit 3'",
            117,
            &["exit status 3", "    out\n    err\n"],
        ),
        (
            long,
            103,
            &[
                "has not ended within 0.5 s",
                "    begun\n",
                "--hook-timeout",
            ],
        ),
        (
            "no-such-program -x",
            101,
            &["command not found: no-such-program"],
        ),
        (
            "get:http://127.0.0.1:1/",
            103,
            &["was not answered within 0.5 s"],
        ),
        ("signal:NO", 2, &["no signal \"NO\""]),
        ("signal:KILL", 2, &["cannot act on SIGKILL"]),
        // One that never stops talking.
        ("yes", 103, &["has not ended within 0.5 s", "    y\n"]),
        (
            "get:tcp://127.0.0.1:1",
            2,
            &["only HTTP can be asked for by get:"],
        ),
        ("sh 'x", 2, &["a quote is not closed"]),
    ];
    for (hook, code, texts) in cases {
        let limits = ["--hook-timeout", "0.5"];
        let before = [
            &["--name", "none", "--tcp-close", "--before-freeze", hook][..],
            &limits,
        ];
        let (_, capture) = expect(code, &mut server.capture(&workspace, &before.concat()));
        let after = [
            &["restore", "-d", "told", "--after-restore", hook][..],
            &limits,
        ]
        .concat();
        let restore = workspace.fail(code, after);
        for text in texts {
            assert!(capture.contains(text), "capture: {capture}");
            assert!(restore.contains(text), "restore: {restore}");
        }
        assert!(Client::Http(port).is_refused(), "{hook}");
    }
    let error = workspace.fail(2, ["restore", "-d", "told", "--env", "=x"]);
    assert!(error.contains("not NAME=VALUE"), "{error}");
    // One that has the server end has failed it.
    let options = ["--tcp-close", "--before-freeze", "signal:TERM"];
    let (_, error) = expect(102, &mut server.capture(&workspace, &options));
    assert!(error.contains("killed by SIGTERM"), "{error}");
    assert!(!workspace.run(["images"]).contains("none"));
    workspace.assert_clean();
}

#[test]
fn a_request_is_made_once_and_of_the_copy_that_is_meant() {
    let workspace = Workspace::new();
    let peer = peer();
    let (server, port) = told(&peer);
    let options = ["--tcp-close", "--before-freeze", "post:/hangup"];
    let (_, error) = expect(114, &mut server.capture(&workspace, &options));
    assert!(
        error.contains("the connection was closed before an answer"),
        "{error}"
    );
    let (mut connection, _) = peer.accept().unwrap();
    let mut told = Vec::new();
    connection.read_to_end(&mut told).unwrap();
    assert_eq!(told, b"x");

    let options = ["--tcp-close", "--name", "told"];
    expect(0, &mut server.capture(&workspace, &options));
    let shared = ["restore", "-d", "told", "--reuse-port", "--count", "2"];
    let request = [&shared[..], &["--after-restore", "get:/"]].concat();
    let error = workspace.fail(2, request);
    assert!(
        error.contains("the hook get:/ may reach another copy") && error.contains("--net private"),
        "{error}"
    );
    let signal = [&shared[..], &["--after-restore", "signal:USR1"]].concat();
    workspace.run(signal);
    assert!(ask::get(port, "/").unwrap().contains("1 signals"));
    workspace.run(["stop", "--all"]);

    // One that ends meanwhile is not waited for. What a command does is on the host's clocks.
    let clocks = workspace.path().join("clocks").display().to_string();
    let look = format!("sh -c 'readlink /proc/self/ns/time > {clocks}'");
    let end = "sh -c 'kill $WARMIMG_PID; exec sleep 1000'";
    let hooks = [
        "restore",
        "-d",
        "told",
        "--after-restore",
        &look,
        "--after-restore",
        end,
    ];
    let error = workspace.fail(102, hooks);
    assert!(
        error.contains("ended before all hooks were through: killed by SIGTERM"),
        "{error}"
    );
    let clocks = fs::read_to_string(clocks).unwrap();
    let own = fs::read_link("/proc/self/ns/time").unwrap();
    assert_eq!(clocks.trim(), own.to_str().unwrap());
    workspace.assert_clean();
}
