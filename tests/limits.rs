//! Control groups of instances: limits on processors and memory, at a restore and while it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Killed, Workspace, expect, fixture, free_port, server::Server, servers, wait_until,
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Captures the accept loop with these costs under the name `server`.
fn capture(workspace: &Workspace, costs: &[&str]) -> Server {
    let server = servers::accept_loop(workspace, costs);
    expect(0, &mut server.capture(workspace, &["--name", "server"]));
    server
}

/// The folders of an instance's group.
fn group(workspace: &Workspace, id: &str) -> Vec<PathBuf> {
    let listed = workspace.run(["--json", "ps"]);
    let record = listed.lines().map(json).find(|record| record["id"] == id);
    let group = record.unwrap()["group"].clone();
    let folder = |controller: &str| Some(group[controller]["path"].as_str()?.into());
    let mut folders: Vec<_> = ["cpu", "memory"].into_iter().filter_map(folder).collect();
    // On version 2 they are the same.
    folders.dedup();
    folders
}

fn assert_gone(folders: &[PathBuf]) {
    assert!(!folders.is_empty());
    for folder in folders {
        assert!(!folder.exists(), "{}", folder.display());
    }
}

/// The groups whose owner is no more, and that hold nothing.
fn abandoned() -> Vec<PathBuf> {
    let is_abandoned = |path: &PathBuf| {
        if fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty()) {
            return false;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let pid = name
            .strip_prefix("warmimg.")
            .and_then(|rest| rest.split_once('.'));
        pid.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists())
    };
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let tops = entries(Path::new("/sys/fs/cgroup")).map(|entry| entry.path());
    tops.chain(["/sys/fs/cgroup".into()])
        .flat_map(|top| {
            entries(&top.join("warmimg"))
                .map(|entry| entry.path())
                .collect::<Vec<_>>()
        })
        .filter(is_abandoned)
        .collect()
}

/// How many requests per second a server answers, measured over a second.
fn throughput(server: &Server) -> f64 {
    let begun = Instant::now();
    let mut answers = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        server.client.ask().unwrap();
        answers += 1;
    }
    f64::from(answers) / begun.elapsed().as_secs_f64()
}

/// What each answer of the servers that are limited costs, in milliseconds of processor time.
const WORK: &str = "work=2";

/// The most that a fifth of a processor can answer of that in a second, with the part of a period
/// that may come on top.
const FIFTH: f64 = 100.0 * 1.3;

#[test]
fn throughput_follows_the_limit_on_processors_at_once() {
    let workspace = Workspace::alone();
    let server = capture(&workspace, &[WORK]);
    // With a group from the start, and with one that it is put into later.
    for options in [&["--cgroup"][..], &[]] {
        workspace.run([&["restore", "-d", "server"], options].concat());
        let free = throughput(&server);
        workspace.run(["limit", "server-1", "--cpus", "0.2"]);
        let limited = throughput(&server);
        let said = workspace.run(["limit", "server-1"]);
        assert!(said.contains("processors    0.2\n"), "{said}");
        workspace.run(["limit", "server-1", "--cpus", "max"]);
        let again = throughput(&server);
        println!("requests per second: {free:.0}, then {limited:.0}, then {again:.0}");
        assert!(limited < FIFTH, "{limited}");
        assert!(
            limited < free / 2.0 && limited < again / 2.0,
            "{free} {limited} {again}"
        );
        let folders = group(&workspace, "server-1");
        workspace.run(["stop", "server-1"]);
        assert_gone(&folders);
    }
    workspace.assert_clean();
}

#[test]
fn a_restore_can_be_limited_from_the_start() {
    let workspace = Workspace::alone();
    let server = capture(&workspace, &[WORK]);
    let options = ["--cpus", "0.2", "--memory-limit", "64M"];
    workspace.run([&["restore", "-d", "server"][..], &options].concat());
    let limited = throughput(&server);
    let said = json(&workspace.run(["--json", "limit", "server-1"]));
    assert_eq!(
        (&said["type"], &said["cpus"]),
        (&"limits".into(), &0.2.into())
    );
    assert_eq!(said["memory_bytes"], 64 << 20);
    assert!(said["memory_used_bytes"].as_u64().unwrap() < 64 << 20);
    workspace.run(["stop", "server-1"]);
    workspace.run(["restore", "-d", "server"]);
    let free = throughput(&server);
    println!("requests per second: {limited:.0} limited, {free:.0} not");
    assert!(limited < FIFTH && limited < free / 2.0, "{limited} {free}");
    workspace.run(["stop", "server-1"]);
    workspace.assert_clean();
}

/// Asks a server that needs 8 MiB more each time; returns how often it answered.
fn ask_for_more(server: &Server, most: usize) -> usize {
    (0..most)
        .take_while(|_| server.client.ask().is_ok())
        .count()
}

#[test]
fn memory_beyond_the_limit_is_not_given() {
    let workspace = Workspace::new();
    let server = capture(&workspace, &["grow=8"]);
    workspace.run(["restore", "-d", "server"]);
    assert_eq!(ask_for_more(&server, 16), 16);
    workspace.run(["stop", "server-1"]);
    // The limit at the restore, and a change while it runs.
    for live in [false, true] {
        let limit: &[&str] = if live {
            &["--cgroup"]
        } else {
            &["--memory-limit", "64M"]
        };
        workspace.run([&["restore", "-d", "server"], limit].concat());
        if live {
            assert_eq!(ask_for_more(&server, 4), 4);
            let said = workspace.run(["limit", "server-1", "--memory", "64M"]);
            assert!(said.contains("memory        64.0 MiB\n"), "{said}");
        }
        let answered = ask_for_more(&server, 16) + if live { 4 } else { 0 };
        assert!((4..8).contains(&answered), "{answered}");
        wait_until("the end", || match workspace.run(["ps"]) {
            listed if listed.contains("ended: killed by SIGKILL") => Ok(()),
            listed => Err(listed),
        });
        let error = workspace.fail(112, ["limit", "server-1", "--memory", "max"]);
        assert!(error.contains("server-1 has ended") && error.contains("warmimg stop server-1"));
        let folders = group(&workspace, "server-1");
        workspace.run(["stop", "server-1"]);
        assert_gone(&folders);
    }
    workspace.assert_clean();
}

#[test]
fn less_memory_than_is_in_use_is_refused() {
    let workspace = Workspace::new();
    let server = capture(&workspace, &["grow=8"]);
    workspace.run(["restore", "-d", "server", "--memory-limit", "256M"]);
    assert_eq!(ask_for_more(&server, 4), 4);
    let both = ["limit", "server-1", "--memory", "16M", "--cpus", "0.5"];
    let error = workspace.fail(100, both);
    assert!(
        error.contains("of memory are in use, more than the limit of 16M")
            && error.contains("nothing was changed"),
        "{error}"
    );
    assert_eq!(ask_for_more(&server, 4), 4);
    let said = json(&workspace.run(["--json", "limit", "server-1"]));
    assert_eq!(
        (&said["memory_bytes"], &said["cpus"]),
        (&(256 << 20).into(), &Value::Null)
    );
    assert!(said["memory_used_bytes"].as_u64().unwrap() > 64 << 20);
    workspace.run(["stop", "server-1"]);
    // Nor does one without a group of its own get a limit that it is beyond.
    workspace.run(["restore", "-d", "server"]);
    assert_eq!(ask_for_more(&server, 4), 4);
    let error = workspace.fail(100, ["limit", "server-1", "--memory", "16M"]);
    assert!(error.contains("more than the limit of 16M"), "{error}");
    workspace.run(["stop", "server-1"]);
    workspace.assert_clean();
}

/// The groups of each process that works in a folder.
fn groups_of_processes_in(folder: &Path) -> Vec<(i32, String)> {
    let processes = procfs::process::all_processes().unwrap().flatten();
    let ours = processes.filter(|process| process.cwd().is_ok_and(|cwd| cwd == folder));
    ours.filter_map(|process| {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok()?;
        // One that is ending is in no group any more, and has lost its program before that.
        process.exe().is_ok().then_some((process.pid, groups))
    })
    .collect()
}

#[test]
fn all_processes_of_an_instance_are_put_into_its_group() {
    let workspace = Workspace::new();
    let server = servers::plain("accept", free_port());
    // One that never stands still: it starts processes that start processes.
    let script = workspace.write(
        "restless.py",
        "import os, subprocess, sys, threading\n\
         def start():\n    while True: subprocess.run(['sh', '-c', 'true; true & wait'])\n\
         threading.Thread(target=start, daemon=True).start()\n\
         sys.argv = sys.argv[1:]\nexec(open(sys.argv[0]).read())\n",
    );
    let port = server.command.last().unwrap();
    let command = [
        "/usr/bin/python3",
        &script,
        &fixture("plain/server.py"),
        "accept",
        port,
    ];
    let restless = Server::new(server.client.clone(), command);
    expect(
        0,
        &mut restless.capture(&workspace, &["--name", "restless", "--at", "listen"]),
    );
    workspace.run(["restore", "-d", "restless"]);
    restless.client.ask_until_answered();
    let said = workspace.run(["limit", "restless-1"]);
    assert!(
        said.contains("not counted: it has no group of its own"),
        "{said}"
    );
    // By several at once, which make the same group.
    let limit = || {
        let limit = ["limit", "restless-1", "--cpus", "1", "--memory", "1G"];
        let mut command = workspace.warmimg(limit);
        Killed(command.stdout(Stdio::null()).spawn().unwrap())
    };
    for mut child in [limit(), limit(), limit(), limit()] {
        assert_eq!(child.wait(), Some(0));
    }
    let folders = group(&workspace, "restless-1");
    // Whatever runs now began in the group, and so does all that it starts.
    for _ in 0..20 {
        for folder in &folders {
            let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
            assert!(inside.lines().count() >= 2, "{inside}");
        }
        let name = folders[0].file_name().unwrap().to_str().unwrap();
        for (pid, groups) in groups_of_processes_in(workspace.path()) {
            let is_inside = |line: &&str| line.ends_with(name);
            let inside = groups.lines().filter(is_inside).count();
            assert_eq!(inside, folders.len(), "{pid}: {groups}");
        }
    }
    workspace.run(["stop", "restless-1"]);
    assert_gone(&folders);
    workspace.assert_clean();
}

#[test]
fn no_group_is_left_behind() {
    let workspace = Workspace::alone();
    let server = capture(&workspace, &["touch=32"]);
    // A restore that fails.
    let error = workspace.fail(
        100,
        [
            "restore",
            "-d",
            "server",
            "--memory=copy",
            "--memory-limit=8M",
        ],
    );
    assert!(
        error.contains("does not fit into its limit of 8M"),
        "{error}"
    );
    assert_eq!(abandoned(), [""; 0].map(PathBuf::from));

    // One in the foreground: with a group from the start, or put into one.
    for options in [&["--cpus", "1"][..], &[]] {
        let in_foreground = || {
            let mut command = workspace.warmimg([&["restore", "server"], options].concat());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let restored = Killed(command.spawn().unwrap());
            server.client.ask_until_answered();
            wait_until("its record", || {
                let output = workspace
                    .warmimg(["limit", "server-1", "--cpus", "1"])
                    .output();
                match output.unwrap() {
                    output if output.status.success() => Ok(()),
                    output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
                }
            });
            (restored, group(&workspace, "server-1"))
        };
        let (mut restored, folders) = in_foreground();
        restored.signal(Signal::SIGTERM);
        restored.wait();
        assert_gone(&folders);

        // What a killed supervisor left is removed by the next restore.
        let (mut restored, folders) = in_foreground();
        restored.signal(Signal::SIGKILL);
        restored.wait();
        server.wait_for_silence();
        workspace.run(["restore", "-d", "server"]);
        assert_gone(&folders);
        workspace.run(["stop", "--all"]);
    }

    // What a detached instance left that ended by itself goes with the next group.
    workspace.run(["restore", "-d", "server", "--cgroup"]);
    let folders = group(&workspace, "server-1");
    let listed = json(&workspace.run(["--json", "ps"]));
    let init = nix::unistd::Pid::from_raw(listed["init"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(init, Signal::SIGKILL).unwrap();
    server.wait_for_silence();
    wait_until("its init to be gone", || {
        match nix::sys::signal::kill(init, None) {
            Ok(()) => Err("it is there".to_owned()),
            Err(_) => Ok(()),
        }
    });
    workspace.run(["restore", "-d", "server", "--cgroup"]);
    assert_gone(&folders);
    workspace.run(["stop", "--all"]);
    assert_eq!(abandoned(), [""; 0].map(PathBuf::from));
    workspace.assert_clean();
}

#[test]
fn wrong_limits_are_refused() {
    let workspace = Workspace::new();
    let server = capture(&workspace, &[]);
    for (option, value, said) in [
        ("--cpus", "0", "must be from 0.01 to 10000, or max"),
        ("--cpus", "x", "not a number of processors, as 0.5, or max"),
        (
            "--memory-limit",
            "1Q",
            "not a size, as 512M (K, M, G, or bytes), or max",
        ),
        ("--memory-limit", "0", "must be more than 0"),
    ] {
        for command in [["restore", "server"], ["limit", "server-1"]] {
            let error = workspace.fail(2, [&command[..], &[option, value]].concat());
            assert!(error.contains(said), "{error}");
        }
    }
    let error = workspace.fail(2, ["restore", "-d", "--cgroup=../..", "server"]);
    assert!(error.contains("not the path of a group"), "{error}");
    let error = workspace.fail(2, ["restore", "-d", "--cgroup=no/such/group", "server"]);
    assert!(
        error.contains("there is no control group /sys/fs/cgroup/")
            && error.contains("no/such/group"),
        "{error}"
    );
    let error = workspace.fail(112, ["limit", "server-1", "--cpus", "1"]);
    assert!(
        error.contains("no instance is called \"server-1\""),
        "{error}"
    );
    assert!(server.client.is_refused());
    workspace.assert_clean();
}

#[test]
fn a_group_can_be_below_another() {
    /// The test's own, removed with it.
    struct Folders(Vec<PathBuf>);
    impl Drop for Folders {
        fn drop(&mut self) {
            self.0
                .iter()
                .for_each(|folder| fs::remove_dir(folder).unwrap());
        }
    }
    let workspace = Workspace::new();
    capture(&workspace, &[]);
    workspace.run(["restore", "-d", "server", "--cgroup"]);
    let parents = group(&workspace, "server-1");
    workspace.run(["stop", "server-1"]);
    let name = format!("test-{}", std::process::id());
    let parents = parents
        .iter()
        .map(|folder| folder.with_file_name(&name))
        .collect();
    let parents = Folders(parents);
    parents
        .0
        .iter()
        .for_each(|folder| fs::create_dir(folder).unwrap());
    let option = format!("--cgroup=warmimg/{name}");
    workspace.run(["restore", "-d", &option, "server"]);
    let folders = group(&workspace, "server-1");
    assert!(
        folders
            .iter()
            .all(|folder| parents.0.contains(&folder.parent().unwrap().into()))
    );
    workspace.run(["stop", "server-1"]);
    assert_gone(&folders);
    drop(parents);
    workspace.assert_clean();
}
