//! Where a tree is frozen, and what is refused.

use std::{fs, io::Read as _, net::TcpListener, path::Path, process::Command};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use warmimg::{criu, tree};

use crate::support::{
    Killed, Workspace, ask, ask::Client, expect, fixture, free_port, server::Server, servers,
    wait_until,
};

/// A server of tests/servers/points.
fn server(kind: &str, ports: &[u16]) -> Server {
    let script = fixture("points/server.py");
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let words = ["/usr/bin/python3", &script, kind];
    let words = words.into_iter().chain(ports.iter().map(String::as_str));
    Server::new(Client::Http(ports[0].parse().unwrap()), words)
}

/// What happened until the freeze: the freeze and the dump follow.
fn until_freeze(manifest: &Value) -> Vec<String> {
    let mut events = events(manifest);
    let last = events.split_off(events.len() - 2);
    assert_eq!(last, ["freeze", "dump"]);
    events
}

/// What an image holds.
fn manifest(workspace: &Workspace, name: &str) -> Value {
    let line = workspace.run(["--json", "inspect", name]);
    let image: Value = serde_json::from_str(&line).unwrap();
    image["manifest"].clone()
}

fn events(manifest: &Value) -> Vec<String> {
    let moments = manifest["capture"]["time_line"].as_array().unwrap();
    let event = |moment: &Value| moment["event"].as_str().unwrap().to_owned();
    moments.iter().map(event).collect()
}

#[test]
fn a_server_is_frozen_before_it_forks_its_workers() {
    let workspace = Workspace::new();
    for kind in ["prefork", "vfork"] {
        let port = free_port();
        let options = ["--at", "fork", "--name", kind];
        expect(0, &mut server(kind, &[port]).capture(&workspace, &options));
        let manifest = manifest(&workspace, kind);
        assert_eq!(manifest["processes"].as_array().unwrap().len(), 1);
        let events = until_freeze(&manifest);
        assert_eq!(
            events[events.len() - 2..],
            [format!("listen tcp:127.0.0.1:{port}"), "fork".to_owned()]
        );
        // The workers are made anew each time.
        for _ in 0..2 {
            workspace.run(["restore", "-d", kind]);
            let answer = Client::Http(port).ask_until_answered();
            assert!(answer.starts_with("200 hello from "), "{answer}");
            workspace.run(["stop", "--all"]);
        }
    }
    // One that does not fork never gets there.
    let alone = server("counting", &[free_port()]);
    let options = ["--at", "fork", "--timeout", "1"];
    let (_, error) = expect(103, &mut alone.capture(&workspace, &options));
    assert!(
        error.contains("has not listened and forked within 1 s")
            && error.contains("choose another point with --at"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn apache_php_fpm_and_gunicorn_fork_their_workers_anew() {
    let workspace = Workspace::new();
    for server in [
        servers::apache_prefork_with_mod_php(&workspace),
        servers::php_fpm(&workspace),
        servers::django_on_gunicorn_preloaded(),
    ] {
        let options = ["--at", "fork", "--name", "server"];
        expect(0, &mut server.capture(&workspace, &options));
        let processes = manifest(&workspace, "server")["processes"].clone();
        assert_eq!(processes.as_array().unwrap().len(), 1);
        workspace.run(["restore", "-d", "server"]);
        server.client.ask_until_answered();
        workspace.run(["stop", "--all"]);
        server.wait_for_silence();
    }
    workspace.assert_clean();
}

#[test]
fn a_restored_server_itself_performs_listen() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = server("prefork", &[port]);
    let options = ["--at", "pre-listen", "--name", "before"];
    expect(0, &mut server.capture(&workspace, &options));
    let image: Value = serde_json::from_str(&workspace.run(["--json", "inspect"])).unwrap();
    let digest = image["digest"].as_str().unwrap();
    let images = workspace.store().join("images").join(digest).join("criu");

    // CRIU itself restores it, and leaves it stopped: nothing listens.
    let (_criu, restored) = restore_stopped(&workspace, &images, &image["manifest"]);
    assert!(server.client.is_refused());
    // What it does when it goes on, as strace(1) sees it.
    let calls = workspace.path().join("calls");
    let mut strace = Command::new("strace");
    strace
        .args(["-qq", "-e", "trace=network", "-o"])
        .arg(&calls);
    strace.arg("-p").arg(restored.to_string());
    workspace.mark(&mut strace);
    let _strace = Killed(strace.spawn().unwrap());
    wait_until("strace to attach", || match is_traced(restored) {
        true => Ok(()),
        false => Err("it is not traced".to_owned()),
    });
    nix::sys::signal::kill(restored, Signal::SIGCONT).unwrap();
    let answer = server.client.ask_until_answered();
    assert!(answer.starts_with("200 hello"), "{answer}");
    let calls = fs::read_to_string(calls).unwrap();
    let listen = calls.lines().find(|line| line.starts_with("listen("));
    assert!(
        listen.is_some_and(|line| line.ends_with(" = 0")),
        "no listen(2) among: {calls}"
    );
}

/// Restores an image with CRIU alone, stopped; returns CRIU and the process.
fn restore_stopped(workspace: &Workspace, images: &Path, manifest: &Value) -> (Killed, Pid) {
    let program = criu::Program::find(None).unwrap().path;
    let work = workspace.path().join("work");
    fs::create_dir(&work).unwrap();
    let pipes = ["stdout", "stderr"].map(|pipe| manifest[pipe].as_str());
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(program);
    command.args(criu::plain_restore(images, &work, pipes, false));
    command.arg("--leave-stopped");
    workspace.mark(&mut command);
    let criu = Killed(command.spawn().unwrap());
    let unshare = tree::HostPid(criu.0.id() as i32);
    let mut restored = None;
    wait_until("the restored process to be stopped", || {
        let processes = tree::describe(&tree::descendants(unshare));
        let mut processes = processes.iter();
        let server = processes.find(|process| process.info.name.starts_with("python3"));
        restored = server.map(|server| Pid::from_raw(server.host.0));
        match server {
            Some(server) if tree::is_stopped(server.host) && !is_traced(server.host) => Ok(()),
            _ => Err("it is not there".to_owned()),
        }
    });
    (criu, restored.unwrap())
}

fn is_traced(pid: impl std::fmt::Display) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.contains("TracerPid:\t0\n")
}

#[test]
fn rewound_servers_answer_wherever_they_listen() {
    let workspace = Workspace::new();
    for server in [
        servers::uvicorn_on_a_unix_socket(&workspace),
        servers::django_on_gunicorn(),
        servers::apache_prefork_with_mod_php(&workspace),
    ] {
        let options = ["--at", "pre-listen", "--name", "server"];
        expect(0, &mut server.capture(&workspace, &options));
        for _ in 0..2 {
            workspace.run(["restore", "-d", "server"]);
            server.client.ask_until_answered();
            workspace.run(["stop", "--all"]);
            server.wait_for_silence();
        }
    }
    // Elsewhere, and several behind one port.
    let port = free_port();
    let server = server("prefork", &[port]);
    let options = ["--at", "pre-listen", "--name", "moved"];
    expect(0, &mut server.capture(&workspace, &options));
    let other = free_port();
    let publish = format!("{other}:{port}");
    let mut restore = vec!["restore", "-d", "moved", "--publish", &publish];
    restore.extend(["--reuse-port", "--count", "2"]);
    workspace.run(restore);
    assert!(ask::get(other, "/").unwrap().starts_with("200 hello"));
    assert!(server.client.is_refused());
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_server_is_warmed_up_with_as_many_requests_as_told() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = server("counting", &[port]);
    let mut options = vec!["--at", "warm", "--name", "warm"];
    options.extend([
        "--warmup",
        "/,count=7",
        "--warmup",
        "/slow,count=5,concurrency=5",
    ]);
    options.extend(["--warmup", "/500,count=1,status=500"]);
    let (report, _) = expect(0, &mut server.capture(&workspace, &options));
    assert!(report.contains("to: warm-up done"), "{report}");
    let manifest = manifest(&workspace, "warm");
    assert_eq!(manifest["capture"]["point"], "warm");
    assert_eq!(until_freeze(&manifest).last().unwrap(), "warm-up done");
    for _ in 0..2 {
        workspace.run(["restore", "-d", "warm"]);
        assert_eq!(ask::get(port, "/").unwrap(), "200 14");
        workspace.run(["stop", "--all"]);
    }
    // Without being told, the root is asked 20 times.
    let options = ["--at", "warm", "--name", "default"];
    expect(0, &mut server.capture(&workspace, &options));
    workspace.run(["restore", "-d", "default"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 21");
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn connections_that_have_ended_but_for_their_descriptors_are_no_hindrance() {
    let workspace = Workspace::new();
    let port = free_port();
    let options = ["--at", "warm", "--name", "warm"];
    expect(
        0,
        &mut server("shutting", &[port]).capture(&workspace, &options),
    );
    workspace.run(["restore", "-d", "warm"]);
    assert!(ask::get(port, "/").unwrap().starts_with("200 hello"));
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_warm_up_that_fails_makes_no_image() {
    let workspace = Workspace::new();
    let port = free_port();
    let counting = server("counting", &[port]);
    let warm = ["--at", "warm", "--warmup"];
    let with = |options: &[&'static str]| [&warm[..], options].concat();
    let (_, error) = expect(114, &mut counting.capture(&workspace, &with(&["/500"])));
    assert!(
        error.contains("/500 with status 500, not 200 to 399")
            && error.contains("--warmup …,status=500"),
        "{error}"
    );
    let options = with(&["http://127.0.0.1:1/", "--timeout", "1"]);
    let (_, error) = expect(103, &mut counting.capture(&workspace, &options));
    assert!(
        error.contains("was answered 0 of 20 times within 1 s"),
        "{error}"
    );
    let (_, error) = expect(2, &mut counting.capture(&workspace, &["--warmup", "/"]));
    assert!(error.contains("no meaning without --at warm"), "{error}");
    let (_, error) = expect(2, &mut counting.capture(&workspace, &with(&["/,count=0"])));
    assert!(error.contains("count must be a number"), "{error}");
    let keeping = server("keeping", &[port]);
    let (_, error) = expect(116, &mut keeping.capture(&workspace, &with(&["/"])));
    assert!(
        error.contains("still has connections")
            && error.contains("python3 (pid ")
            && error.contains(&format!("): tcp:127.0.0.1:{port} to tcp:127.0.0.1:")),
        "{error}"
    );
    assert!(!workspace.run(["images"]).contains("python3"));
    workspace.assert_clean();
}

#[test]
fn the_listener_that_counts_can_be_named() {
    let workspace = Workspace::new();
    let (first, second) = (free_port(), free_port());
    let server = server("two", &[first, second]);
    let address = format!("127.0.0.1:{second}");
    for (listener, listeners) in [
        (first.to_string(), 1),
        (second.to_string(), 2),
        (address, 2),
    ] {
        for point in ["ready", "listen"] {
            let options = ["--at", point, "--listener", &listener, "--name", "two"];
            expect(0, &mut server.capture(&workspace, &options));
            let found = manifest(&workspace, "two")["listeners"].clone();
            assert_eq!(
                found.as_array().unwrap().len(),
                listeners,
                "{listener} {point}"
            );
        }
    }
    workspace.run(["restore", "-d", "two"]);
    for port in [first, second] {
        assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
    }
    workspace.run(["stop", "--all"]);
    for wrong in [
        format!("[::1]:{second}"),
        "1".to_owned(),
        "/no.sock".to_owned(),
    ] {
        let options = ["--listener", &wrong, "--timeout", "1"];
        let (_, error) = expect(103, &mut server.capture(&workspace, &options));
        assert!(
            error.contains(&format!(
                "listens on tcp:127.0.0.1:{first}, tcp:127.0.0.1:{second}"
            )),
            "{error}"
        );
    }
    let (_, error) = expect(2, &mut server.capture(&workspace, &["--listener", "70000"]));
    assert!(
        error.contains("not a port from 1 to 65535, an address with a port, or a path"),
        "{error}"
    );
    // By the path of a Unix socket.
    let unix = servers::uvicorn_on_a_unix_socket(&workspace);
    let path = workspace.path().join("server.sock").display().to_string();
    let options = ["--listener", &path, "--name", "unix"];
    expect(0, &mut unix.capture(&workspace, &options));
    workspace.assert_clean();
}

#[test]
fn a_client_that_comes_too_early_is_no_hindrance() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = server("early", &[port]);
    expect(
        0,
        &mut server.capture(&workspace, &["--at", "accept", "--name", "early"]),
    );
    workspace.run(["restore", "-d", "early"]);
    assert!(ask::get(port, "/").unwrap().starts_with("200 hello"));
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn connections_to_others_are_refused_or_restored_as_closed() {
    let workspace = Workspace::new();
    let peer = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let peer_port = peer.local_addr().unwrap().port();
    let port = free_port();
    let server = server("client", &[port, peer_port]);
    let (_, error) = expect(116, &mut server.capture(&workspace, &[]));
    assert!(
        error.contains("Error: the server is connected to others\n")
            && error.contains(&format!(" to tcp:127.0.0.1:{peer_port}\n"))
            && error.contains("--tcp-close"),
        "{error}"
    );
    let options = ["--tcp-close", "--name", "client"];
    expect(0, &mut server.capture(&workspace, &options));
    for _ in 0..2 {
        workspace.run(["restore", "-d", "client"]);
        assert_eq!(ask::get(port, "/").unwrap(), "200 connected anew");
        assert_eq!(ask::get(port, "/").unwrap(), "200 still connected");
        workspace.run(["stop", "--all"]);
    }
    drop(peer);
    workspace.assert_clean();
}

#[test]
fn connections_to_others_go_on_once_if_asked() {
    let workspace = Workspace::new();
    let peer = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let peer_port = peer.local_addr().unwrap().port();
    let port = free_port();
    let server = server("client", &[port, peer_port]);
    let options = ["--tcp-established", "--name", "client"];
    expect(0, &mut server.capture(&workspace, &options));
    let (mut connection, _) = peer.accept().unwrap();
    workspace.run(["restore", "-d", "client"]);
    for _ in 0..2 {
        assert_eq!(ask::get(port, "/").unwrap(), "200 still connected");
    }
    // What the server sends with each answer arrives.
    let mut bytes = [0; 2];
    connection.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"xx");
    // A second copy cannot have it as well.
    let elsewhere = format!("{}:{port}", free_port());
    let error = workspace.fail(116, ["restore", "-d", "client", "--publish", &elsewhere]);
    assert!(
        error.contains(&format!("to 127.0.0.1:{peer_port} is taken"))
            && error.contains("--tcp-close"),
        "{error}"
    );
    workspace.run(["stop", "--all"]);
    drop((connection, peer));
    // Nor is there anything to go on with once the other end is gone.
    let mut error = String::new();
    wait_until("the connection to be gone", || {
        error = workspace.fail(116, ["restore", "-d", "client"]);
        match error.contains("its other end is gone") {
            true => Ok(()),
            false => Err(error.clone()),
        }
    });
    assert!(
        error.contains("capture again with the other end running"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn the_best_point_is_found_and_the_others_are_gone() {
    let workspace = Workspace::alone();
    let port = free_port();
    let lazy = server("lazy", &[port]);
    let options = [
        "--at",
        "auto",
        "--name",
        "best",
        "--warmup",
        "/,count=2,status=404",
    ];
    let (report, _) = expect(0, &mut lazy.capture(&workspace, &options));
    let row = |point: &str| {
        let mut lines = report.lines();
        lines
            .find(|line| line.starts_with(point))
            .unwrap()
            .to_owned()
    };
    assert!(row("warm").ends_with("kept: the fastest"), "{report}");
    for (point, least) in [("ready", 300.0), ("listen", 600.0), ("pre-listen", 600.0)] {
        let figure = row(point).split_whitespace().nth(1).unwrap().parse::<f64>();
        assert!(figure.unwrap() > least, "{report}");
    }
    assert!(
        row("fork").contains("no image: no process forks between its first listen and ready"),
        "{report}"
    );
    assert!(report.contains("Captured /usr/bin/python3"), "{report}");
    assert_eq!(manifest(&workspace, "best")["capture"]["point"], "warm");
    assert_eq!(workspace.run(["--json", "images"]).lines().count(), 1);
    workspace.run(["restore", "-d", "best"]);
    let answer = ask::get(port, "/").unwrap_err().to_string();
    assert_eq!(answer, "status 404: nothing here");
    workspace.run(["stop", "--all"]);
    // What cannot be warmed up as told is measured by how it does answer.
    let options = ["--json", "capture", "--at", "auto", "--name", "other", "--"];
    let mut words: Vec<&str> = options.to_vec();
    words.extend(lazy.command.iter().map(String::as_str));
    let report = workspace.run(words);
    let lines: Vec<Value> = report
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 6, "{report}");
    assert_eq!(
        (&lines[0]["point"], &lines[0]["kept"]),
        (&"ready".into(), &"fastest".into())
    );
    let reason = lines[4]["reason"].as_str().unwrap();
    assert!(
        reason.contains("with status 404, not 200 to 399"),
        "{report}"
    );
    // A failure that concerns all points makes no image.
    let gone = server("client", &[port, 1]);
    expect(
        102,
        &mut gone.capture(&workspace, &["--at", "auto", "--name", "gone"]),
    );
    let options = ["--at", "auto", "--leave-running"];
    let (_, error) = expect(2, &mut gone.capture(&workspace, &options));
    assert!(error.contains("starts the server several times"), "{error}");
    let options = ["--at", "auto", "--tcp-established"];
    let (_, error) = expect(2, &mut gone.capture(&workspace, &options));
    assert!(error.contains("restores again and again"), "{error}");
    let (_, error) = expect(2, &mut gone.capture(&workspace, &["--at", "nowhere"]));
    assert!(
        error.contains("[possible values: ready, listen, pre-listen"),
        "{error}"
    );
    assert_eq!(workspace.run(["--json", "images"]).lines().count(), 2);
    workspace.assert_clean();
}
