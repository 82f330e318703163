//! Bringing an image back somewhere else than it came from, and more than once.

use std::{collections::BTreeSet, net::TcpListener};

use crate::support::{
    Workspace, ask, ask::Client, expect, free_port, server::Server, servers, wait_until,
};

/// Captures a server under the name `server`.
fn capture(workspace: &Workspace, server: &Server) {
    expect(0, &mut server.capture(workspace, &["--name", "server"]));
}

/// The port that it was captured with.
fn port_of(server: &Server) -> u16 {
    match server.client {
        Client::Http(port) => port,
        _ => panic!("it has none"),
    }
}

#[test]
fn a_listener_moves_to_another_port_address_and_family() {
    let workspace = Workspace::new();
    let server = servers::express();
    capture(&workspace, &server);
    let old = port_of(&server);
    let new = free_port();
    for publish in [
        format!("{new}:{old}"),
        format!("127.0.0.2:{new}:{old}"),
        format!("0.0.0.0:{new}:127.0.0.1:{old}"),
        format!("[::1]:{new}:{old}"),
    ] {
        let report = workspace.run(["restore", "-d", "server", "--publish", &publish]);
        let address = report.trim().rsplit_once("tcp:").unwrap().1.to_owned();
        let url = format!("http://{}/", address.replace("0.0.0.0", "127.0.0.9"));
        let answer = std::process::Command::new("curl")
            .args(["-sS", &url])
            .output();
        let answer = String::from_utf8(answer.unwrap().stdout).unwrap();
        assert_eq!(answer.trim(), "Hello from Express", "{publish}");
        assert!(workspace.run(["ps"]).contains(&address));
        // It is nowhere else, and the place it left is free.
        assert!(ask::get(old, "/").is_err());
        workspace.run(["stop", "--all"]);
    }
    // The image is as it was.
    workspace.run(["restore", "-d", "server"]);
    assert_eq!(ask::get(old, "/").unwrap(), "200 Hello from Express");
    // A second copy elsewhere.
    workspace.run(["restore", "-d", "server", "-p", &format!("{new}:{old}")]);
    assert_eq!(ask::get(new, "/").unwrap(), "200 Hello from Express");
    let taken = format!("{new}:{old}");
    let error = workspace.fail(109, ["restore", "-d", "server", "-p", &taken]);
    assert!(
        error.contains("is taken by node (pid ") && error.contains("--publish"),
        "{error}"
    );
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_unix_socket_moves_to_another_path() {
    let workspace = Workspace::new();
    let server = servers::uvicorn_on_a_unix_socket(&workspace);
    capture(&workspace, &server);
    let path = |name: &str| workspace.path().join(name);
    let publish = format!(
        "{}:{}",
        path("b.sock").display(),
        path("server.sock").display()
    );
    workspace.run(["restore", "-d", "server", "--publish", &publish]);
    let moved = Client::HttpOverUnix(path("b.sock"));
    assert!(moved.ask().unwrap().starts_with("200 "));
    workspace.run(["restore", "-d", "server"]);
    assert!(server.client.ask().unwrap().starts_with("200 "));
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn wrong_places_are_refused() {
    let workspace = Workspace::new();
    let server = servers::plain("accept", free_port());
    capture(&workspace, &server);
    let port = port_of(&server);
    let error = workspace.fail(2, ["restore", "-d", "server", "-p", "8080:1"]);
    assert!(
        error.contains("no listener to publish port 1 to port 8080")
            && error.contains(&format!("the image listens on: tcp:127.0.0.1:{port}")),
        "{error}"
    );
    let path = workspace.write("data.db", "mine");
    let unix = servers::uvicorn_on_a_unix_socket(&workspace);
    expect(0, &mut unix.capture(&workspace, &["--name", "unix"]));
    let publish = format!("{path}:{}", workspace.path().join("server.sock").display());
    let error = workspace.fail(2, ["restore", "-d", "unix", "-p", &publish]);
    assert!(
        error.contains("data.db is there already, and is no socket"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    let cold = servers::plain("accept", free_port());
    let holder = cold.start_cold(&workspace);
    cold.client.ask_until_answered();
    let taken = format!("{}:{port}", port_of(&cold));
    let error = workspace.fail(
        109,
        ["restore", "-d", "--reuse-port", "-p", &taken, "server"],
    );
    assert!(error.contains("is taken by python3 (pid "), "{error}");
    drop(holder);
    for bad in ["70000:80", "80", "/a.sock:80", "80:/a.sock", "localhost:80"] {
        workspace.fail(2, ["restore", "-d", "server", "-p", bad]);
    }
    let elsewhere = ["8080", "8081"].map(|new| format!("{new}:{port}"));
    for (places, text) in [
        (&elsewhere[..], "is published twice"),
        (
            &[format!("192.0.2.77:8080:{port}")],
            "tcp:192.0.2.77:8080 is no address of this host",
        ),
    ] {
        let mut restore = vec!["restore", "-d", "server"];
        restore.extend(places.iter().flat_map(|place| ["-p", place]));
        let error = workspace.fail(2, restore);
        assert!(error.contains(text) && error.contains("Hint: "), "{error}");
    }
    let nowhere = format!(
        "/no/such/folder/a.sock:{}",
        workspace.path().join("server.sock").display()
    );
    let error = workspace.fail(2, ["restore", "-d", "unix", "-p", &nowhere]);
    assert!(
        error.contains("there is no folder for /no/such/folder/a.sock"),
        "{error}"
    );
    workspace.fail(2, ["restore", "--count", "2", "server"]);
    workspace.fail(
        2,
        ["restore", "-d", "--reuse-port", "--count", "0", "server"],
    );
    workspace.assert_clean();
}

#[test]
fn copies_share_a_port_and_one_can_be_killed() {
    let workspace = Workspace::new();
    let server = servers::plain("accept", free_port());
    capture(&workspace, &server);
    let port = port_of(&server);
    let options = ["restore", "-d", "--reuse-port", "--count", "4", "server"];
    let report = workspace.run(options);
    assert_eq!(report.lines().count(), 4, "{report}");
    // Connections are spread by their ports: after enough of them, each copy was asked.
    let asked = |wanted: usize| {
        let mut logs = BTreeSet::new();
        wait_until("all copies to be asked", || {
            ask::get(port, "/").map_err(|error| error.to_string())?;
            for number in 1..=4 {
                let name = format!("server-{number}");
                let log = workspace.warmimg(["logs", &name]).output().unwrap().stdout;
                if String::from_utf8_lossy(&log).contains("request for /") {
                    logs.insert(name);
                }
            }
            match logs.len() >= wanted {
                true => Ok(()),
                false => Err(format!("{logs:?}")),
            }
        });
    };
    asked(4);
    workspace.run(["stop", "server-2", "--timeout", "1"]);
    for _ in 0..50 {
        assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
    }
    // Without being asked to share, a further copy is refused; nor does one join another that was
    // not.
    workspace.fail(109, ["restore", "-d", "server"]);
    workspace.run(["stop", "--all"]);
    workspace.run(["restore", "-d", "server"]);
    let error = workspace.fail(109, ["restore", "-d", "server", "--reuse-port"]);
    assert!(
        error.contains("is taken by server-1, which does not share it"),
        "{error}"
    );
    workspace.run(["stop", "--all"]);
    server.wait_for_silence();
    workspace.assert_clean();
}

#[test]
fn twenty_copies_of_fastapi_answer_each_on_its_port() {
    let workspace = Workspace::new();
    let server = servers::fastapi_on_uvicorn();
    capture(&workspace, &server);
    let old = port_of(&server);
    // Held together, so that no two are the same.
    let held: Vec<_> = (0..20)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap())
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let ports: Vec<u16> = held.iter().map(port).collect();
    drop(held);
    let children: Vec<_> = ports
        .iter()
        .map(|new| {
            let publish = format!("{new}:{old}");
            let mut restore = workspace.warmimg(["restore", "-d", "server", "-p", &publish]);
            restore.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let answer = Client::Http(ports[0]).ask().unwrap();
    assert!(answer.starts_with("200 "), "{answer}");
    for &port in &ports {
        assert_eq!(Client::Http(port).ask().unwrap(), answer, "{port}");
    }
    assert_eq!(workspace.run(["ps"]).lines().count(), 21);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn copies_of_a_server_of_another_user_share_a_port_too() {
    let workspace = Workspace::new();
    let server = servers::plain("accept", free_port()).user("www-data");
    capture(&workspace, &server);
    let share = ["restore", "-d", "--reuse-port", "server"];
    workspace.run(share);
    workspace.run(share);
    for _ in 0..20 {
        assert_eq!(ask::get(port_of(&server), "/").unwrap(), "200 hello");
    }
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}
