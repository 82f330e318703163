//! `warmimg run`: a server from its image if there is one that works, else cold.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};

use crate::support::{
    Killed, Workspace, ask, below_strace, expect, fixture, free_port, wait_until,
};

/// A server that is run again and again, and what it says to a service manager.
struct Site {
    workspace: Workspace,
    port: u16,
    text: PathBuf,
    manager: UnixDatagram,
    words: Vec<String>,
}

impl Site {
    fn new() -> Self {
        let workspace = Workspace::new();
        let port = free_port();
        let server = fixture("plain/reader.py");
        let text = workspace.write("text", "first");
        let manager = UnixDatagram::bind(workspace.path().join("notify")).unwrap();
        manager
            .set_read_timeout(Some(crate::support::LIMIT))
            .unwrap();
        let port_text = port.to_string();
        let words = ["/usr/bin/python3", &server, &port_text, &text].map(str::to_owned);
        Self {
            port,
            text: PathBuf::from(text),
            manager,
            words: words.to_vec(),
            workspace,
        }
    }

    fn command(&self, options: &[&str]) -> Command {
        let words = ["run", "--name", "site"].iter().chain(options).copied();
        let words = words
            .chain(["--"])
            .chain(self.words.iter().map(String::as_str));
        let mut command = self.workspace.warmimg(words);
        command.env("NOTIFY_SOCKET", self.workspace.path().join("notify"));
        command
    }

    /// Starts the server, and returns it with what `run` says of its start.
    fn start(&self, options: &[&str]) -> Running<'_> {
        self.start_as(self.command(options))
    }

    fn start_as(&self, mut command: Command) -> Running<'_> {
        let log = self.workspace.path().join("run.log");
        command.stdout(Stdio::null());
        command.stderr(fs::File::create(&log).unwrap());
        let running = Killed(command.spawn().unwrap());
        let mut message = [0; 64];
        // Not begun anew by the kernel, as it has a limit of time; see signal(7).
        let length = loop {
            match self.manager.recv(&mut message) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.expect("READY=1"),
            }
        };
        assert_eq!(&message[..length], b"READY=1\n");
        Running {
            site: self,
            warmimg: running,
            log,
        }
    }

    fn end(self) {
        drop(self.manager);
        self.workspace.assert_clean();
    }

    fn answer(&self) -> String {
        ask::get(self.port, "/").unwrap()
    }
}

struct Running<'a> {
    site: &'a Site,
    warmimg: Killed,
    log: PathBuf,
}

impl Running<'_> {
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&self, said: &str) {
        wait_until(said, || match self.said() {
            text if text.contains(said) => Ok(()),
            text => Err(text),
        });
    }

    /// What the server answers in the network of warmimg.
    fn answer_inside(&self) -> String {
        let network = format!("/proc/{}/ns/net", self.warmimg.0.id());
        let network = fs::File::open(network).unwrap();
        let port = self.site.port;
        let asking = std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            ask::get(port, "/").unwrap()
        });
        asking.join().unwrap()
    }

    fn expect(&self, said: &str, answer: &str) {
        self.wait_for(said);
        assert_eq!(self.site.answer(), format!("200 {answer}"));
    }

    /// The server, which warmimg has started.
    fn server(&self) -> i32 {
        let mut processes = self.site.workspace.processes().into_iter();
        let server = processes.find(|(_, name)| name.trim() == "python3");
        server.expect("the server runs").0
    }

    fn stop(mut self) {
        self.warmimg.signal(Signal::SIGTERM);
        assert_eq!(self.warmimg.wait(), Some(143), "{}", self.said());
    }
}

#[test]
fn a_server_is_started_cold_once_and_restored_from_then_on() {
    let site = Site::new();
    let first = site.start(&[]);
    first.expect("Starting cold (no-image): no image is called site", "first");
    first.expect("Captured site", "first");
    first.stop();
    for _ in 0..2 {
        let next = site.start(&[]);
        next.expect("Restored site-1", "first");
        assert!(!next.said().contains("cold"), "{}", next.said());
        next.stop();
    }
    site.end();
}

/// A root, and namespaces, of their own, but the pids of the host.
const CONTAINER: &str = r#"
mount --rbind / "$0"
cd "$0"
pivot_root . mnt
umount --lazy mnt
ip link set lo up
exec "$@"
"#;

#[test]
fn the_entry_point_of_a_container_is_restored_too() {
    let site = Site::new();
    let root = site.workspace.path().join("root");
    fs::create_dir(&root).unwrap();
    let contained = |options: &[&str]| {
        let command = site.command(options);
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--uts", "--ipc", "--net", "--cgroup"]);
        unshare.args(["sh", "-ec", CONTAINER]).arg(&root);
        unshare.arg(command.get_program()).args(command.get_args());
        let variables = command.get_envs();
        unshare.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        unshare
    };
    let first = site.start_as(contained(&[]));
    first.wait_for("Captured site");
    assert_eq!(first.answer_inside(), "200 first");
    first.stop();
    for _ in 0..2 {
        let next = site.start_as(contained(&[]));
        next.wait_for("Restored site-1");
        assert_eq!(next.answer_inside(), "200 first");
        next.stop();
    }
    site.end();
}

#[test]
fn what_has_changed_is_captured_again() {
    let mut site = Site::new();
    let first = site.start(&[]);
    first.expect("Captured site", "first");
    first.stop();

    fs::write(&site.text, "second one").unwrap();
    let stale = site.start(&["--no-capture"]);
    stale.expect(
        "Starting cold (stale): the image is stale: read-changed",
        "second one",
    );
    stale.stop();
    let stale = site.start(&[]);
    stale.expect("Captured site", "second one");
    stale.stop();
    let fresh = site.start(&[]);
    fresh.expect("Restored site-1", "second one");
    fresh.stop();

    let other = site.start(&["--at", "listen"]);
    other.expect(
        "Starting cold (other-point): the image was captured at ready",
        "second one",
    );
    other.stop();
    site.words.push("more".into());
    let other = site.start(&["--no-capture"]);
    other.expect(
        "Starting cold (other-command): the image is of another start: it was `/usr",
        "second one",
    );
    other.stop();
    site.end();
}

#[test]
fn an_image_that_fails_twice_is_tried_no_more() {
    let site = Site::new();
    let failing = ["--after-restore", "false"];
    let first = site.start(&failing);
    first.expect("Captured site", "first");
    first.stop();
    let failed = site.start(&[]);
    failed.expect(
        "Starting cold (restore-failed): the restore failed",
        "first",
    );
    assert!(!failed.said().contains("Captured"), "{}", failed.said());
    failed.stop();
    let failed = site.start(&["--no-capture"]);
    failed.expect("Starting cold (restore-failed)", "first");
    failed.stop();
    let quarantined = site.start(&[]);
    quarantined.expect(
        "Starting cold (quarantined): the image has failed twice",
        "first",
    );
    quarantined.expect("Captured site", "first");
    quarantined.stop();
    let restored = site.start(&[]);
    restored.expect("Restored site-1", "first");

    // A restored server that crashes is replaced by a cold one.
    let server = restored.server();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), Signal::SIGSEGV).unwrap();
    let mut message = [0; 64];
    let length = site.manager.recv(&mut message).expect("READY=1 again");
    assert_eq!(&message[..length], b"READY=1\n");
    restored.expect(
        "Starting cold (crashed): the restored server crashed: it ended with status 139",
        "first",
    );
    restored.stop();
    site.end();
}

#[test]
fn whatever_happens_the_command_is_run() {
    let site = Site::new();
    let shell = |script: &str| {
        let words = ["run", "--name", "shell", "--", "sh", "-c", script];
        site.workspace.warmimg(words)
    };
    expect(3, &mut shell("exit 3"));
    expect(
        101,
        &mut site.workspace.warmimg(["run", "--", "/no/such/program"]),
    );

    // Without a capability, the command takes the place of warmimg.
    let words = ["run", "--", "sh", "-c", "exit 7"];
    let (_, said) = expect(7, &mut site.workspace.without("bpf", words));
    assert!(
        said.contains("Starting cold (unable): missing CAP_BPF"),
        "{said}"
    );

    // Neither without eBPF, nor without namespaces, nor on a disk that is full.
    for (fault, said) in [
        ("inject=bpf:error=EPERM", "No image was made: "),
        (
            "inject=clone3:error=EPERM",
            "Starting cold (unable): cannot make the namespaces",
        ),
        ("inject=mkdir:error=ENOSPC", "No image was made: "),
    ] {
        let words = ["-qq", "-o", "/dev/null", "-e", fault];
        let mut strace = below_strace(&shell("echo started; exit 7"), &words);
        let (output, complaint) = expect(7, &mut strace);
        assert_eq!(output, "started\n", "{fault}");
        assert!(complaint.contains(said), "{fault}: {complaint}");
    }

    // A server that is not ready in time is not captured, and runs on.
    let mut slow = site
        .workspace
        .warmimg(["run", "--timeout", "0.2", "--", "sleep", "1.5"]);
    let (_, said) = expect(0, &mut slow);
    assert!(
        said.contains("No image was made: sleep has not waited"),
        "{said}"
    );
    site.end();
}

/// Signals reach a server that is not captured yet.
#[test]
fn a_start_can_be_ended() {
    let site = Site::new();
    let mut command = site.workspace.warmimg(["run", "--", "sleep", "60"]);
    let mut running = Killed(command.stderr(Stdio::null()).spawn().unwrap());
    wait_until("the start", || {
        let is_there = |(_, name): &(i32, String)| name.trim() == "sleep";
        match site.workspace.processes().iter().any(is_there) {
            true => Ok(()),
            false => Err("no process".into()),
        }
    });
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait(), Some(143));
    site.end();
}
