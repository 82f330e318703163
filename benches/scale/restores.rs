//! Starting commands and servers, with an eye on those that fail.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    Bench, LIMIT, ask, port,
    support::{Killed, Workspace, server::Server},
};

/// How often commands are looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Set by SIGINT and SIGTERM, which would otherwise leave copies behind.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the signals are heeded wherever something is waited for: by a panic, so that all
/// guards do their work.
pub fn heed_signals(bench: &Bench) {
    let _inside = bench.runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind).unwrap();
        bench.runtime.spawn(async move {
            signals.recv().await;
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    }
}

/// Commands that run; what is left of them is killed when this is dropped.
#[derive(Default)]
pub struct Commands(Vec<(Killed, File)>);

impl Commands {
    /// Starts one; returns when.
    pub fn start(&mut self, mut command: Command) -> Instant {
        let errors = tempfile::tempfile().unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.try_clone().unwrap());
        let begun = Instant::now();
        let child = command.spawn().expect("warmimg starts");
        self.0.push((Killed(child), errors));
        begun
    }

    /// Whether all have ended; panics if one has failed, or the bench was interrupted.
    fn have_ended(&mut self) -> bool {
        assert!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        let mut all = true;
        for (child, errors) in &mut self.0 {
            match child.0.try_wait().unwrap() {
                None => all = false,
                Some(status) if status.success() => {}
                Some(status) => {
                    let mut text = String::new();
                    errors.rewind().unwrap();
                    let _ = errors.read_to_string(&mut text);
                    panic!("{status}: {text}");
                }
            }
        }
        all
    }

    /// Waits until all have ended well; returns when.
    pub async fn ended(&mut self) -> Instant {
        while !self.have_ended() {
            tokio::time::sleep(INTERVAL).await;
        }
        Instant::now()
    }

    /// What comes of `work`; at the limit, if a command fails, or if the bench is interrupted, a
    /// panic.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let failure = async {
            loop {
                self.have_ended();
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            outcome = work => outcome,
            () = failure => unreachable!("it has no end"),
            () = tokio::time::sleep(LIMIT) => panic!("not done within {} s", LIMIT.as_secs()),
        }
    }

    /// Ends them as a service manager does.
    fn terminate(mut self) {
        for (child, _) in &mut self.0 {
            child.signal(Signal::SIGTERM);
            child.wait();
        }
    }
}

/// How copies came up, in milliseconds from the start of the first.
pub struct Up {
    /// Of each copy that could be told from the others.
    pub first_bytes: Vec<f64>,
    /// When all had answered.
    pub answered: f64,
    /// When all the commands had returned.
    pub returned: f64,
}

impl Bench {
    /// Panics if the bench was interrupted.
    pub fn heed(&self) {
        self.runtime.block_on(tokio::task::yield_now());
        assert!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    }

    /// The time from the start of `warmimg restore` in the foreground to the first byte, in
    /// milliseconds. Nothing runs afterwards.
    pub fn first_byte(&self, workspace: &Workspace, server: &Server, image: &str) -> f64 {
        let mut commands = Commands::default();
        let begun = commands.start(self.restore(workspace, image, &[]));
        let answer = ask::first_byte(port(server), begun);
        let time = self
            .runtime
            .block_on(async { commands.meanwhile(answer).await });
        commands.terminate();
        server.wait_for_silence();
        ms(time)
    }

    /// Restores copies at the same moment, each by a command of its own and on a port of its own.
    /// They run until they are stopped.
    pub fn bring_up(&self, workspace: &Workspace, server: &Server, image: &str, n: usize) -> Up {
        let ports = ask::ports(n);
        let mut commands = Commands::default();
        let begun = Instant::now();
        self.runtime.block_on(async {
            for new in &ports {
                let publish = format!("{new}:{}", port(server));
                commands.start(self.restore(workspace, image, &["-d", "--publish", &publish]));
            }
            let answers = ask::first_bytes(&ports, begun);
            let first_bytes = commands.meanwhile(answers).await;
            let ended = tokio::time::timeout(LIMIT, commands.ended()).await;
            let first_bytes: Vec<f64> = first_bytes.into_iter().map(ms).collect();
            Up {
                answered: first_bytes.iter().copied().fold(0.0, f64::max),
                first_bytes,
                returned: ms(ended.expect("all commands end") - begun),
            }
        })
    }

    /// Stops all instances, and sees that nothing is left. All at once: `stop --all` waits for one
    /// after the other, which takes longer than the measurement.
    pub fn stop_all(&self, workspace: &Workspace) {
        let listed = workspace.run(["--json", "ps"]);
        let mut commands = Commands::default();
        for line in listed.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            commands.start(workspace.warmimg(["stop", record["id"].as_str().unwrap()]));
        }
        self.runtime.block_on(async {
            let ended = tokio::time::timeout(LIMIT, commands.ended()).await;
            ended.expect("all instances stop");
        });
        workspace.assert_clean();
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
