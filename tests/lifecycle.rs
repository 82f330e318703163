//! What happens to images and instances in their lives.

mod ends;
mod restores;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Stdio,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Killed, Workspace, ask, describe, finish, free_port, servers};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Captures the plain server; returns its port.
fn capture_plain(workspace: &Workspace, wait: &str, options: &[&str]) -> u16 {
    let port = free_port();
    let output = finish(&mut servers::plain(wait, port).capture(workspace, options));
    assert!(output.status.success(), "{}", describe(&output));
    port
}

/// Restores the image `plain` under the eyes of the test.
fn restore_in_foreground(workspace: &Workspace, stdout: Stdio) -> Killed {
    let mut command = workspace.warmimg(["restore", "plain"]);
    Killed(
        command
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn every_way_of_waiting_is_seen() {
    let workspace = Workspace::new();
    for (wait, event) in [
        ("accept", "accept"),
        ("select", "wait"),
        ("poll", "wait"),
        ("epoll", "wait"),
    ] {
        let port = capture_plain(&workspace, wait, &["--name", wait]);
        let image = json(&workspace.run(["--json", "inspect", wait]));
        let moments = image["manifest"]["capture"]["time_line"]
            .as_array()
            .unwrap();
        let events: Vec<_> = moments
            .iter()
            .map(|m| m["event"].as_str().unwrap())
            .collect();
        let address = format!("tcp:127.0.0.1:{port}");
        let last = format!("{event} {address}");
        assert!(
            events.ends_with(&[&last, "freeze", "dump"]),
            "{wait}: {events:?}"
        );
        assert!(
            events.contains(&format!("bind {address}").as_str()),
            "{events:?}"
        );
        assert!(
            events.contains(&format!("listen {address}").as_str()),
            "{events:?}"
        );
        workspace.run(["restore", "-d", wait]);
        assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
        workspace.run(["stop", &format!("{wait}-1")]);
    }
    workspace.assert_clean();
}

#[test]
fn the_capture_point_can_be_chosen() {
    let workspace = Workspace::new();
    for (point, last) in [("listen", "listen"), ("accept", "accept")] {
        let port = capture_plain(&workspace, "accept", &["--at", point, "--name", point]);
        let image = json(&workspace.run(["--json", "inspect", point]));
        assert_eq!(image["manifest"]["capture"]["point"], point);
        let moments = image["manifest"]["capture"]["time_line"]
            .as_array()
            .unwrap();
        // Then come the freeze and the dump.
        let event = moments[moments.len() - 3]["event"].as_str().unwrap();
        assert!(event.starts_with(last), "{event}");
        workspace.run(["restore", "-d", point]);
        assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}

#[test]
fn servers_outside_the_tree_are_left_alone() {
    let workspace = Workspace::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // This process accepts, and another one waits by epoll, all through the capture.
    let outside = servers::plain("epoll", free_port());
    let cold = outside.start_cold(&workspace);
    let expected = outside.client.ask_until_answered();
    let echo = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
            if byte == *b"e" {
                return;
            }
        }
    });
    let mut capture = servers::plain("accept", free_port()).capture(&workspace, &["--name", "a"]);
    let mut capture = Killed(capture.stdout(Stdio::null()).spawn().unwrap());
    let talk = |byte: u8| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(crate::support::LIMIT))
            .unwrap();
        stream.write_all(&[byte]).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], byte);
    };
    while capture.0.try_wait().unwrap().is_none() {
        talk(b'x');
        assert_eq!(outside.client.ask().unwrap(), expected);
    }
    assert_eq!(capture.wait(), Some(0));
    talk(b'e');
    echo.join().unwrap();
    drop(cold);
    workspace.assert_clean();
}

#[test]
fn a_captured_server_can_go_on_running() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = servers::plain("epoll", port);
    let mut command = server.capture(&workspace, &["--name", "plain", "--leave-running"]);
    let mut running = Killed(command.stdout(Stdio::null()).spawn().unwrap());
    assert_eq!(server.client.ask_until_answered(), "200 hello");
    running.signal(Signal::SIGUSR1);
    assert_eq!(running.wait(), Some(7));
    workspace.run(["restore", "-d", "plain"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn images_are_listed_and_removed() {
    let workspace = Workspace::new();
    capture_plain(&workspace, "accept", &["--name", "first"]);
    capture_plain(&workspace, "accept", &["--name", "second"]);
    let listed = workspace.run(["images"]);
    let names: Vec<_> = listed
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(names, ["second", "first"]);
    let newest = json(&workspace.run(["--json", "inspect"]));
    assert_eq!(newest["names"][0], "second");
    // One that is unknown: nothing is removed.
    workspace.fail(107, ["rm", "first", "third"]);
    workspace.run(["rm", "first", newest["digest"].as_str().unwrap()]);
    assert_eq!(workspace.run(["images"]).lines().count(), 1);
    workspace.assert_clean();
}

#[test]
fn another_user_can_be_given() {
    let workspace = Workspace::new();
    let port = capture_plain(
        &workspace,
        "accept",
        &["--name", "plain", "--user", "www-data"],
    );
    let image = json(&workspace.run(["--json", "inspect", "plain"]));
    let uid = nix::unistd::User::from_name("www-data")
        .unwrap()
        .unwrap()
        .uid
        .as_raw();
    assert_eq!(image["manifest"]["processes"][0]["uid"], uid);
    workspace.run(["restore", "-d", "plain"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

/// The ids and capabilities of the process that listens on a port.
fn credentials(port: u16) -> Vec<String> {
    let pid = procfs::process::all_processes()
        .unwrap()
        .flatten()
        .find(|process| {
            let words = process.cmdline().unwrap_or_default();
            words.first().is_some_and(|word| word.contains("python3"))
                && words.contains(&port.to_string())
        })
        .unwrap()
        .pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kinds = ["Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:"];
    let is_wanted = |line: &&str| kinds.iter().any(|kind| line.starts_with(kind));
    status
        .lines()
        .filter(is_wanted)
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_restored_server_has_the_credentials_it_had() {
    let workspace = Workspace::new();
    let port = free_port();
    let mut server = servers::plain("accept", port);
    let user = [
        "--reuid", "33", "--regid", "33", "--groups", "33,4,60", "--",
    ];
    server.command.splice(
        ..0,
        ["/usr/bin/setpriv"]
            .iter()
            .chain(&user)
            .map(|s| (*s).into()),
    );
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    let expected = credentials(port);
    assert!(
        expected.contains(&"CapAmb:\t0000000000000000".to_owned()),
        "{expected:?}"
    );
    drop(cold);
    server.wait_for_silence();

    let output = finish(&mut server.capture(&workspace, &["--name", "plain"]));
    assert!(output.status.success(), "{}", describe(&output));
    workspace.run(["restore", "-d", "plain"]);
    server.client.ask_until_answered();
    assert_eq!(credentials(port), expected);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn doctor_finds_this_host_fit() {
    let workspace = Workspace::new();
    let said = workspace.run(["doctor"]);
    assert!(
        said.contains("a server was captured, restored in"),
        "{said}"
    );
    assert!(said.ends_with("Capture and restore work here.\n"), "{said}");
    for line in workspace.run(["--json", "doctor"]).lines() {
        let finding = json(line);
        assert_eq!(
            (&finding["type"], &finding["schema"]),
            (&"finding".into(), &1.into())
        );
    }
    workspace.assert_clean();
}
