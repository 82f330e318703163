//! `warmimg profile`, of servers whose parts are known.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufReader, Write as _},
    net::{TcpListener, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use warmimg::{
    profile::{Class, MilestoneKind, Process, Profile, Times},
    report::profile::json,
};

use crate::support::{Workspace, free_port, servers};

/// A part may be longer or shorter by this share, as clocks and timers are.
const SHARE: f64 = 0.05;
/// And by this, for what comes with each part.
const MARGIN_MS: f64 = 3.0;

/// A peer that answers each connection 50 ms after it was made.
fn late_peer() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The time that the server is made to wait.
            thread::park_timeout(Duration::from_millis(50));
            // It may be gone.
            let _ = stream.write_all(b"x");
        }
    });
    port
}

/// The command of a server with known parts.
fn parts(workspace: &Workspace) -> (Vec<String>, u16) {
    let program = servers::compile(workspace, "profile/parts.c");
    for number in 0..100 {
        workspace.write(&format!("files/{number}"), &"x".repeat(1000 + number));
    }
    let port = free_port();
    let folder = workspace.path().join("files").display().to_string();
    let (own, peer) = (port.to_string(), late_peer().to_string());
    (vec![program, own, peer, folder], port)
}

/// Profiles a command with these options.
fn profile(workspace: &Workspace, options: &[&str], command: &[String]) -> Profile {
    let path = workspace.path().join("profile.jsonl");
    let path_text = path.display().to_string();
    let words = ["profile", "-o", &path_text].into_iter();
    let words = words.chain(options.iter().copied()).chain(["--"]);
    let command = command.iter().map(String::as_str);
    workspace.run(words.chain(command));
    read(&path)
}

fn read(path: &Path) -> Profile {
    json::read(BufReader::new(File::open(path).unwrap())).unwrap()
}

/// What holds of every profile: each nanosecond of a thread is of one class, its slices and the critical
/// path have no gap.
fn check_sums(profile: &Profile) {
    for process in &profile.processes {
        for thread in &process.threads {
            let length = thread.end_ns - thread.start_ns;
            assert_eq!(thread.times.sum(), length, "{} {thread:?}", process.name);
            let mut at = thread.start_ns;
            for slice in &thread.slices {
                assert_eq!(slice.start_ns, at, "{} {}", thread.name, thread.tid);
                at = slice.end_ns;
            }
            assert!(thread.slices.is_empty() || at == thread.end_ns);
        }
    }
    let mut at = 0;
    for step in &profile.critical_path {
        assert_eq!(step.start_ns, at, "{step:?}");
        at = step.end_ns;
    }
    assert_eq!(at, profile.length_ns);
    assert_eq!(profile.lost.events, 0);
}

fn times(process: &Process) -> Times {
    process.threads.iter().map(|thread| thread.times).sum()
}

fn assert_about(what: &str, found_ns: u64, expected_ms: f64) {
    let found_ms = found_ns as f64 / 1e6;
    let limit = expected_ms * SHARE + MARGIN_MS;
    assert!(
        (found_ms - expected_ms).abs() < limit,
        "{what}: {found_ms} ms instead of {expected_ms}"
    );
}

#[test]
fn known_parts_are_attributed() {
    let workspace = Workspace::alone();
    let (command, port) = parts(&workspace);
    let url = format!("http://127.0.0.1:{port}/");
    let profile = profile(&workspace, &["--url", &url], &command);
    check_sums(&profile);

    let [server, child] = &profile.processes[..] else {
        panic!("{} processes", profile.processes.len());
    };
    let [main, holder] = &server.threads[..] else {
        panic!("{} threads", server.threads.len());
    };
    let of = |class: Class| main.times.of(class);
    assert_about("own code", of(Class::User), 300.0);
    assert_about("sleep", of(Class::Sleep), 200.0);
    assert_about("network", of(Class::Network), 50.0);
    assert_about("lock", of(Class::Lock), 80.0);
    assert_about("child", of(Class::Child), 150.0);
    assert_about("sleep of the holder", holder.times.of(Class::Sleep), 80.0);
    assert_about("sleep of the child", times(child).of(Class::Sleep), 150.0);

    let opened = profile
        .files
        .iter()
        .filter(|file| file.path.contains("/files/"));
    let opened: Vec<_> = opened.collect();
    assert_eq!(opened.len(), 100);
    for file in opened {
        let number: u64 = file.path.rsplit('/').next().unwrap().parse().unwrap();
        assert_eq!((file.opens, file.reads), (1, 1), "{file:?}");
        assert_eq!(file.bytes_read, 1000 + number);
    }
    let missing = &profile.failed_lookups[0];
    // The dynamic linker looks for a file or two that are not there.
    assert!((1000..1010).contains(&missing.count), "{missing:?}");

    let peer = format!("127.0.0.1:{}", command[2]);
    let connection = profile.connections.iter().find(|of| of.peer == peer);
    let connection = connection.unwrap();
    let connected = connection.connected_ns.unwrap();
    assert!(connected - connection.start_ns < 20_000_000);
    assert_about(
        "first byte",
        connection.first_byte_ns.unwrap() - connected,
        50.0,
    );
    assert_about("waited", connection.waited_ns, 50.0);

    // Whoever waited for them is not what took the time.
    let mut path = Times::default();
    for step in &profile.critical_path {
        path.add(step.class, step.end_ns - step.start_ns);
    }
    assert_about(
        "sleeps on the path",
        path.of(Class::Sleep),
        200.0 + 80.0 + 150.0,
    );
    assert_about("children on the path", path.of(Class::Child), 0.0);
    assert_about("locks on the path", path.of(Class::Lock), 0.0);
    let slept = profile.findings.iter().find(|of| of.title == "sleeping");
    assert_about("the finding", slept.unwrap().cost_ns, 430.0);

    let kinds: Vec<_> = profile.milestones.iter().map(|of| of.kind).collect();
    let expected = [
        MilestoneKind::Listen,
        MilestoneKind::Ready,
        MilestoneKind::Response,
    ];
    assert_eq!(kinds, expected);
    workspace.assert_clean();
}

#[test]
fn sums_are_exact_whatever_runs() {
    let workspace = Workspace::new();
    let script = workspace.write(
        "start.sh",
        "#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8; do (date; ls /etc) > /dev/null; done\n\
         grep -r root /etc 2> /dev/null | wc -l > /dev/null\nexec \"$@\"\n",
    );
    let tomcat = servers::tomcat(&workspace);
    for server in [servers::express(), servers::django_on_gunicorn(), tomcat] {
        let path = workspace.path().join("profile.jsonl");
        let mut command = workspace.warmimg(["profile", "-o", path.to_str().unwrap(), "--"]);
        command.args(["sh", &script]);
        command
            .args(&server.command)
            .envs(server.environment.clone());
        crate::support::expect(0, &mut command);
        let profile = read(&path);
        check_sums(&profile);
        assert!(profile.processes.len() > 10);
        server.wait_for_silence();
    }
    workspace.assert_clean();
}

#[test]
fn every_format_is_written() {
    let workspace = Workspace::new();
    let (command, _) = parts(&workspace);
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let file = |name: &str| workspace.path().join(name).display().to_string();
    for (name, begin) in [("a.html", "<!"), ("a.jsonl", "{\"type\":\"profile\"")] {
        let words = ["profile", "-o", &file(name), "--"];
        workspace.run(words.iter().chain(&command));
        let text = fs::read_to_string(file(name)).unwrap();
        assert!(text.to_lowercase().starts_with(begin), "{name}");
    }
    workspace.run(
        ["profile", "-o", &file("a.pftrace"), "--"]
            .iter()
            .chain(&command),
    );
    assert!(fs::metadata(file("a.pftrace")).unwrap().len() > 1000);
    let screen = workspace.run(["profile", "--critical-path", "--"].iter().chain(&command));
    assert!(screen.contains("sleeping: clock_nanosleep"), "{screen}");

    let words = ["profile", "--runs", "3", "-o", &file("b.jsonl"), "--"];
    workspace.run(words.iter().chain(&command));
    let screen = workspace.run(["profile", "diff", &file("a.jsonl"), &file("b.jsonl")]);
    assert!(screen.contains("ready for connections"), "{screen}");
    workspace.assert_clean();
}

#[test]
fn what_cannot_be_profiled_is_told() {
    let workspace = Workspace::new();
    let said = workspace.fail(100, ["profile", "-o", "/no/such/file", "--", "sleep", "9"]);
    assert!(said.contains("cannot write /no/such/file"), "{said}");
    let path = workspace.path().join("none.html").display().to_string();
    let early = ["capture", "--profile", &path, "--", "sh", "-c", "exit 3"];
    workspace.fail(102, early);
    assert!(!Path::new(&path).exists(), "an empty profile is left");
    let said = workspace.fail(102, ["profile", "--", "sh", "-c", "exit 3"]);
    assert!(said.contains("exit status 3"), "{said}");
    let said = workspace.fail(103, ["profile", "--timeout", "0.5", "--", "sleep", "99"]);
    assert!(said.contains("has not waited for a connection"), "{said}");
    let wrong = workspace.write(
        "wrong.jsonl",
        "no profile
",
    );
    let said = workspace.fail(2, ["profile", "diff", &wrong, &wrong]);
    assert!(said.contains("holds no profile"), "{said}");
    workspace.assert_clean();
}

#[test]
fn a_capture_and_a_restore_are_profiled() {
    let workspace = Workspace::new();
    let (command, _) = parts(&workspace);
    let path = workspace.path().join("capture.jsonl").display().to_string();
    let words = ["capture", "--name", "parts", "--profile", &path, "--"];
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    workspace.run(words.iter().chain(&command));
    let captured = read(Path::new(&path));
    check_sums(&captured);
    assert!(captured.length_ns > 700_000_000);

    workspace.run(["profile", "--restore=parts", "-o", &path]);
    let restored = read(Path::new(&path));
    check_sums(&restored);
    let named = |name: &str| {
        restored
            .processes
            .iter()
            .any(|of| of.name.starts_with(name))
    };
    assert!(
        named("criu") && named("warmimg") && named("server"),
        "{:?}",
        restored.processes
    );
    let kinds: Vec<_> = restored.milestones.iter().map(|of| of.kind).collect();
    assert!(kinds.contains(&MilestoneKind::Restored) && kinds.contains(&MilestoneKind::Response));
    workspace.assert_clean();
}

/// Where the name server of a test is asked.
const NAME_SERVER: &str = "127.0.0.77";

/// Asks for a name and connects to it, then serves.
const NAMES: &str = r#"
import socket, sys
peer = socket.create_connection(("db.warmimg.test", int(sys.argv[2])))
peer.recv(1)
server = socket.socket()
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
server.accept()
"#;

/// Answers each question for an IPv4 address with 127.0.0.1, 30 ms later, and all others with nothing.
fn name_server() {
    let socket = UdpSocket::bind((NAME_SERVER, 53)).unwrap();
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let mut question = &packet[12..length];
            while question[0] != 0 {
                question = &question[1 + usize::from(question[0])..];
            }
            let is_v4 = question[1..3] == [0, 1];
            let end = length - question.len() + 5;
            let mut answer = packet[..end].to_vec();
            let counts = [0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0];
            answer[2..12].copy_from_slice(&counts);
            if is_v4 {
                answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x7f\0\0\x01");
            }
            thread::park_timeout(Duration::from_millis(30));
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// As the C library resolves it, with a configuration of its own.
#[test]
fn connections_have_the_names_that_were_resolved() {
    let workspace = Workspace::new();
    name_server();
    let resolv = workspace.write("resolv.conf", &format!("nameserver {NAME_SERVER}\n"));
    let program = workspace.write("names.py", NAMES);
    let (own, peer) = (free_port(), late_peer());
    let script =
        format!("mount --bind {resolv} /etc/resolv.conf && exec python3 {program} {own} {peer}");
    let words = ["unshare", "--mount", "sh", "-c", &script];
    let profile = profile(&workspace, &[], &words.map(str::to_owned));
    let peer = format!("127.0.0.1:{peer}");
    let connection = profile.connections.iter().find(|of| of.peer == peer);
    let connection = connection.unwrap();
    assert_eq!(connection.name.as_deref(), Some("db.warmimg.test"));
    assert_about("name", connection.resolved_ns.unwrap(), 30.0);
    let waited = format!("recvfrom db.warmimg.test ({peer})");
    let path = profile.critical_path.iter();
    let waited = path.filter(|step| {
        step.text
            .is_some_and(|text| profile.texts[text as usize] == waited)
    });
    assert_about(
        "first byte",
        waited.map(|step| step.end_ns - step.start_ns).sum(),
        50.0,
    );
    workspace.assert_clean();
}

/// Calls by their names.
type Counts = BTreeMap<String, u64>;

/// The calls in the log of `strace -f -ttt` until a time, in seconds since the epoch: a line each, or two
/// of which the second says "resumed".
fn logged(log: &str, until: f64) -> Counts {
    let mut counts = Counts::new();
    for line in log.lines() {
        let after_pid = line
            .split_once(' ')
            .map_or("", |(_, rest)| rest.trim_start());
        let Some((time, call)) = after_pid.split_once(' ') else {
            continue;
        };
        let (name, rest) = call.split_once('(').unwrap_or_default();
        let is_call = name
            .bytes()
            .all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
        if !rest.is_empty() && is_call && time.parse::<f64>().unwrap() <= until {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Page faults in what `perf stat -I -x,` wrote, until a time in seconds since its begin.
fn faults(log: &str, until: f64) -> u64 {
    let lines = log.lines().filter_map(|line| {
        let mut fields = line.split(',').map(str::trim);
        Some((
            fields.next()?.parse::<f64>().ok()?,
            fields.next()?.parse::<u64>().ok()?,
        ))
    });
    lines
        .filter(|&(time, _)| time < until)
        .map(|(_, count)| count)
        .sum()
}

/// strace(1), perf-stat(1) and the profile watch the same run, so that all must have seen the same.
#[test]
fn counts_are_those_of_strace_and_perf() {
    let workspace = Workspace::alone();
    let servers = [
        servers::nginx(&workspace),
        servers::express(),
        servers::django_on_gunicorn(),
        servers::rails_on_puma(),
        servers::tomcat(&workspace),
    ];
    for server in servers {
        let file = |name: &str| workspace.path().join(name).display().to_string();
        let (log, path) = (file("strace.log"), file("profile.jsonl"));
        let counters = file("perf.log");
        // As root, whatever the server's user: others may not count what happens in the kernel.
        let mut command = workspace.warmimg(["profile", "-F", "0", "-o", &path]);
        command.args(["--", "perf", "stat", "-e", "page-faults", "-x,"]);
        command.args(["-I", "10", "-o", &counters, "--"]);
        command.args(["strace", "-f", "-ttt", "-qq", "-o", &log]);
        command.args(&server.command);
        command.envs(server.environment.clone());
        crate::support::expect(0, &mut command);
        let profile = read(Path::new(&path));
        assert_eq!(profile.lost.events, 0);
        let [perf, strace, ..] = &profile.processes[..] else {
            panic!("{} processes", profile.processes.len());
        };
        assert_eq!((&*perf.name, &*strace.name), ("perf", "strace"));
        let mut counted = Counts::new();
        for calls in profile
            .calls
            .iter()
            .filter(|calls| calls.pid != perf.pid && calls.pid != strace.pid)
        {
            *counted.entry(calls.name.clone()).or_default() += calls.count;
        }
        let until = profile.started_ms as f64 / 1e3 + profile.length_ns as f64 / 1e9;
        let log = fs::read_to_string(&log).unwrap();
        // The server goes on until the profile has taken the counts, and then until it is ended.
        let (logged, later) = (logged(&log, until - 0.001), logged(&log, f64::MAX));
        let names: BTreeSet<&String> = counted.keys().chain(later.keys()).collect();
        for name in names {
            let of = |counts: &Counts| counts.get(name).copied().unwrap_or(0);
            let (counted, logged, later) = (of(&counted), of(&logged), of(&later));
            // strace misses what precedes the execution of the command, and calls are under way when
            // the profile ends.
            let limit = 5 + logged / 200;
            assert!(
                (logged.saturating_sub(limit)..=later + limit).contains(&counted),
                "{}: {name} {counted} times, by strace {logged} to {later}",
                server.command.join(" ")
            );
        }
        // perf knows what was within a hundredth of a second, and not what precedes the execution.
        let seconds = profile.length_ns as f64 / 1e9;
        let by_perf = faults(&fs::read_to_string(&counters).unwrap(), seconds + 0.01);
        let ours = profile
            .faults
            .iter()
            .filter(|faults| faults.pid != perf.pid);
        let ours: u64 = ours.map(|faults| faults.count).sum();
        let sum = |counts: &Counts| counts.values().sum::<u64>();
        println!(
            "{}: {} calls, by strace {}; {ours} page faults, by perf {by_perf}",
            server.command[0],
            sum(&counted),
            sum(&logged)
        );
        assert!(ours.abs_diff(by_perf) <= 100 + by_perf / 50);
        server.wait_for_silence();
    }
    workspace.assert_clean();
}
