//! What restored copies have of what was captured, and what is told of them.

use std::fs;

use nix::sys::signal::Signal;

use super::{capture_plain, json};
use crate::support::{Workspace, ask, describe, finish, free_port, servers, wait_until};

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
    // CRIU has 20 libraries to load, and then to resume the tree. On a busy machine its begin is seen late.
    let around = time("criu_start_us") + time("criu_end_us");
    assert!(around > 500, "{restored}");
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
