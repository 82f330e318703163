//! Memory that was captured behaves as private anonymous memory does, however it is restored. The
//! server of tests/servers/memory looks at it from all sides, and must see the same each time.

use std::{fs, io::Read as _, process::Stdio, thread};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Killed, Workspace, ask, ask::Client, expect, free_port, server::Server, servers,
    wait_for_record,
};

fn server(workspace: &Workspace) -> (Server, u16) {
    let program = servers::compile(workspace, "memory/server.c");
    let port = free_port();
    let server = Server::new(Client::Http(port), [program, port.to_string()]);
    (server, port)
}

/// What a server sees in each of its checks.
fn ask_all(port: u16) -> Vec<String> {
    ask_some(port, |_| true)
}

/// What it sees in some of them, by their places.
fn ask_some(port: u16, is_asked: impl Fn(usize) -> bool) -> Vec<String> {
    let names = ask::get(port, "/list").unwrap();
    // The first word is the status.
    let names = names.split_whitespace().skip(1).enumerate();
    let ask = |(_, name)| match ask::get(port, &format!("/{name}")) {
        Ok(answer) => format!("{name}: {answer}"),
        Err(error) => format!("{name}: {error}"),
    };
    names
        .filter(|(place, _)| is_asked(*place))
        .map(ask)
        .collect()
}

/// What it sees when it has never been captured.
fn ask_cold(workspace: &Workspace, server: &Server, port: u16) -> Vec<String> {
    let cold = server.start_cold(workspace);
    server.client.ask_until_answered();
    let answers = ask_all(port);
    drop(cold);
    server.wait_for_silence();
    let wrong: Vec<_> = answers
        .iter()
        .filter(|answer| answer.contains("WRONG") || !answer.contains(": 200 "))
        .collect();
    assert!(wrong.is_empty(), "without a capture: {wrong:#?}");
    answers
}

/// How many calls signals have interrupted in the only instance.
fn interrupted(workspace: &Workspace) -> u64 {
    let listed: Value = serde_json::from_str(&workspace.run(["--json", "ps"])).unwrap();
    listed["guard"]["interrupted"].as_u64().unwrap()
}

/// What has to be the same. How many pages are in memory is not: the kernel may take some that are in a file.
fn lasting(answer: &str) -> String {
    const COUNTED: &str = " in memory;";
    let parts = answer.split_inclusive(COUNTED).map(|part| {
        let counted = part.ends_with(COUNTED);
        let count = part.rsplit_once(" of ").filter(|_| counted);
        count.map_or(part, |(before, _)| {
            before.trim_end_matches(|c: char| c.is_ascii_digit())
        })
    });
    parts.collect()
}

fn assert_same(how: &str, seen: &[String], expected: &[String]) {
    let differing: Vec<_> = seen
        .iter()
        .zip(expected)
        .filter(|(seen, expected)| lasting(seen) != lasting(expected))
        .map(|(seen, expected)| format!("  {seen}\n  instead of\n  {expected}\n"))
        .collect();
    assert!(
        differing.is_empty(),
        "{how}, {} of {} checks:\n{}",
        differing.len(),
        expected.len(),
        differing.join("\n")
    );
    assert_eq!(seen.len(), expected.len(), "{how}");
}

#[test]
fn restored_memory_is_as_it_was_mapped_or_copied() {
    let workspace = Workspace::new();
    let (server, port) = server(&workspace);
    let expected = ask_cold(&workspace, &server, port);
    expect(0, &mut server.capture(&workspace, &["--name", "memory"]));
    for memory in ["copy", "map"] {
        workspace.run(["restore", "-d", "--memory", memory, "memory"]);
        assert_same(memory, &ask_all(port), &expected);
        if memory == "map" {
            assert!(interrupted(&workspace) > 0, "no call was interrupted");
        }
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}

#[test]
fn what_is_mapped_becomes_part_of_a_new_image() {
    let workspace = Workspace::new();
    let (server, port) = server(&workspace);
    let expected = ask_cold(&workspace, &server, port);
    let pick = |is_picked: fn(usize) -> bool| -> Vec<String> {
        let all = expected.iter().enumerate();
        all.filter(|(place, _)| is_picked(*place))
            .map(|(_, line)| line.clone())
            .collect()
    };
    expect(0, &mut server.capture(&workspace, &["--name", "memory"]));
    workspace.run(["restore", "-d", "--memory", "map", "memory"]);
    let (third, second, first) = (
        (|place| place >= 50) as fn(usize) -> bool,
        (|place| (25..50).contains(&place)) as fn(usize) -> bool,
        (|place| place < 25) as fn(usize) -> bool,
    );
    assert_same("mapped", &ask_some(port, first), &pick(first));
    workspace.run(["checkpoint", "--pid", "memory-1", "--name", "second"]);
    // It needs no other image.
    workspace.run(["rm", "memory"]);
    for memory in ["copy", "map"] {
        workspace.run(["restore", "-d", "--memory", memory, "second"]);
        assert_same(memory, &ask_some(port, second), &pick(second));
        if memory == "map" {
            workspace.run(["checkpoint", "--pid", "second-1", "--name", "third"]);
        } else {
            workspace.run(["stop", "--all"]);
        }
    }
    workspace.run(["restore", "-d", "--memory", "map", "third"]);
    assert_same("mapped again", &ask_some(port, third), &pick(third));
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn copies_that_share_mapped_memory_do_not_see_one_another() {
    let workspace = Workspace::new();
    let (server, port) = server(&workspace);
    let expected = ask_cold(&workspace, &server, port);
    expect(0, &mut server.capture(&workspace, &["--name", "memory"]));
    let ports = [port, free_port(), free_port()];
    for new in ports {
        let publish = format!("{new}:{port}");
        let mut words = vec!["restore", "-d", "--memory", "map", "memory"];
        if new != port {
            words.extend(["--publish", &publish]);
        }
        workspace.run(words);
    }
    let answers = thread::scope(|scope| {
        let copies = ports.map(|port| scope.spawn(move || ask_all(port)));
        copies.map(|copy| copy.join().unwrap())
    });
    for (port, answers) in ports.iter().zip(&answers) {
        assert_same(&format!("the copy at port {port}"), answers, &expected);
    }
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_server_ends_with_the_guard_of_its_memory() {
    let workspace = Workspace::new();
    let (server, port) = server(&workspace);
    expect(0, &mut server.capture(&workspace, &["--name", "memory"]));
    let mut restored = workspace.warmimg(["restore", "--memory", "map", "memory"]);
    let restored = restored
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut restored = Killed(restored.unwrap());
    server.client.ask_until_answered();
    let record = wait_for_record(&workspace);
    assert!(
        record["mapped_bytes"].as_u64().unwrap() > 50 << 20,
        "{record}"
    );
    assert!(record["guard"]["calls"].is_u64(), "{record}");
    let init = nix::unistd::Pid::from_raw(record["init"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(init, Signal::SIGKILL).unwrap();
    let mut error = String::new();
    restored
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert_ne!(restored.wait(), Some(0));
    assert!(
        error.contains(&format!("init (pid {init}) is gone")),
        "{error}"
    );
    server.wait_for_silence();
    assert!(ask::get(port, "/list").is_err());
    workspace.assert_clean();
}

#[test]
fn memory_is_copied_where_it_cannot_be_mapped() {
    let workspace = Workspace::new();
    let (server, port) = server(&workspace);
    // A store on a file system from which nothing can be executed, in mounts of its own.
    let store = workspace.path().join("noexec");
    fs::create_dir(&store).unwrap();
    let script = |words: &str| {
        let program = workspace.warmimg([""; 0]);
        let program = program.get_program().to_str().unwrap().to_owned();
        let store = store.display();
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-ec"]).arg(format!(
            "mount -t tmpfs -o noexec none {store}; export WARMIMG_STORE={store}
             W={program}; $W capture --name memory -- {} > {store}/captured; {words}",
            server.command.join(" ")
        ));
        workspace.mark(&mut command);
        command
    };
    let (said, _) = expect(
        0,
        &mut script("$W --json restore -d memory; cat /proc/mounts > /dev/null; $W stop --all"),
    );
    let first = said.lines().next().unwrap();
    let report: Value = serde_json::from_str(first).unwrap();
    assert_eq!(report["mapped_bytes"], 0, "{report}");
    let reason = report["copied_because"].as_str().unwrap();
    assert!(reason.contains("noexec"), "{reason}");
    let (_, error) = expect(113, &mut script("$W restore -d --memory map memory"));
    assert!(
        error.contains("cannot be mapped") && error.contains("noexec") && error.contains("copy"),
        "{error}"
    );
    assert!(ask::get(port, "/list").is_err());
    workspace.assert_clean();
}

#[test]
fn a_rehearsal_changes_the_image_only() {
    let workspace = Workspace::new();
    let server = servers::uvicorn_on_a_unix_socket(&workspace);
    let options = ["--name", "shop", "--at", "warm", "--after-restore", "true"];
    expect(0, &mut server.capture(&workspace, &options));
    let shown = || -> Value {
        serde_json::from_str(&workspace.run(["--json", "inspect", "shop"])).unwrap()
    };
    // With hooks, it is for the user to say.
    let before = shown();
    assert!(before["manifest"]["working_set"].is_null());
    let said = workspace.run(["rehearse", "shop"]);
    assert!(said.starts_with("Rehearsed shop ("), "{said}");
    let after = shown();
    assert_ne!(after["digest"], before["digest"]);
    let set = &after["manifest"]["working_set"];
    assert!(set["written_pages"].as_u64() > Some(0), "{set}");
    assert_eq!(workspace.run(["images"]).lines().count(), 2);
    let sockets = fs::read_dir(workspace.path()).unwrap().flatten();
    let sockets = sockets.filter(|file| {
        file.file_name()
            .as_encoded_bytes()
            .starts_with(b"server.sock.")
    });
    assert_eq!(sockets.count(), 0);
    workspace.run(["verify", "shop"]);
    workspace.run(["restore", "-d", "shop"]);
    server.client.ask_until_answered();
    workspace.run(["stop", "--all"]);
    let error = workspace.fail(107, ["rehearse", "nobody"]);
    assert!(error.contains("no image is called"), "{error}");
    let fixed = ["rehearse", "shop", "--warmup", "http://127.0.0.1:1/"];
    let error = workspace.fail(2, fixed);
    assert!(
        error.contains("asked at a fixed address") && error.contains("--warmup /PATH"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn memory_that_processes_share_is_one_and_each_copy_has_its_own() {
    let workspace = Workspace::new();
    let program = servers::compile(&workspace, "memory/shared.c");
    let [port, other] = [free_port(), free_port()];
    let server = Server::new(Client::Http(port), [program, port.to_string()]);
    let assert_next = |port: u16, how: &str, count: u32| {
        let answer = ask::get(port, "/").unwrap();
        let expected = format!("whole whole {} to {count}", count - 2);
        assert_eq!(answer, format!("200 {expected}"), "{how}");
    };
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    assert_next(port, "cold", 4);
    drop(cold);
    server.wait_for_silence();
    // The pages of one piece, with a place for those that nobody has written to.
    let shared = |name: &str| {
        let inspected: Value =
            serde_json::from_str(&workspace.run(["--json", "inspect", name])).unwrap();
        let image = workspace.store().join("images");
        let image = image.join(inspected["digest"].as_str().unwrap());
        let manifest = fs::read(image.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["mapped"]["shared"].clone()
    };
    expect(0, &mut server.capture(&workspace, &["--name", "first"]));
    assert_eq!(shared("first").as_array().unwrap().len(), 1);
    assert_eq!(shared("first")[0]["size"], 3000 * 4096);
    for memory in ["copy", "map"] {
        let restore = ["restore", "-d", "--memory", memory, "first"];
        workspace.run(restore);
        let elsewhere = format!("{other}:{port}");
        workspace.run([&restore[..], &["--publish", &elsewhere]].concat());
        assert_next(port, memory, 2);
        assert_next(port, memory, 4);
        assert_next(other, "another copy", 2);
        if memory == "map" {
            workspace.run(["checkpoint", "--pid", "first-1", "--name", "second"]);
            assert_next(other, "another copy", 4);
        }
        workspace.run(["stop", "--all"]);
    }
    assert_eq!(shared("second").as_array().unwrap().len(), 1);
    assert_eq!(shared("second").as_array().unwrap().len(), 1);
    for memory in ["copy", "map"] {
        workspace.run(["restore", "-d", "--memory", memory, "second"]);
        assert_next(port, "of a checkpoint", 6);
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}
