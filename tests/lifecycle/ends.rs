//! How servers end, and what is told of it.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use nix::sys::signal::Signal;

use super::{capture_plain, json, restore_in_foreground};
use crate::support::{Workspace, ask, below_strace, expect, free_port, servers, wait_until};

#[test]
fn in_the_foreground_it_is_a_supervisor_like_any_other() {
    let workspace = Workspace::new();
    let port = capture_plain(&workspace, "accept", &["--name", "plain"]);
    let mut restored = restore_in_foreground(&workspace, Stdio::piped());
    let mut lines = BufReader::new(restored.0.stdout.take().unwrap()).lines();
    servers::plain("accept", port).client.ask_until_answered();
    assert_eq!(lines.next().unwrap().unwrap(), "request for /");
    restored.signal(Signal::SIGHUP);
    assert_eq!(lines.next().unwrap().unwrap(), "got SIGHUP");
    assert!(workspace.run(["ps"]).contains("in the foreground"));
    restored.signal(Signal::SIGUSR1);
    assert_eq!(restored.wait(), Some(7));
    workspace.assert_clean();
}

#[test]
fn a_server_killed_by_a_signal_gives_the_shells_exit_status() {
    let workspace = Workspace::new();
    let port = capture_plain(&workspace, "accept", &["--name", "plain"]);
    let mut restored = restore_in_foreground(&workspace, Stdio::null());
    servers::plain("accept", port).client.ask_until_answered();
    restored.signal(Signal::SIGTERM);
    assert_eq!(restored.wait(), Some(128 + 15));
    workspace.assert_clean();
}

/// Its end is known although it was nobody's main process yet.
#[test]
fn a_server_may_end_before_its_restore_is_seen_to_be_complete() {
    let workspace = Workspace::new();
    let program = workspace.write(
        "short.py",
        "import os, socket, sys\nlistener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
         listener.settimeout(0.001)\ntry:\n    listener.accept()\nexcept TimeoutError:\n    os._exit(3)\n",
    );
    let port = free_port().to_string();
    let server = ["--", "/usr/bin/python3", &program, &port];
    workspace.run(["capture", "--name", "short"].iter().chain(&server));
    for memory in ["copy", "map"] {
        for (options, code) in [(&[][..], 3), (&["-d"], 102)] {
            let words = ["restore", "--memory", memory, "short"];
            let restore = workspace.warmimg(words.iter().chain(options));
            // So much later init is told which process it is.
            let late = "inject=sendmsg:delay_enter=300000";
            let mut restore = below_strace(&restore, &["-qq", "-o", "/dev/null", "-e", late]);
            let (_, said) = expect(code, &mut restore);
            assert!(code == 3 || said.contains("exit status 3"), "{said}");
            workspace.assert_clean();
        }
    }
}

#[test]
fn a_detached_instance_is_listed_logged_and_stopped() {
    let workspace = Workspace::new();
    let port = capture_plain(&workspace, "accept", &["--name", "plain"]);
    workspace.run(["restore", "-d", "plain"]);
    ask::get(port, "/").unwrap();
    wait_until("the log", || {
        match workspace.run(["logs", "plain-1"]).as_str() {
            "request for /\n" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    // A second one would need the same port.
    let error = workspace.fail(109, ["restore", "-d", "plain"]);
    assert!(
        error.contains(&format!("tcp:127.0.0.1:{port} is taken by python3")),
        "{error}"
    );
    let listed = json(&workspace.run(["--json", "ps"]));
    assert_eq!(
        (&listed["id"], &listed["state"]),
        (&"plain-1".into(), &"running".into())
    );

    // It ends by itself: what it left is shown until it is removed.
    let init = listed["init"].as_i64().unwrap() as i32;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), Signal::SIGUSR1).unwrap();
    wait_until("the end", || match workspace.run(["ps"]) {
        listed if listed.contains("ended: exit status 7") => Ok(()),
        listed => Err(listed),
    });
    assert_eq!(
        workspace.run(["logs", "--follow", "plain-1"]),
        "request for /\n"
    );
    assert!(
        workspace
            .run(["stop", "plain-1"])
            .contains("Removed plain-1")
    );
    workspace.assert_clean();
}

#[test]
fn a_server_that_does_not_stop_is_killed() {
    let workspace = Workspace::new();
    let port = free_port();
    let script = workspace.write(
        "stubborn.py",
        "import signal, socket, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         socket.create_server(('127.0.0.1', int(sys.argv[1]))).accept()\n",
    );
    let port_text = port.to_string();
    workspace.run([
        "capture",
        "--name",
        "stubborn",
        "--",
        "/usr/bin/python3",
        &script,
        &port_text,
    ]);
    workspace.run(["restore", "-d", "stubborn"]);
    let said = workspace.run(["stop", "--timeout", "0.2", "stubborn-1"]);
    assert_eq!(said, "Killed stubborn-1, which did not stop in time\n");
    workspace.assert_clean();
}

#[test]
fn everything_ends_with_a_killed_supervisor() {
    let workspace = Workspace::new();
    let port = capture_plain(&workspace, "accept", &["--name", "plain"]);
    let mut restored = restore_in_foreground(&workspace, Stdio::null());
    servers::plain("accept", port).client.ask_until_answered();
    restored.signal(Signal::SIGKILL);
    restored.wait();
    servers::plain("accept", port).wait_for_silence();
    // What the supervisor could not remove, the next restore does.
    workspace.run(["restore", "-d", "plain"]);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}
