//! Trees that are hard: each works after every restore, or is refused with the reason.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    thread,
};

use nix::{
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    libc,
};

use crate::support::{
    Workspace, ask, ask::Client, expect, fixture, free_port, server::Server, servers,
};

/// A server of tests/servers/hard/server.py.
fn python(kind: &str) -> Server {
    python_with(kind, &[])
}

fn python_with(kind: &str, ports: &[u16]) -> Server {
    let port = free_port();
    let mut words = vec![
        "/usr/bin/python3".into(),
        fixture("hard/server.py"),
        kind.into(),
    ];
    words.push(port.to_string());
    words.extend(ports.iter().map(u16::to_string));
    Server::new(Client::Http(port), words)
}

/// The servers of tests/servers/hard/server.c.
fn compiled<const N: usize>(workspace: &Workspace, kinds: [&str; N]) -> [Server; N] {
    let program = servers::compile(workspace, "hard/server.c");
    kinds.map(|kind| {
        let port = free_port();
        Server::new(
            Client::Http(port),
            [program.clone(), kind.into(), port.to_string()],
        )
    })
}

fn port(server: &Server) -> u16 {
    match server.client {
        Client::Http(port) => port,
        _ => unreachable!(),
    }
}

fn capture(workspace: &Workspace, server: &Server) {
    expect(0, &mut server.capture(workspace, &["--name", "hard"]));
}

/// Captures a server, and restores it twice. Each time it must answer that all is well, and once
/// more after that.
fn check(workspace: &Workspace, server: &Server) {
    capture(workspace, server);
    for round in 1..=2 {
        workspace.run(["restore", "-d", "hard"]);
        for _ in 0..2 {
            let answer = server.client.ask().unwrap();
            assert_eq!(answer, "200 ok", "{:?}, restore {round}", server.command);
        }
        workspace.run(["stop", "--all"]);
    }
}

/// Captures a server, which must be refused for this reason, and with this hint.
fn check_refused(workspace: &Workspace, server: &Server, reason: &str, hint: &str) {
    let (_, error) = expect(111, &mut server.capture(workspace, &[]));
    assert!(error.contains(reason) && error.contains(hint), "{error}");
}

#[test]
fn daemons_zombies_and_workers_on_demand_are_restored() {
    let workspace = Workspace::new();
    for kind in ["daemon", "zombies", "ondemand"] {
        check(&workspace, &python(kind));
    }
    workspace.assert_clean();
}

#[test]
fn a_server_that_executes_itself_does_so_when_restored() {
    let workspace = Workspace::new();
    let server = python("reexec");
    check(&workspace, &server);
    workspace.run(["restore", "-d", "hard"]);
    for generation in 1..=3 {
        let answer = ask::get(port(&server), "/again").unwrap();
        assert_eq!(answer, format!("200 {generation}"));
    }
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_server_that_drops_root_has_one_user() {
    let workspace = Workspace::new();
    check(&workspace, &python("drop"));
    // Not the whole of it: a capability is kept, as of those that listen on low ports.
    let user = ["setpriv", "--reuid=33", "--regid=33", "--clear-groups"];
    let with = |capability: &str| {
        let mut server = python("eventfd");
        let kept = ["--inh-caps", "--ambient-caps"].map(|set| format!("{set}=+{capability}"));
        let words = user.map(String::from).into_iter().chain(kept);
        server.command.splice(..0, words);
        server
    };
    check(&workspace, &with("net_bind_service"));
    for (server, reason, hint) in [
        (
            with("setuid"),
            " as uid 33 with CAP_SETUID",
            "Hint: run the server without it",
        ),
        (
            python("partly"),
            "saved and file system uid 33, 33, 0, 33",
            "Hint: run the server under",
        ),
        (
            python("fsuid"),
            "saved and file system uid 0, 0, 0, 33",
            "Hint: run the server under",
        ),
    ] {
        let words = ["capture", "--"].into_iter();
        let words = words.chain(server.command.iter().map(String::as_str));
        let (_, error) = expect(111, &mut workspace.without("sys_resource", words));
        assert!(error.contains(reason) && error.contains(hint), "{error}");
    }
    workspace.assert_clean();
}

#[test]
fn threads_are_restored_however_many_and_new() {
    let workspace = Workspace::new();
    for server in compiled(&workspace, ["threads", "starting"]) {
        check(&workspace, &server);
    }
    workspace.assert_clean();
}

#[test]
fn a_child_in_vfork_goes_on_until_it_has_left_it() {
    let workspace = Workspace::new();
    let [leaves, spawns, stays] = compiled(&workspace, ["vfork", "spawning", "vforked"]);
    check(&workspace, &leaves);
    check(&workspace, &spawns);
    let reason = ") waits in vfork for server (pid ";
    check_refused(
        &workspace,
        &stays,
        reason,
        "Hint: what a child in vfork does cannot",
    );
    workspace.assert_clean();
}

#[test]
fn timers_go_on() {
    let workspace = Workspace::new();
    for kind in ["timer", "timerfd"] {
        check(&workspace, &python(kind));
    }
    for server in compiled(&workspace, ["timers"]) {
        check(&workspace, &server);
    }
    workspace.assert_clean();
}

#[test]
fn descriptors_of_all_kinds_are_restored() {
    let workspace = Workspace::new();
    for kind in [
        "deleted", "folder", "memfd", "signalfd", "eventfd", "inotify",
    ] {
        check(&workspace, &python(kind));
    }
    workspace.assert_clean();
}

#[test]
fn copies_with_deleted_files_come_back_at_the_same_moment() {
    const COPIES: usize = 8;
    let workspace = Workspace::new();
    let names = || {
        let entries = fs::read_dir(workspace.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name())
            .collect::<BTreeSet<_>>()
    };
    for kind in ["deleted", "folder"] {
        let server = python(kind);
        capture(&workspace, &server);
        let before = names();
        for _ in 0..3 {
            let ports: Vec<u16> = (0..COPIES).map(|_| free_port()).collect();
            thread::scope(|scope| {
                for new in &ports {
                    let elsewhere = format!("{new}:{}", port(&server));
                    let workspace = &workspace;
                    scope.spawn(move || {
                        workspace.run(["restore", "-d", "--publish", &elsewhere, "hard"])
                    });
                }
            });
            for port in ports {
                assert_eq!(ask::get(port, "/").unwrap(), "200 ok", "{kind}");
            }
            workspace.run(["stop", "--all"]);
        }
        assert_eq!(names(), before, "{kind}");
    }
    workspace.assert_clean();
}

#[test]
fn a_terminal_has_the_same_number_in_every_copy() {
    let workspace = Workspace::new();
    let server = python("terminal");
    check(&workspace, &server);
    let second = free_port();
    workspace.run(["restore", "-d", "hard"]);
    let elsewhere = format!("{second}:{}", port(&server));
    workspace.run(["restore", "-d", "--publish", &elsewhere, "hard"]);
    for port in [port(&server), second] {
        assert_eq!(ask::get(port, "/").unwrap(), "200 ok");
    }
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn locks_are_held_by_one_copy_only() {
    let workspace = Workspace::new();
    let server = python("locks");
    check(&workspace, &server);
    workspace.run(["restore", "-d", "hard"]);
    let open = |name| {
        File::options()
            .write(true)
            .open(workspace.path().join(name))
            .unwrap()
    };
    let by_flock = || Flock::lock(open("flock"), FlockArg::LockExclusiveNonblock).is_err();
    let whole = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let by_fcntl = || fcntl(open("fcntl"), FcntlArg::F_OFD_SETLK(&whole)).is_err();
    assert!(by_flock() && by_fcntl());
    let elsewhere = format!("{}:{}", free_port(), port(&server));
    let second = ["restore", "-d", "--publish", &elsewhere, "hard"];
    let error = workspace.fail(109, second);
    assert!(
        error.contains("/fcntl that the server has is taken by python3 (pid ")
            && error.contains("Hint: stop that process"),
        "{error}"
    );
    workspace.run(["stop", "--all"]);
    assert!(!by_flock() && !by_fcntl());
    workspace.run(second);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn listeners_can_come_late() {
    let workspace = Workspace::new();
    let second = free_port();
    let server = python_with("late", &[second]);
    check(&workspace, &server);
    for _ in 0..2 {
        workspace.run(["restore", "-d", "hard"]);
        assert_eq!(ask::get(second, "/").unwrap(), "200 ok");
        // One that was not there at the capture.
        let third = free_port();
        for (port, path) in [(second, format!("/{third}")), (third, "/".to_owned())] {
            assert_eq!(ask::get(port, &path).unwrap(), "200 ok");
        }
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}

#[test]
fn what_an_image_cannot_hold_is_refused_before_the_dump() {
    let workspace = Workspace::new();
    let name = "Hint: let the server keep the file's name";
    let linked = "/linked, which is deleted but has another name left";
    check_refused(&workspace, &python("linked"), linked, name);
    let big = "/big, which is deleted and has 65 MiB: an image carries up to 64";
    check_refused(&workspace, &python("big"), big, name);
    let [headless] = compiled(&workspace, ["headless"]);
    let reason = ") goes on although its main thread has ended";
    check_refused(
        &workspace,
        &headless,
        reason,
        "Hint: let the main thread wait",
    );
    workspace.assert_clean();
}
