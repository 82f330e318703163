//! What is left when something dies or fails in the middle: nothing, and the images that were there.
//!
//! strace(1) counts the system calls of warmimg itself, and kills it, or lets one fail, at a chosen one of
//! them. How many of each kind are tried is in `WARMIMG_FAULTS`.

mod archives;

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Killed, Workspace, below_strace, describe, finish, free_port, server::Server, servers,
    wait_until,
};

/// The system calls between which the world changes, or that it takes to change it.
const STEPS: [&str; 21] = [
    "openat",
    "read",
    "write",
    "pwrite64",
    "copy_file_range",
    "rename",
    "renameat2",
    "fsync",
    "mkdir",
    "unlinkat",
    "symlink",
    "linkat",
    "unlink",
    "fchmod",
    "clone3",
    "sendmsg",
    "recvmsg",
    "socketpair",
    "pipe2",
    "bpf",
    "flock",
];

/// What each of them may fail with.
const ERRORS: [(&str, &[&str]); 5] = [
    (
        "ENOSPC",
        &[
            "write",
            "pwrite64",
            "copy_file_range",
            "mkdir",
            "fsync",
            "rename",
            "renameat2",
            "symlink",
            "linkat",
        ],
    ),
    (
        "EIO",
        &[
            "read",
            "write",
            "fsync",
            "copy_file_range",
            "openat",
            "unlinkat",
            "unlink",
            "rename",
        ],
    ),
    ("EMFILE", &["openat", "pipe2", "socketpair"]),
    ("ENOMEM", &["clone3", "bpf", "openat", "mkdir", "sendmsg"]),
    ("EAGAIN", &["clone3", "flock"]),
];

fn faults() -> u64 {
    let set = std::env::var("WARMIMG_FAULTS").ok();
    set.map_or(2, |set| set.parse().expect("a number"))
}

/// An image to be kept, and operations to be disturbed.
struct Ground {
    workspace: Workspace,
    server: Server,
    tried: u64,
    disturbed: u64,
}

impl Ground {
    fn new() -> Self {
        let workspace = Workspace::new();
        let server = servers::plain("accept", free_port());
        let output = finish(&mut server.capture(&workspace, &["--name", "base"]));
        assert!(output.status.success(), "{}", describe(&output));
        Self {
            workspace,
            server,
            tried: 0,
            disturbed: 0,
        }
    }

    fn capture(&self) -> Command {
        self.server.capture(&self.workspace, &["--name", "other"])
    }

    fn restore(&self) -> Command {
        self.workspace.warmimg(["restore", "-d", "base"])
    }

    /// For which the image is not taken as it is.
    fn restore_elsewhere(&self) -> Command {
        let publish = format!("{}:{}", free_port(), self.server.command[3]);
        let options = ["restore", "-d", "base", "--memory", "map", "--publish"];
        self.workspace
            .warmimg(options.into_iter().chain([publish.as_str()]))
    }

    /// How often a command makes each of the steps.
    fn steps(&self, command: &Command) -> BTreeMap<&'static str, u64> {
        let log = self.workspace.path().join("counts");
        let output = finish(&mut below_strace(
            command,
            &["-c", "-U", "calls,name", "-o", log.to_str().unwrap()],
        ));
        assert!(output.status.success(), "{}", describe(&output));
        self.clean_up();
        let text = fs::read_to_string(log).unwrap();
        let rows = text.lines().filter_map(|line| {
            let (count, name) = line.trim().split_once(char::is_whitespace)?;
            let name = STEPS.into_iter().find(|step| *step == name.trim())?;
            Some((name, count.parse().ok()?))
        });
        rows.collect()
    }

    /// Runs a command with a fault at a step; it may fail, in a way that can be told. Returns whether it
    /// has worked nevertheless.
    fn disturb(&mut self, command: &Command, step: &str, fault: &str, at: u64) -> bool {
        let inject = format!("inject={step}:{fault}:when={at}");
        let output = finish(&mut below_strace(
            command,
            &["-qq", "-o", "/dev/null", "-e", &inject],
        ));
        let said = String::from_utf8_lossy(&output.stderr);
        // The runtime itself gives up if it has no descriptors, or cannot write to an eventfd.
        let has_panicked = said.contains("panicked at") && !said.contains("/tokio-");
        assert!(!has_panicked, "{inject}: {said}");
        self.count(output.status);
        self.check(&inject);
        output.status.success()
    }

    /// Counts a try.
    fn count(&mut self, status: ExitStatus) {
        self.tried += 1;
        self.disturbed += u64::from(!status.success());
    }

    /// Ends what went well.
    fn clean_up(&self) {
        // An init whose supervisor was killed takes a moment to end.
        let instances = self.workspace.store().join("instances");
        wait_until("instances to be gone", || {
            finish(&mut self.workspace.warmimg(["stop", "--all"]));
            match fs::read_dir(&instances).unwrap().next() {
                None => Ok(()),
                Some(left) => Err(format!("{left:?}")),
            }
        });
        self.server.wait_for_silence();
    }

    /// Whatever has happened, the image is there and whole, and so are all others.
    fn check(&self, what: &str) {
        self.clean_up();
        let output = finish(&mut self.workspace.warmimg(["verify", "--all"]));
        assert!(output.status.success(), "{what}: {}", describe(&output));
        let images = self.workspace.run(["images"]);
        assert!(images.contains("base"), "{what}: {images}");
        self.workspace.assert_clean();
    }

    /// The image can still be restored, and another made.
    fn end(self, what: &str) {
        self.workspace.run(["restore", "-d", "base"]);
        self.server.client.ask_until_answered();
        self.clean_up();
        let output = finish(&mut self.capture());
        assert!(output.status.success(), "{}", describe(&output));
        self.workspace.assert_clean();
        println!(
            "{what}: {} tried, {} of them failed, nothing left",
            self.tried, self.disturbed
        );
    }
}

/// Numbers from 1 to `count`, as far from each other as can be.
fn spread(count: u64, wanted: u64) -> Vec<u64> {
    let wanted = wanted.min(count);
    let mut numbers: Vec<_> = (0..wanted)
        .map(|i| 1 + i * (count - 1) / (wanted - 1).max(1))
        .collect();
    numbers.dedup();
    numbers
}

fn kill_at_each_step(what: &str, command: impl Fn(&Ground) -> Command) {
    kill_each_prepared(what, |_| {}, command);
}

/// The same, with something to be done before each try.
fn kill_each_prepared(what: &str, prepare: impl Fn(&Ground), command: impl Fn(&Ground) -> Command) {
    let mut ground = Ground::new();
    prepare(&ground);
    let command = command(&ground);
    for (step, count) in ground.steps(&command) {
        for at in spread(count, faults()) {
            prepare(&ground);
            ground.disturb(&command, step, "signal=KILL", at);
        }
    }
    ground.end(what);
}

fn fail_at_each_step(what: &str, command: impl Fn(&Ground) -> Command) {
    fail_each_prepared(what, |_| {}, command, |_, _| {});
}

/// The same, with something to be done before each try, and after it: it is told whether it has worked.
fn fail_each_prepared(
    what: &str,
    prepare: impl Fn(&Ground),
    command: impl Fn(&Ground) -> Command,
    then: impl Fn(&Ground, bool),
) {
    let mut ground = Ground::new();
    prepare(&ground);
    let command = command(&ground);
    let steps = ground.steps(&command);
    for (error, failing) in ERRORS {
        for step in failing {
            let count = steps.get(step).copied().unwrap_or(0);
            for at in spread(count, faults()) {
                prepare(&ground);
                let has_worked = ground.disturb(&command, step, &format!("error={error}"), at);
                then(&ground, has_worked);
            }
        }
    }
    ground.end(what);
}

#[test]
fn a_capture_that_is_killed_leaves_nothing() {
    kill_at_each_step("captures killed", Ground::capture);
}

#[test]
fn a_restore_that_is_killed_leaves_nothing() {
    kill_at_each_step("restores killed", Ground::restore);
}

#[test]
fn a_capture_whose_calls_fail_leaves_nothing() {
    fail_at_each_step("captures with a call that fails", Ground::capture);
}

#[test]
fn a_restore_whose_calls_fail_leaves_nothing() {
    fail_at_each_step("restores with a call that fails", Ground::restore);
}

#[test]
fn a_restore_elsewhere_that_is_killed_leaves_nothing() {
    kill_at_each_step("restores elsewhere killed", Ground::restore_elsewhere);
}

#[test]
fn a_restore_elsewhere_whose_calls_fail_leaves_nothing() {
    let what = "restores elsewhere with a call that fails";
    fail_at_each_step(what, Ground::restore_elsewhere);
}

/// Init, CRIU, or the server itself is killed, at any time.
#[test]
fn whoever_is_killed_nothing_is_left() {
    let mut ground = Ground::new();
    for round in 0..faults() * 5 {
        for victim in ["warmimg-init", "criu", "python3"] {
            for command in [ground.capture(), ground.restore()] {
                let mut child = spawned(command);
                kill_one(
                    &ground.workspace,
                    &mut child,
                    victim,
                    Duration::from_millis(7 * round),
                );
                ground.count(child.wait().unwrap());
                ground.check(&format!("{victim} killed in round {round}"));
            }
        }
    }
    ground.end("init, CRIU and servers killed");
}

fn spawned(mut command: Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills the first process of this name, some time after it is there.
fn kill_one(workspace: &Workspace, child: &mut Child, name: &str, delay: Duration) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() && begun.elapsed() < crate::support::LIMIT {
        let processes = workspace.processes();
        if let Some((pid, _)) = processes.iter().find(|(_, found)| found.trim() == name) {
            thread::park_timeout(delay);
            let pid = nix::unistd::Pid::from_raw(*pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            return;
        }
    }
}

/// Captures, restores and removals of the same names at the same time.
#[test]
fn those_at_once_leave_whole_images_only() {
    let mut ground = Ground::new();
    for _ in 0..faults() {
        let mut children = vec![spawned(ground.capture())];
        let workspace = &ground.workspace;
        children.push(spawned(
            workspace.warmimg(["prune", "--keep", "1", "--all"]),
        ));
        for _ in 0..8 {
            let options = ["restore", "-d", "base", "--net", "private"];
            children.push(spawned(workspace.warmimg(options)));
        }
        children.push(spawned(workspace.warmimg(["rm", "base"])));
        children.push(spawned(workspace.warmimg(["verify", "--all"])));
        for mut child in children {
            let mut ended = None;
            wait_until("all of them", || {
                ended = child.try_wait().unwrap();
                ended.map(drop).ok_or_else(|| "one runs".into())
            });
            ground.count(ended.unwrap());
        }
        ground.clean_up();
        let output = finish(&mut ground.workspace.warmimg(["verify", "--all"]));
        assert!(output.status.success(), "{}", describe(&output));
        ground.workspace.assert_clean();
        let output = finish(
            &mut ground
                .server
                .capture(&ground.workspace, &["--name", "base"]),
        );
        assert!(output.status.success(), "{}", describe(&output));
    }
    ground.end("at once");
}

/// Every other of eight restores at once is killed, each a while later than the one before.
#[test]
fn restores_come_back_while_others_are_killed() {
    let mut ground = Ground::new();
    for round in 0..faults() * 2 {
        let options = ["restore", "-d", "base", "--net", "private"];
        let restore = || spawned(ground.workspace.warmimg(options));
        let children: Vec<_> = (0..8).map(|_| restore()).collect();
        for (number, mut child) in children.into_iter().enumerate() {
            if number % 2 == 0 {
                thread::park_timeout(Duration::from_millis(5 * (round % 20)));
                child.kill().unwrap();
                ground.count(child.wait().unwrap());
            } else {
                assert_eq!(Killed(child).wait(), Some(0));
            }
        }
        ground.check(&format!("round {round}"));
    }
    ground.end("restores killed among others");
}

/// What there is on this machine that captures and restores could leave behind.
fn left_over(workspace: &Workspace) -> BTreeMap<&'static str, u64> {
    let lines = |path: &str| fs::read_to_string(path).unwrap().lines().count() as u64;
    let store = workspace.store().display().to_string();
    let size = finish(Command::new("du").args(["-sk", &store]));
    let size = String::from_utf8_lossy(&size.stdout);
    let descriptors = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    let first = |text: &str| text.split_whitespace().next().unwrap().parse().unwrap();
    BTreeMap::from([
        ("KiB of the store", first(&size)),
        ("files in the store", count_files(&workspace.store())),
        ("open files of the machine", first(&descriptors)),
        ("mounts", lines("/proc/self/mountinfo")),
        ("sockets", lines("/proc/net/unix") + lines("/proc/net/tcp")),
        ("processes", workspace.processes().len() as u64),
    ])
}

fn count_files(folder: &std::path::Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let count = |entry: fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => 1 + count_files(&entry.path()),
        false => 1,
    };
    entries.map(count).sum()
}

/// A capture, a restore, a request, a stop and a prune, as often as `WARMIMG_CYCLES` says.
#[test]
fn cycles_leave_nothing() {
    let set = std::env::var("WARMIMG_CYCLES").ok();
    let cycles: u64 = set.map_or(8, |set| set.parse().expect("a number"));
    let ground = Ground::new();
    let mut before = BTreeMap::new();
    for cycle in 0..cycles {
        let output = finish(&mut ground.capture());
        assert!(
            output.status.success(),
            "cycle {cycle}: {}",
            describe(&output)
        );
        ground.workspace.run(["restore", "-d", "other"]);
        ground.server.client.ask_until_answered();
        ground.clean_up();
        ground.workspace.run(["prune", "--keep", "2", "--all"]);
        if cycle == 3 {
            before = left_over(&ground.workspace);
        }
    }
    let after = left_over(&ground.workspace);
    println!("{cycles} cycles, from {before:?} to {after:?}");
    for (what, count) in &before {
        // Other tests run meanwhile, and the machine opens files of its own.
        let limit = match *what {
            "open files of the machine" | "sockets" => count * 2 + 1000,
            "mounts" | "processes" => count + 20,
            _ => count + count / 50,
        };
        assert!(
            after[what] <= limit,
            "{what}: {} after {count}",
            after[what]
        );
    }
    ground.workspace.assert_clean();
}
