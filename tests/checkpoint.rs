//! Images of what runs already: of instances, and of servers that warmimg did not start.

use std::{fs, net::TcpListener, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Killed, Workspace, ask, ask::Client, expect, fixture, free_port, server::Server, servers,
    wait_for_record, wait_until,
};

/// A server that answers each request with its number.
fn counting(port: u16) -> Server {
    let script = fixture("points/server.py");
    let words = ["/usr/bin/python3", &script, "counting", &port.to_string()];
    Server::new(Client::Http(port), words)
}

/// How often the server was asked, this time included.
fn count(port: u16) -> u32 {
    let answer = ask::get(port, "/").unwrap();
    answer.strip_prefix("200 ").unwrap().parse().unwrap()
}

#[test]
fn an_instance_is_brought_back_as_it_was_when_it_was_checkpointed() {
    let workspace = Workspace::new();
    let port = free_port();
    let hook = format!("touch {}", workspace.path().join("hook").display());
    let options = ["--name", "counting", "--after-restore", &hook];
    expect(0, &mut counting(port).capture(&workspace, &options));
    workspace.run(["restore", "-d", "counting"]);
    assert_eq!((count(port), count(port)), (1, 2));
    // It goes on meanwhile.
    let live = [
        "checkpoint",
        "--pid",
        "counting-1",
        "--leave-running",
        "--name",
        "live",
    ];
    let report = workspace.run(live);
    assert!(
        report.contains(" at checkpoint.") && !report.contains("start-up"),
        "{report}"
    );
    assert_eq!(count(port), 3);
    // Or it is gone, under the name of its image.
    workspace.run(["checkpoint", "--pid", "counting-1"]);
    assert!(Client::Http(port).is_refused());
    assert_eq!(workspace.run(["ps"]).lines().count(), 1);
    // Its log is another one each time, or none.
    let mut foreground = workspace.warmimg(["restore", "live"]);
    let foreground = foreground
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut foreground = Killed(foreground.unwrap());
    assert_eq!(Client::Http(port).ask_until_answered(), "200 3");
    foreground.signal(Signal::SIGTERM);
    foreground.wait();
    for (image, next) in [("live", 3), ("counting", 4), ("live", 3)] {
        fs::remove_file(workspace.path().join("hook")).unwrap();
        workspace.run(["restore", "-d", image]);
        assert!(workspace.path().join("hook").exists());
        assert_eq!(count(port), next);
        workspace.run(["stop", "--all"]);
    }
    let image: Value = serde_json::from_str(&workspace.run(["--json", "inspect"])).unwrap();
    let capture = &image["manifest"]["capture"];
    assert_eq!(capture["point"], "checkpoint");
    let events: Vec<_> = capture["time_line"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&events[0]["event"], &events[1]["event"]),
        (&"freeze".into(), &"dump".into())
    );
    workspace.assert_clean();
}

#[test]
fn an_instance_in_the_foreground_ends_with_its_checkpoint_and_writes_on_when_restored() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = servers::plain("epoll", port);
    expect(0, &mut server.capture(&workspace, &["--name", "plain"]));
    let mut restored = workspace.warmimg(["restore", "plain"]);
    let restored = restored.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut restored = Killed(restored.unwrap());
    server.client.ask_until_answered();
    // By the pid of its root, as the host sees it.
    let record = wait_for_record(&workspace);
    let init = warmimg::tree::HostPid(record["init"].as_i64().unwrap() as i32);
    let root = warmimg::tree::children(init)[0].to_string();
    workspace.run(["checkpoint", "--pid", &root, "--name", "again"]);
    // 128 and SIGKILL.
    assert_eq!(restored.wait(), Some(137));
    workspace.run(["restore", "-d", "again"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_server_that_was_started_without_warmimg_is_checkpointed() {
    let workspace = Workspace::new();
    for (server, processes) in [
        (counting(free_port()), 1),
        (servers::django_on_gunicorn(), 3),
        (servers::express(), 1),
        (servers::nginx(&workspace), 3),
    ] {
        let cold = server.start_cold(&workspace);
        server.client.ask_until_answered();
        let pid = cold.pid().to_string();
        let live = [
            "--json",
            "checkpoint",
            "--pid",
            &pid,
            "--name",
            "live",
            "--leave-running",
        ];
        let image: Value = serde_json::from_str(&workspace.run(live)).unwrap();
        let found = image["manifest"]["processes"].as_array().unwrap().len();
        assert_eq!(found, processes, "{}", server.command[0]);
        let expected = server.client.ask_until_answered();
        workspace.run(["checkpoint", "--pid", &pid, "--name", "gone"]);
        server.wait_for_silence();
        drop(cold);
        for image in ["live", "gone", "live"] {
            workspace.run(["restore", "-d", image]);
            let answer = server.client.ask_until_answered();
            assert_eq!(answer.split(' ').next(), expected.split(' ').next());
            workspace.run(["stop", "--all"]);
            server.wait_for_silence();
        }
    }
    workspace.assert_clean();
}

#[test]
fn what_cannot_be_checkpointed_goes_on() {
    let workspace = Workspace::new();
    let error = workspace.fail(112, ["checkpoint", "--pid", "nobody-1"]);
    assert!(
        error.contains("no instance is called \"nobody-1\""),
        "{error}"
    );
    let error = workspace.fail(112, ["checkpoint", "--pid", "4194305"]);
    assert!(error.contains("there is no process 4194305"), "{error}");

    let error = workspace.fail(111, ["checkpoint", "--pid", "1"]);
    assert!(error.contains("warmimg itself runs below"), "{error}");

    let peer = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free_port();
    let script = fixture("points/server.py");
    let peer_port = peer.local_addr().unwrap().port();
    let words = [port, peer_port].map(|port| port.to_string());
    let words = ["/usr/bin/python3", &script, "client", &words[0], &words[1]];
    let server = Server::new(Client::Http(port), words);
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    let pid = cold.pid().to_string();
    let error = workspace.fail(116, ["checkpoint", "--pid", &pid]);
    assert!(
        error.contains(&format!(" to tcp:127.0.0.1:{peer_port}\n"))
            && error.contains("--tcp-close"),
        "{error}"
    );
    assert_eq!(ask::get(port, "/").unwrap(), "200 still connected");
    workspace.run([
        "checkpoint",
        "--pid",
        &pid,
        "--tcp-close",
        "--name",
        "closed",
    ]);
    workspace.run(["restore", "-d", "closed"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 connected anew");
    workspace.run(["stop", "--all"]);
    drop(cold);

    // One that has the terminal of its user, as script(1) gives it.
    let server = counting(free_port());
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &server.command.join(" "), "/dev/null"]);
    script.stdin(Stdio::null()).stdout(Stdio::null());
    workspace.mark(&mut script);
    let script = Killed(script.spawn().unwrap());
    server.client.ask_until_answered();
    let below = warmimg::tree::HostPid(script.0.id() as i32);
    let pid = warmimg::tree::descendants(below)[0].to_string();
    let error = workspace.fail(111, ["checkpoint", "--pid", &pid]);
    assert!(
        error.contains("has the terminal /dev/pts/") && error.contains(">FILE 2>&1"),
        "{error}"
    );
    server.client.ask_until_answered();
    script.signal(Signal::SIGKILL);

    // One in a container: here, in other namespaces.
    let server = counting(free_port());
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--uts", "--ipc", "--"]).args(&server.command);
    unshare
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    workspace.mark(&mut unshare);
    let unshare = Killed(unshare.spawn().unwrap());
    server.client.ask_until_answered();
    let error = workspace.fail(111, ["checkpoint", "--pid", &unshare.0.id().to_string()]);
    assert!(
        error.contains("runs in a container: its ipc is another")
            && error.contains("in that container"),
        "{error}"
    );
    drop(unshare);

    // One whose session was begun outside of its namespace of pids, as `docker exec` does it.
    let server = counting(free_port());
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    unshare.args(&server.command);
    unshare
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    workspace.mark(&mut unshare);
    let unshare = Killed(unshare.spawn().unwrap());
    server.client.ask_until_answered();
    let below = warmimg::tree::HostPid(unshare.0.id() as i32);
    let pid = warmimg::tree::children(below)[0].to_string();
    let error = workspace.fail(111, ["checkpoint", "--pid", &pid]);
    assert!(
        error.contains("is in session 0, which was begun outside") && error.contains("setsid"),
        "{error}"
    );
    server.client.ask_until_answered();
    drop((script, unshare));
    wait_until("the server to be gone", || {
        match server.client.is_refused() {
            true => Ok(()),
            false => Err("it answers".to_owned()),
        }
    });
    workspace.assert_clean();
}

#[test]
fn a_checkpoint_that_is_ended_leaves_the_server_running() {
    let workspace = Workspace::new();
    let server = servers::django_on_gunicorn();
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    let root = warmimg::tree::HostPid(cold.pid() as i32);
    let pid = root.to_string();
    let stopped = || {
        let pids = std::iter::once(root).chain(warmimg::tree::descendants(root));
        let stopped: Vec<_> = pids.filter(|&pid| warmimg::tree::is_stopped(pid)).collect();
        match stopped.is_empty() {
            true => Ok(()),
            false => Err(format!("{stopped:?} stand still")),
        }
    };
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        // At moments all through the freeze and the dump, which take some 100 ms.
        for delay in (0..16_u8).map(|step| step * 12) {
            let live = [
                "checkpoint",
                "--pid",
                &pid,
                "--leave-running",
                "--name",
                "live",
            ];
            let mut command = workspace.warmimg(live);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut command = Killed(command.spawn().unwrap());
            let _ = nix::poll::poll(&mut [], delay);
            command.signal(signal);
            command.wait();
            wait_until("the server to go on", stopped);
            server.client.ask_until_answered();
        }
    }
    workspace.run(["images"]);
    drop(cold);
    workspace.assert_clean();
}

#[test]
fn a_checkpoint_that_cannot_be_stored_leaves_the_server_running() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = counting(port);
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    workspace.run(["images"]);
    // A file where the names are to be.
    fs::remove_dir(workspace.store().join("names")).unwrap();
    fs::write(workspace.store().join("names"), "").unwrap();
    let pid = cold.pid().to_string();
    let output = crate::support::finish(&mut workspace.warmimg(["checkpoint", "--pid", &pid]));
    assert!(!output.status.success());
    assert_eq!(count(port), 2);
    // Nor does it stop the one who calls it.
    let own = std::process::id().to_string();
    fs::remove_file(workspace.store().join("names")).unwrap();
    let error = workspace.fail(111, ["checkpoint", "--pid", &own]);
    assert!(error.contains("warmimg itself runs below"), "{error}");
    drop(cold);
    workspace.assert_clean();
}
