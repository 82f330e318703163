//! What happens to images and instances in their lives.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Stdio,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Killed, Workspace, ask, below_strace, describe, expect, finish, free_port, servers, wait_until,
};

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
fn an_image_is_restored_after_its_log_has_grown() {
    let workspace = Workspace::new();
    let port = free_port();
    let log = workspace.path().join("requests.log");
    let mut server = servers::plain("accept", port);
    server.command.push(log.display().to_string());
    let output = finish(&mut server.capture(&workspace, &["--name", "logging"]));
    assert!(output.status.success(), "{}", describe(&output));
    for round in 1..=3 {
        workspace.run(["restore", "-d", "logging"]);
        assert_eq!(ask::get(port, "/").unwrap(), "200 hello");
        workspace.run(["stop", "logging-1"]);
        assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), round);
    }
    workspace.assert_clean();
}

#[test]
fn several_images_with_the_same_pids_run_at_once() {
    let workspace = Workspace::new();
    let first = capture_plain(&workspace, "accept", &["--name", "first"]);
    let second = capture_plain(&workspace, "epoll", &["--name", "second"]);
    workspace.run(["restore", "-d", "first"]);
    workspace.run(["restore", "-d", "second"]);
    assert_eq!(
        ask::get(first, "/pid").unwrap(),
        ask::get(second, "/pid").unwrap()
    );
    let listed = workspace.run(["--json", "ps"]);
    let states: Vec<_> = listed
        .lines()
        .map(|line| json(line)["state"].clone())
        .collect();
    assert_eq!(states, ["running", "running"]);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn the_memory_of_those_that_run_is_shown() {
    let workspace = Workspace::new();
    let port = free_port();
    // 64 MiB, and a child that shares them.
    let script = workspace.write(
        "memory.py",
        "import os, socket, sys\nkept = b'x' * (64 << 20)\n\
         listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nos.fork()\n\
         while True: listener.accept()[0].close()\n",
    );
    let port_text = port.to_string();
    let server = ["/usr/bin/python3", &script, &port_text];
    workspace.run([&["capture", "--name", "big", "--"][..], &server].concat());
    // What is mapped is not there before it is used.
    workspace.run(["restore", "-d", "--memory", "copy", "big"]);
    let listed = json(&workspace.run(["--json", "ps"]));
    let bytes = |field: &str| listed[field].as_u64().unwrap();
    let (rss, pss, shared) = (
        bytes("rss_bytes"),
        bytes("pss_bytes"),
        bytes("shared_bytes"),
    );
    let size = 64 << 20;
    // Each of the two has them all, half of them by right.
    assert!(rss > 2 * size && rss < 3 * size, "{rss}");
    assert!(pss > size && pss <= rss, "{pss} of {rss}");
    assert!(shared > size && shared <= rss, "{shared} of {rss}");
    let table = workspace.run(["ps"]);
    let [headings, row] = table.lines().collect::<Vec<_>>()[..] else {
        panic!("{table}");
    };
    assert!(headings.contains("RSS") && headings.contains("PSS") && headings.contains("SHARED"));
    assert_eq!(row.matches(" MiB").count(), 3, "{table}");

    // Those that have ended have none.
    let init = nix::unistd::Pid::from_raw(listed["init"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(init, Signal::SIGTERM).unwrap();
    wait_until("the end", || match workspace.run(["ps"]) {
        listed if listed.contains("ended: killed by SIGTERM") => Ok(()),
        listed => Err(listed),
    });
    let ended = workspace.run(["ps"]);
    assert!(!ended.contains("MiB") && ended.contains("  -  "), "{ended}");
    assert_eq!(
        json(&workspace.run(["--json", "ps"])).get("rss_bytes"),
        None
    );
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn where_the_time_of_a_restore_went_adds_up() {
    let workspace = Workspace::new();
    capture_plain(&workspace, "accept", &["--name", "plain"]);
    let plain = json(&workspace.run(["--json", "restore", "-d", "plain"]));
    assert_eq!(plain.get("timings"), None);
    workspace.run(["stop", "--all"]);
    let restored = json(&workspace.run(["--json", "restore", "-d", "--timings", "plain"]));
    for field in ["total_us", "namespaces_us", "criu_us", "criu_restore_us"] {
        assert!(restored[field].as_u64().unwrap() > 0, "{restored}");
    }
    let timings = restored["timings"].as_object().unwrap();
    let time = |field: &str| timings[field].as_u64().unwrap();
    let parts = timings.iter().filter(|(name, _)| {
        let whole = ["total_us", "first_byte_us"];
        name.ends_with("_us") && !whole.contains(&name.as_str())
    });
    let sum: u64 = parts.filter_map(|(_, time)| time.as_u64()).sum();
    assert_eq!(sum, time("total_us"), "{restored}");
    assert!(time("first_byte_us") > time("total_us"), "{restored}");
    assert!(time("pages_restored") > 0, "{restored}");
    // CRIU has 20 libraries to load, and then to resume the tree.
    assert!(
        time("criu_start_us") > 500 && time("criu_end_us") > 0,
        "{restored}"
    );
    workspace.run(["stop", "--all"]);

    let table = workspace.run(["restore", "-d", "--timings", "plain"]);
    for row in [
        "CRIU start  ",
        "CRIU restoring  ",
        "total  ",
        "first byte  ",
        "pages  ",
    ] {
        assert!(table.contains(&format!("\n  {row}")), "{table}");
    }
    assert!(!table.contains("listening"), "{table}");
    workspace.run(["stop", "--all"]);
    capture_plain(
        &workspace,
        "accept",
        &["--name", "early", "--at", "pre-listen"],
    );
    let table = workspace.run(["restore", "-d", "--timings", "early"]);
    assert!(table.contains("\n  listening  "), "{table}");
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_server_that_says_nothing_has_no_first_byte() {
    let workspace = Workspace::new();
    let script = workspace.write(
        "mute.py",
        "import socket, sys\nlistener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
         kept = []\nwhile True: kept.append(listener.accept())\n",
    );
    let port = free_port().to_string();
    let server = ["/usr/bin/python3", &script, &port];
    workspace.run([&["capture", "--name", "mute", "--"][..], &server].concat());
    let table = workspace.run(["restore", "-d", "--timings", "mute"]);
    assert!(
        table.contains("\n  first byte            none within 1 s\n"),
        "{table}"
    );
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn the_monotonic_clock_goes_on_after_a_reboot() {
    let workspace = Workspace::new();
    let port = capture_plain(&workspace, "accept", &["--name", "clock"]);
    let image = json(&workspace.run(["--json", "inspect", "clock"]));
    let captured = image["manifest"]["clocks"]["monotonic_ns"]
        .as_u64()
        .unwrap();
    // After a reboot the host's clock is far behind the captured one: a capture 11 days ahead
    // makes the same difference.
    let ahead = 1_000_000_000_000_000;
    let digest = image["digest"].as_str().unwrap();
    let folder = workspace.store().join("images").join(digest);
    let path = folder.join("manifest.json");
    // What is done here to the manifest is not to be noticed.
    fs::remove_file(folder.join("seal.json")).unwrap();
    for more in [0, ahead] {
        let text = fs::read_to_string(&path).unwrap();
        let mut manifest = json(&text);
        manifest["clocks"]["monotonic_ns"] = (captured + more).into();
        fs::write(&path, manifest.to_string()).unwrap();
        workspace.run(["restore", "-d", "clock"]);
        let answer = ask::get(port, "/monotonic").unwrap();
        let shown: u64 = answer.strip_prefix("200 ").unwrap().parse().unwrap();
        let minute = 60_000_000_000;
        assert!(
            (captured + more..captured + more + minute).contains(&shown),
            "{shown}"
        );
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}

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
